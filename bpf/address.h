/* Addresses: what a connect hook leaves alone, and whose an address is. */
#ifndef WEFT_ADDRESS_H
#define WEFT_ADDRESS_H

#include "maps.h"

/* The verifier takes each context field by itself, in its own width; the compiler would like to join neighbouring
 * accesses. */
#define FENCE() asm volatile("" ::: "memory")

struct sockaddr4 { /* sockaddr_in */
    u16 family;
    u16 port_be;
    u32 ip4;
    u64 zero;
};

struct sockaddr6 { /* sockaddr_in6 */
    u16 family;
    u16 port_be;
    u32 flow;
    struct address ip6;
    u32 scope;
};

#define MAPPED bpf_htonl(0xffff) /* third word of an IPv4 address as IPv6 */

static inline void set_ip4(struct address *address, u32 ip4) {
    address->words[0] = 0;
    address->words[1] = 0;
    address->words[2] = MAPPED;
    address->words[3] = ip4;
}

static inline int is_ip4(const struct address *address) {
    return !address->words[0] && !address->words[1] && address->words[2] == MAPPED;
}

static inline int is_zero(const struct address *address) {
    return !(address->words[0] | address->words[1] | address->words[2] | address->words[3]);
}

static inline int is_same(const struct address *a, const struct address *b) {
    return !((a->words[0] ^ b->words[0]) | (a->words[1] ^ b->words[1]) | (a->words[2] ^ b->words[2]) |
             (a->words[3] ^ b->words[3]));
}

static inline int is_link_local(const struct address *address) {
    if (is_ip4(address))
        return (address->words[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000); /* 169.254/16 */
    return (address->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);     /* fe80::/10 */
}

static inline int is_loopback(const struct address *address) {
    if (is_ip4(address))
        return (address->words[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000); /* 127/8 */
    return !(address->words[0] | address->words[1] | address->words[2]) && address->words[3] == bpf_htonl(1);
}

/* Destinations that are never captured, whoever dials them. */
static inline int is_left_alone(const struct address *address) {
    if (is_loopback(address) || is_link_local(address) || is_zero(address))
        return 1;
    if (is_ip4(address)) /* 0.0.0.0 and 224/4 */
        return !address->words[3] || (address->words[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
    return (address->words[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000); /* ff00::/8 */
}

static inline void read_ip6(struct bpf_sock_addr *ctx, struct address *address) {
    address->words[0] = ctx->user_ip6[0];
    FENCE();
    address->words[1] = ctx->user_ip6[1];
    FENCE();
    address->words[2] = ctx->user_ip6[2];
    FENCE();
    address->words[3] = ctx->user_ip6[3];
    FENCE();
}

static inline void write_ip6(struct bpf_sock_addr *ctx, const struct endpoint *target) {
    ctx->user_ip6[0] = target->address.words[0];
    FENCE();
    ctx->user_ip6[1] = target->address.words[1];
    FENCE();
    ctx->user_ip6[2] = target->address.words[2];
    FENCE();
    ctx->user_ip6[3] = target->address.words[3];
    FENCE();
    ctx->user_port = bpf_htons((u16)target->port);
}

/* Whether an address belongs to the pod in this network namespace. */
static inline int is_owned(struct address *address, u64 netns) {
    u64 *owner = addresses.lookup(address);
    return owner && *owner == netns;
}

#endif
