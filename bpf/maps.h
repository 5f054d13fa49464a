/* Every map. They are made and pinned by maps.py before the programs are compiled, with the sizes of layout.py; bcc
 * only finds them under PINS (the maps' folder on the bpffs, given on the command line). Nothing that identity depends
 * on is LRU: an entry goes when its owner goes, and a full map refuses.
 */
#ifndef WEFT_MAPS_H
#define WEFT_MAPS_H

#include "redirect.h"

BPF_TABLE_PINNED("array", u32, struct settings, settings, 1, PINS "/settings");
BPF_TABLE_PINNED("hash", u64, u32, proxies, PROXY_CAPACITY, PINS "/proxies");
BPF_TABLE_PINNED("hash", u64, struct pod, pods, POD_CAPACITY, PINS "/pods");
BPF_TABLE_PINNED("hash", struct address, u64, addresses, ADDRESS_CAPACITY, PINS "/addresses");
BPF_TABLE_PINNED("hash", u64, struct usage, usage, POD_CAPACITY, PINS "/usage");
BPF_TABLE_PINNED("hash", struct local_key, struct origin, origins, HANDSHAKE_CAPACITY, PINS "/origins");
BPF_TABLE_PINNED("hash", struct flow, u64, bypass, HANDSHAKE_CAPACITY, PINS "/bypass");
BPF_TABLE_PINNED("hash", struct excluded_port, u32, excluded_ports, EXCLUDED_PORT_CAPACITY, PINS "/excluded_ports");
BPF_TABLE_PINNED("percpu_array", u32, u64, counters, REASONS, PINS "/counters");
BPF_TABLE_PINNED("percpu_array", u32, struct budget, budget, 1, PINS "/budget");

/* bcc's own declarations lack a pin, or flags beside it, for these, and the pair of lookup and update for a sockhash.
 */
struct listeners_table {
    struct listener_key key;
    u64 leaf;
    void *(*lookup)(struct listener_key *);
    int (*sock_hash_update)(void *, void *, u64);
    u32 max_entries;
    int flags;
};
__attribute__((section("maps/sockhash:" PINS "/listeners"))) struct listeners_table listeners = {.max_entries =
                                                                                                     ADDRESS_CAPACITY};

struct excluded_ranges_table {
    struct excluded_range key;
    u32 leaf;
    void *(*lookup)(struct excluded_range *);
    u32 max_entries;
    int flags;
};
__attribute__((section("maps/lpm_trie:" PINS "/excluded_ranges"))) struct excluded_ranges_table excluded_ranges = {
    .max_entries = EXCLUDED_RANGE_CAPACITY, .flags = BPF_F_NO_PREALLOC};

struct sockets_table {
    int key;
    struct tag leaf;
    void *(*sk_storage_get)(void *, void *, int);
    int (*sk_storage_delete)(void *);
    u32 max_entries;
    int flags;
};
__attribute__((section("maps/sk_storage:" PINS "/sockets"))) struct sockets_table sockets = {.flags =
                                                                                                 BPF_F_NO_PREALLOC};

struct events_table {
    int key;
    u32 leaf;
    void *(*ringbuf_reserve)(u64);
    void (*ringbuf_submit)(void *, u64);
    u32 max_entries;
    int flags;
};
__attribute__((section("maps/ringbuf:" PINS "/events"))) struct events_table events = {.max_entries = EVENT_BYTES};

#endif
