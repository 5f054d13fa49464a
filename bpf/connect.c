/* Outbound: what a pod dials goes to its own address, port 15001, where the proxy listens in the pod's namespace. */
#include "dns.h"
#include "excluded.h"
#include "report.h"

#define SOL_SOCKET_ 1
#define SO_MARK_ 36
#define SO_BINDTOIFINDEX_ 62
#define LOOPBACK 1 /* lo's number in every network namespace */
#define CGROUP_DEPTH 12

enum { REFUSE = 0, LEAVE = 1, CAPTURE = 2 };

static inline int refuse(u32 reason, u64 netns, const struct endpoint *dialled) {
    struct flow flow = {};
    flow.destination = *dialled;
    report(reason, netns, bpf_get_current_cgroup_id(), &flow);
    bpf_set_retval(-111); /* ECONNREFUSED */
    return REFUSE;
}

static inline int leave(struct bpf_sock *sk, struct tag *tag) {
    if (tag) /* of an earlier attempt on this socket: it must not answer getpeername now */
        sockets.sk_storage_delete(sk);
    return LEAVE;
}

/* Whether the calling process runs on the node itself: neither below the pods' cgroup nor in a proxy's. */
static inline int is_of_host(u64 pods_cgroup) {
#pragma unroll
    for (int level = 0; level < CGROUP_DEPTH; level++) {
        u64 id = bpf_get_current_ancestor_cgroup_id(level);
        if (!id)
            return 1;
        if (id == pods_cgroup || proxies.lookup(&id))
            return 0;
    }
    return 0; /* deeper than we look: not exempt */
}

/* A socket outside of all pods. One case matters: kubelet probes and the like, from the node's own namespace to a pod
 * of this node. Who wears a mesh mark is nobody's probe. */
static inline int dial_from_node(struct bpf_sock *sk, u64 netns, struct endpoint *dialled) {
    u32 zero = 0;
    struct settings *own = settings.lookup(&zero);
    if (!own || !own->pods_cgroup || own->node_netns != netns)
        return LEAVE;
    struct tag *tag = sockets.sk_storage_get(sk, 0, 0);
    if (!addresses.lookup(&dialled->address))
        return tag && tag->role == ROLE_HOST ? leave(sk, tag) : LEAVE;
    u32 mark = sk->mark & MARK_MASK;
    if (mark == MARK_PROXY || mark == MARK_DELIVER || (tag && tag->role == ROLE_PROXY) || !is_of_host(own->pods_cgroup))
        return LEAVE;
    tag = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag)
        return LEAVE; /* not exempt, that is all */
    tag->role = ROLE_HOST;
    tag->netns = netns;
    tag->cgroup = bpf_get_current_cgroup_id();
    return LEAVE;
}

/* By mark and device a socket finds table 100's route, which all share. That of an own address is on eth0, and of it
 * Linux makes one for each IPv4 socket: 192 bytes. It is lo either way, so where this fails nothing else changes. Not
 * with a source that is the pod's own: what the app answers to that comes with the other route, for which this is eth0.
 */
static inline void share_route(struct bpf_sock_addr *ctx, struct bpf_sock *sk, u64 netns,
                               const struct endpoint *dialled) {
    struct address source = {};
    int loopback = LOOPBACK;
    set_ip4(&source, sk->src_ip4);
    if (is_ip4(&dialled->address) && source.words[3] && !is_owned(&source, netns))
        bpf_setsockopt(ctx, SOL_SOCKET_, SO_BINDTOIFINDEX_, &loopback, sizeof(loopback));
}

/* The proxy dials: its own pod's app, or the world in the pod's name. */
static inline int dial_by_proxy(struct bpf_sock_addr *ctx, struct bpf_sock *sk, u64 netns, struct endpoint *dialled) {
    if (!is_owned(&dialled->address, netns))
        return LEAVE;
    u32 mark = MARK_DELIVER;
    if (bpf_setsockopt(ctx, SOL_SOCKET_, SO_MARK_, &mark, sizeof(mark)))
        return refuse(REASON_NO_MARK, netns, dialled);
    share_route(ctx, sk, netns, dialled);
    return LEAVE;
}

static inline int dial(struct bpf_sock_addr *ctx, struct endpoint *dialled, struct endpoint *target) {
    struct bpf_sock *sk = ctx->sk;
    int datagrams = ctx->protocol == IPPROTO_UDP;
    if ((ctx->protocol != IPPROTO_TCP && !datagrams) || !sk)
        return LEAVE;
    u64 netns = bpf_get_netns_cookie(ctx);
    struct pod *pod = pods.lookup(&netns);
    if (!pod)
        return datagrams ? LEAVE : dial_from_node(sk, netns, dialled);
    struct tag *tag = sockets.sk_storage_get(sk, 0, 0);
    if (tag && tag->role == ROLE_PROXY)
        return datagrams ? LEAVE : dial_by_proxy(ctx, sk, netns, dialled);
    if (is_asked(ctx, sk, netns, pod, dialled, target)) {
        be_from_pod(ctx, sk, pod, &dialled->address);
        return CAPTURE;
    }
    if (datagrams)
        return leave(sk, tag);
    if (!(pod->flags & POD_CAPTURE) || is_left_alone(&dialled->address) || is_owned(&dialled->address, netns) ||
        is_outbound_excluded(netns, dialled))
        return leave(sk, tag);

    target->address = is_ip4(&dialled->address) ? pod->ip4 : pod->ip6;
    target->port = PORT_OUTBOUND;
    if (is_zero(&target->address))
        return refuse(REASON_NO_ADDRESS, netns, dialled);
    tag = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag)
        return refuse(REASON_NO_STORAGE, netns, dialled);
    tag->role = ROLE_CLIENT;
    tag->netns = netns;
    tag->cgroup = bpf_get_current_cgroup_id();
    tag->destination = *dialled;
    count(REASON_CAPTURED);
    return CAPTURE;
}

int weft_connect4(struct bpf_sock_addr *ctx) {
    struct endpoint dialled = {};
    struct endpoint target = {};
    set_ip4(&dialled.address, ctx->user_ip4);
    FENCE();
    dialled.port = bpf_ntohs((u16)ctx->user_port);
    int verdict = dial(ctx, &dialled, &target);
    if (verdict != CAPTURE)
        return verdict;
    ctx->user_ip4 = target.address.words[3];
    FENCE();
    ctx->user_port = bpf_htons((u16)target.port);
    return 1;
}

int weft_connect6(struct bpf_sock_addr *ctx) {
    struct endpoint dialled = {};
    struct endpoint target = {};
    read_ip6(ctx, &dialled.address);
    dialled.port = bpf_ntohs((u16)ctx->user_port);
    int verdict = dial(ctx, &dialled, &target);
    if (verdict != CAPTURE)
        return verdict;
    write_ip6(ctx, &target);
    return 1;
}
