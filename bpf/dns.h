/* Names: what a pod asks of a nameserver, whichever it is, goes to the proxy's port on the pod's own loopback; the
 * answer comes from where it was asked. Only where the proxy listens there: without it (DNS turned off, the port taken,
 * nobody there) nothing changes.
 */
#ifndef WEFT_DNS_H
#define WEFT_DNS_H

#include "excluded.h"
#include "report.h"

#define LOOPBACK4 bpf_htonl(0x7f000001)

static inline void dns_of(struct endpoint *proxy, const struct address *nameserver) {
    if (is_ip4(nameserver))
        set_ip4(&proxy->address, LOOPBACK4);
    else
        proxy->address.words[3] = bpf_htonl(1);
    proxy->port = PORT_DNS;
}

static inline int is_dns_proxy(const struct address *address, u32 port) {
    return port == PORT_DNS && is_loopback(address);
}

/* A node's own cache is often at a link-local address, so IPv4's are no exception here. */
static inline int is_nameserver(u64 netns, const struct endpoint *asked) {
    const struct address *address = &asked->address;
    if (asked->port != PORT_NAMESERVER || is_loopback(address) || is_owned((struct address *)address, netns))
        return 0;
    if (is_left_alone(address) && !(is_ip4(address) && is_link_local(address)))
        return 0;
    return !is_outbound_excluded(netns, asked);
}

/* Whether the proxy itself, and not just anybody, has its port for DNS. */
static inline int is_dns_served(struct bpf_sock_addr *ctx, u32 protocol, const struct endpoint *proxy) {
    struct bpf_sock_tuple tuple = {};
    u32 size = sizeof(tuple.ipv6);
    if (is_ip4(&proxy->address)) {
        tuple.ipv4.saddr = LOOPBACK4;
        tuple.ipv4.daddr = LOOPBACK4;
        tuple.ipv4.dport = bpf_htons(PORT_DNS);
        size = sizeof(tuple.ipv4);
    } else {
        tuple.ipv6.saddr[3] = bpf_htonl(1);
        tuple.ipv6.daddr[3] = bpf_htonl(1);
        tuple.ipv6.dport = bpf_htons(PORT_DNS);
    }
    struct bpf_sock *found = protocol == IPPROTO_UDP ? bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0)
                                                     : bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
    if (!found)
        return 0;
    struct tag *tag = sockets.sk_storage_get(found, 0, 0);
    int served = tag && tag->role == ROLE_PROXY;
    bpf_sk_release(found);
    return served;
}

/* A connected socket says what its own address is, and programs find out theirs by connecting to some nameserver: it
 * has the pod's then, and not loopback's. One that is bound already keeps what it has. */
static inline void be_from_pod(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct pod *pod,
                               const struct address *asked) {
    const struct address *own = is_ip4(asked) ? &pod->ip4 : &pod->ip6;
    if (is_zero(own) || sk->src_ip4)
        return;
    if (ctx->family == 2) {
        struct sockaddr4 from = {.family = 2, .ip4 = own->words[3]};
        bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from));
    } else if (!(sk->src_ip6[0] | sk->src_ip6[1] | sk->src_ip6[2] | sk->src_ip6[3])) {
        struct sockaddr6 from = {.family = 10, .ip6 = *own};
        bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from));
    }
}

/* Whether a socket asks the proxy for names; then `proxy` is where, and the socket remembers whom it meant. */
static inline int is_asked(struct bpf_sock_addr *ctx, struct bpf_sock *sk, u64 netns, const struct pod *pod,
                           const struct endpoint *asked, struct endpoint *proxy) {
    u32 wanted = POD_CAPTURE | POD_DNS;
    if (asked->port != PORT_NAMESERVER || (pod->flags & wanted) != wanted || sk->bound_dev_if ||
        !is_nameserver(netns, asked))
        return 0;
    dns_of(proxy, &asked->address);
    if (!is_dns_served(ctx, ctx->protocol, proxy))
        return 0;
    struct tag *tag = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag)
        return 0;
    tag->role = ROLE_DNS;
    tag->netns = netns;
    tag->destination = *asked;
    count(REASON_DNS);
    return 1;
}

#endif
