/* Datagrams to nameservers whose socket is not connected to one: each names where it goes, and each answer whence it
 * comes. */
#include "dns.h"

static inline int ask(struct bpf_sock_addr *ctx, const struct endpoint *asked, struct endpoint *proxy) {
    struct bpf_sock *sk = ctx->sk;
    if (!sk)
        return 0;
    u64 netns = bpf_get_netns_cookie(ctx);
    struct pod *pod = pods.lookup(&netns);
    if (!pod)
        return 0;
    struct tag *tag = sockets.sk_storage_get(sk, 0, 0);
    if (tag && tag->role == ROLE_PROXY)
        return 0;
    return is_asked(ctx, sk, netns, pod, asked, proxy);
}

int weft_sendmsg4(struct bpf_sock_addr *ctx) {
    struct endpoint asked = {}, proxy = {};
    asked.port = bpf_ntohs((u16)ctx->user_port);
    if (asked.port != PORT_NAMESERVER)
        return 1;
    set_ip4(&asked.address, ctx->user_ip4);
    if (!ask(ctx, &asked, &proxy))
        return 1;
    ctx->user_ip4 = proxy.address.words[3];
    FENCE();
    ctx->user_port = bpf_htons(PORT_DNS);
    return 1;
}

int weft_sendmsg6(struct bpf_sock_addr *ctx) {
    struct endpoint asked = {}, proxy = {};
    asked.port = bpf_ntohs((u16)ctx->user_port);
    if (asked.port != PORT_NAMESERVER)
        return 1;
    read_ip6(ctx, &asked.address);
    if (!ask(ctx, &asked, &proxy))
        return 1;
    write_ip6(ctx, &proxy);
    return 1;
}

/* An answer of the proxy comes, for the app, from the nameserver that its socket asked last. */
int weft_recvmsg4(struct bpf_sock_addr *ctx) {
    return restore4(ctx, tag_of(ctx->sk, ROLE_DNS));
}

int weft_recvmsg6(struct bpf_sock_addr *ctx) {
    return restore6(ctx, tag_of(ctx->sk, ROLE_DNS));
}
