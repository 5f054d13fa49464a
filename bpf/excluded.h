/* What is excluded from capture by explicit wish, of one pod or (netns 0) of every pod of the node. */
#ifndef WEFT_EXCLUDED_H
#define WEFT_EXCLUDED_H

#include "address.h"

static inline int is_port_excluded(u64 netns, u32 port, u32 direction) {
    struct excluded_port key = {.netns = netns, .port = port, .direction = direction};
    return excluded_ports.lookup(&key) != 0;
}

static inline int is_range_excluded(u64 netns, const struct address *address) {
    struct excluded_range key = {.bits = EXCLUDED_RANGE_BITS, .netns = {netns, netns >> 32}, .is_ip4 = is_ip4(address)};
    key.address = *address;
    return excluded_ranges.lookup(&key) != 0;
}

static inline int is_outbound_excluded(u64 netns, const struct endpoint *dialled) {
    return is_port_excluded(netns, dialled->port, EXCLUDED_OUTBOUND) ||
           is_port_excluded(0, dialled->port, EXCLUDED_OUTBOUND) || is_range_excluded(netns, &dialled->address) ||
           is_range_excluded(0, &dialled->address);
}

static inline int is_inbound_excluded(u64 netns, u32 port) {
    return is_port_excluded(netns, port, EXCLUDED_INBOUND) || is_port_excluded(0, port, EXCLUDED_INBOUND) ||
           is_port_excluded(netns, EVERY_PORT, EXCLUDED_INBOUND);
}

#endif
