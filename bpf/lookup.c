/* Inbound: which listener a new connection to a pod gets. Attached to each enrolled pod's network namespace. It runs
 * for SYNs and whatever else matches no connection; SK_DROP makes TCP answer with a reset. */
#include "excluded.h"
#include "report.h"

static inline int drop(u32 reason, u64 netns, const struct flow *flow) {
    report(reason, netns, 0, flow);
    return SK_DROP;
}

static inline void flow_of(struct bpf_sk_lookup *ctx, struct flow *flow) {
    if (ctx->family == 2) {
        set_ip4(&flow->source.address, ctx->remote_ip4);
        FENCE();
        set_ip4(&flow->destination.address, ctx->local_ip4);
        FENCE();
    } else {
        flow->source.address.words[0] = ctx->remote_ip6[0];
        FENCE();
        flow->source.address.words[1] = ctx->remote_ip6[1];
        FENCE();
        flow->source.address.words[2] = ctx->remote_ip6[2];
        FENCE();
        flow->source.address.words[3] = ctx->remote_ip6[3];
        FENCE();
        flow->destination.address.words[0] = ctx->local_ip6[0];
        FENCE();
        flow->destination.address.words[1] = ctx->local_ip6[1];
        FENCE();
        flow->destination.address.words[2] = ctx->local_ip6[2];
        FENCE();
        flow->destination.address.words[3] = ctx->local_ip6[3];
        FENCE();
    }
    flow->source.port = bpf_ntohs((u16)ctx->remote_port);
    FENCE();
    flow->destination.port = ctx->local_port;
}

static inline int drop_stray(void) {
    count(REASON_STRAY);
    return SK_DROP;
}

/* The newest proxy's listener takes the connection, whatever else may share its port. */
static inline int hand_over(struct bpf_sk_lookup *ctx, u64 netns, u32 port, const struct flow *flow, int stray) {
    struct listener_key key = {.netns = netns, .port = port};
    struct bpf_sock *listener = listeners.lookup(&key);
    if (!listener)
        return stray ? drop_stray() : drop(REASON_NO_LISTENER, netns, flow);
    long failed = bpf_sk_assign((void *)ctx, (void *)listener, BPF_SK_LOOKUP_F_NO_REUSEPORT);
    bpf_sk_release(listener);
    return failed ? drop(REASON_NO_STEER, netns, flow) : SK_PASS;
}

/* 15001 is for captured connections alone: they are known before their SYN comes. */
static inline int take_outbound(struct bpf_sk_lookup *ctx, u64 netns, struct flow *flow) {
    struct local_key key = {.netns = netns};
    key.local = flow->source;
    struct origin *origin = origins.lookup(&key);
    if (!origin) {
        int stray = is_owned(&flow->source.address, netns) && !bypass.lookup(flow);
        return stray ? drop_stray() : drop(REASON_DIRECT, netns, flow);
    }
    flow->destination = origin->destination; /* for the event */
    return hand_over(ctx, netns, PORT_OUTBOUND, flow, 0);
}

static inline int take_inbound(struct bpf_sk_lookup *ctx, u64 netns, struct flow *flow) {
    int verdict = hand_over(ctx, netns, PORT_INBOUND, flow, is_owned(&flow->source.address, netns));
    if (verdict == SK_PASS)
        count(REASON_STEERED);
    return verdict;
}

/* A tunnel is the proxy's alone: an app that has its port gets nobody, and nobody reaches it there in plain text. What
 * comes over loopback is the pod's own. */
static inline int take_tunnel(struct bpf_sk_lookup *ctx, u64 netns, struct flow *flow) {
    if (is_loopback(&flow->destination.address))
        return SK_PASS;
    if (!netns)
        return drop(REASON_NO_POD, 0, flow);
    return hand_over(ctx, netns, PORT_HBONE, flow, is_owned(&flow->source.address, netns));
}

int weft_lookup(struct bpf_sk_lookup *ctx) {
    if (ctx->protocol != IPPROTO_TCP)
        return SK_PASS;
    struct flow flow = {};
    flow_of(ctx, &flow);
    u32 port = flow.destination.port;
    u64 *owner = addresses.lookup(&flow.destination.address);
    u64 netns = owner ? *owner : 0;
    if (port == PORT_HBONE)
        return take_tunnel(ctx, netns, &flow);
    if (port == PORT_INBOUND)
        return drop(REASON_DIRECT, netns, &flow);
    if (port == PORT_OUTBOUND)
        return take_outbound(ctx, netns, &flow);
    if (is_loopback(&flow.destination.address) || bypass.lookup(&flow))
        return SK_PASS;
    if (!netns)
        return drop(REASON_NO_POD, 0, &flow);
    if (is_inbound_excluded(netns, port)) {
        report(REASON_EXCLUDED, netns, 0, &flow);
        return SK_PASS;
    }
    return take_inbound(ctx, netns, &flow);
}
