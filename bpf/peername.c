/* What sockets say of themselves: getpeername tells the app whom it dialled, SO_ORIGINAL_DST tells the proxy. */
#include "dns.h"

#define PAGE 4096
#define LEVEL_IP4 0
#define LEVEL_IP6 41
#define ORIGINAL_DST 80 /* SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST */

static inline struct tag *tag_of(struct bpf_sock *sk, u32 role) {
    if (!sk)
        return 0;
    struct tag *tag = sockets.sk_storage_get(sk, 0, 0);
    return tag && tag->role == role ? tag : 0;
}

/* Say whom the socket meant, where the kernel says the proxy's DNS. */
static inline int restore4(struct bpf_sock_addr *ctx, struct tag *tag) {
    struct address real = {};
    set_ip4(&real, ctx->user_ip4);
    FENCE();
    if (!tag || !is_ip4(&tag->destination.address) || !is_dns_proxy(&real, bpf_ntohs((u16)ctx->user_port)))
        return 1;
    ctx->user_ip4 = tag->destination.address.words[3];
    FENCE();
    ctx->user_port = bpf_htons((u16)tag->destination.port);
    return 1;
}

static inline int restore6(struct bpf_sock_addr *ctx, struct tag *tag) {
    struct address real = {};
    read_ip6(ctx, &real);
    if (!tag || !is_dns_proxy(&real, bpf_ntohs((u16)ctx->user_port)))
        return 1;
    write_ip6(ctx, &tag->destination);
    return 1;
}

int weft_peer4(struct bpf_sock_addr *ctx) {
    struct tag *tag = tag_of(ctx->sk, ROLE_CLIENT);
    if (!tag)
        return restore4(ctx, tag_of(ctx->sk, ROLE_DNS));
    ctx->user_ip4 = tag->destination.address.words[3];
    FENCE();
    ctx->user_port = bpf_htons((u16)tag->destination.port);
    return 1;
}

int weft_peer6(struct bpf_sock_addr *ctx) {
    struct tag *tag = tag_of(ctx->sk, ROLE_CLIENT);
    if (!tag)
        return restore6(ctx, tag_of(ctx->sk, ROLE_DNS));
    write_ip6(ctx, &tag->destination);
    return 1;
}

/* Runs after the kernel's own answer, which is an error: nothing was translated. A proxy asks once, when it has
 * accepted: to carry it on would be 320 bytes of each connection for as long as that lives. */
int weft_getsockopt(struct bpf_sockopt *ctx) {
    if (ctx->optlen > PAGE) /* a program sees one page; older kernels fail what is longer unless told to pass it on */
        ctx->optlen = 0;
    if (ctx->optname != ORIGINAL_DST || (ctx->level != LEVEL_IP4 && ctx->level != LEVEL_IP6))
        return 1;
    struct bpf_sock *sk = ctx->sk;
    if (!sk)
        return 1;
    struct tag *tag = sockets.sk_storage_get(sk, 0, 0);
    if (!tag || tag->role != ROLE_ACCEPTED || is_ip4(&tag->destination.address) != (ctx->level == LEVEL_IP4))
        return 1;
    void *end = ctx->optval_end;
    if (ctx->level == LEVEL_IP4) {
        struct sockaddr4 *answer = ctx->optval;
        if ((void *)(answer + 1) > end)
            return 1;
        answer->family = 2;
        answer->port_be = bpf_htons((u16)tag->destination.port);
        answer->ip4 = tag->destination.address.words[3];
        answer->zero = 0;
        ctx->optlen = sizeof(struct sockaddr4);
    } else {
        struct sockaddr6 *answer = ctx->optval;
        if ((void *)(answer + 1) > end)
            return 1;
        answer->family = 10;
        answer->port_be = bpf_htons((u16)tag->destination.port);
        answer->flow = 0;
        answer->ip6 = tag->destination.address;
        answer->scope = 0;
        ctx->optlen = sizeof(struct sockaddr6);
    }
    ctx->retval = 0;
    sockets.sk_storage_delete(sk);
    return 1;
}
