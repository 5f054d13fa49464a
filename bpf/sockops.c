/* The life of a TCP connection, told by the kernel: listen, SYN, accepted, closed.
 *
 * A SYN is about to leave (CONNECT): the last moment at which a connection can be refused without a packet, and the
 * first at which its local port is known. What the other end needs is written here: the original destination of a
 * captured connection, the bypass entry of one that sk_lookup must let through. This is one callback before
 * ACTIVE_ESTABLISHED, because then the entry is there before the proxy can accept, with TCP fast open too, a full map
 * refuses in connect(), and sk_lookup can tell a captured connection from one that dials 15001 itself. Accepted
 * (PASSIVE_ESTABLISHED): the entry has done its work and goes. Closed (STATE): whatever is left of it goes with the
 * socket that made it.
 */
#include "excluded.h"
#include "report.h"

#define SOL_SOCKET_ 1
#define SO_BINDTOIFINDEX_ 62
#define NO_DEVICE 0x7fffffff
#define STATE_CLOSE 7 /* TCP_CLOSE */

static inline void local_of(struct bpf_sock_ops *ops, struct endpoint *local) {
    if (ops->family == 2) {
        set_ip4(&local->address, ops->local_ip4);
        FENCE();
    } else {
        local->address.words[0] = ops->local_ip6[0];
        FENCE();
        local->address.words[1] = ops->local_ip6[1];
        FENCE();
        local->address.words[2] = ops->local_ip6[2];
        FENCE();
        local->address.words[3] = ops->local_ip6[3];
        FENCE();
    }
    local->port = ops->local_port;
    FENCE();
}

static inline void remote_of(struct bpf_sock_ops *ops, struct endpoint *remote) {
    if (ops->family == 2) {
        set_ip4(&remote->address, ops->remote_ip4);
        FENCE();
    } else {
        remote->address.words[0] = ops->remote_ip6[0];
        FENCE();
        remote->address.words[1] = ops->remote_ip6[1];
        FENCE();
        remote->address.words[2] = ops->remote_ip6[2];
        FENCE();
        remote->address.words[3] = ops->remote_ip6[3];
        FENCE();
    }
    remote->port = bpf_ntohl(ops->remote_port);
    FENCE();
}

/* sockops cannot refuse. A socket bound to a device that does not exist can be routed nowhere: connect() fails with
 * EHOSTUNREACH before the SYN. */
static inline void refuse_syn(struct bpf_sock_ops *ops, u32 reason, struct tag *tag, u64 netns,
                              const struct flow *flow) {
    int nowhere = NO_DEVICE;
    bpf_setsockopt(ops, SOL_SOCKET_, SO_BINDTOIFINDEX_, &nowhere, sizeof(nowhere));
    report(reason, netns, tag ? tag->cgroup : 0, flow);
}

/* A pod that was withdrawn and enrolled again starts at zero, while connections from before may still end. */
static inline void give_back(u64 *counter) {
    if (*counter)
        __sync_fetch_and_add(counter, -1);
}

static inline struct usage *add_live(struct tag *tag, const struct endpoint *local) {
    struct usage *pod = usage.lookup(&tag->netns);
    if (!pod)
        return 0;
    if (is_ip4(&local->address)) {
        __sync_fetch_and_add(&pod->live4, 1);
        tag->traces |= TRACE_LIVE4;
    } else {
        __sync_fetch_and_add(&pod->live6, 1);
        tag->traces |= TRACE_LIVE6;
    }
    return pod;
}

/* A captured connection: leave the original destination where the accepted socket will find it. */
static inline void send_captured(struct bpf_sock_ops *ops, struct tag *tag, struct flow *flow) {
    struct local_key key = {.netns = tag->netns};
    struct origin origin = {.client = bpf_get_socket_cookie(ops), .cgroup = tag->cgroup};
    key.local = flow->source;
    origin.destination = tag->destination;
    bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
    struct usage *pod = add_live(tag, &flow->source);
    if (!pod || pod->handshakes >= POD_HANDSHAKES || origins.update(&key, &origin)) {
        flow->destination = tag->destination;
        refuse_syn(ops, REASON_FULL, tag, tag->netns, flow);
        return;
    }
    __sync_fetch_and_add(&pod->handshakes, 1);
    tag->traces |= TRACE_ORIGIN;
}

/* A connection that sk_lookup must leave to the app's own listener. */
static inline int send_past_proxy(struct bpf_sock_ops *ops, struct tag *tag, u64 netns, struct flow *flow) {
    u64 cookie = bpf_get_socket_cookie(ops);
    bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
    if (bypass.update(flow, &cookie)) {
        refuse_syn(ops, REASON_BYPASS_FULL, tag, netns, flow);
        return 0;
    }
    return 1;
}

static inline void on_connect(struct bpf_sock_ops *ops, struct bpf_sock *sk, u64 netns) {
    struct flow flow = {};
    local_of(ops, &flow.source);
    remote_of(ops, &flow.destination);
    struct tag *tag = sockets.sk_storage_get(sk, 0, 0);
    u32 role = tag ? tag->role : 0;
    struct pod *pod = pods.lookup(&netns);
    if (!pod) {
        if (tag && role == ROLE_HOST && addresses.lookup(&flow.destination.address) &&
            send_past_proxy(ops, tag, netns, &flow))
            report(REASON_HOST, netns, tag->cgroup, &flow);
        return;
    }
    if (tag && role == ROLE_CLIENT) {
        send_captured(ops, tag, &flow);
        return;
    }
    if (is_owned(&flow.destination.address, netns)) {
        /* With a foreign source address only the proxy may: it speaks for a client that it has checked. */
        if (role != ROLE_PROXY && !is_owned(&flow.source.address, netns))
            return;
        if (send_past_proxy(ops, tag, netns, &flow))
            count(role == ROLE_PROXY ? REASON_DELIVERED : REASON_OWN);
        return;
    }
    if (is_left_alone(&flow.destination.address)) {
        /* Link-local addresses are not registered: one that talks to itself is the pod's own. */
        if (is_link_local(&flow.destination.address) && is_same(&flow.source.address, &flow.destination.address))
            send_past_proxy(ops, tag, netns, &flow);
        return;
    }
    if (role == ROLE_PROXY || !(pod->flags & POD_CAPTURE))
        return;
    if (is_outbound_excluded(netns, &flow.destination))
        report(REASON_EXCLUDED, netns, 0, &flow);
    else
        refuse_syn(ops, REASON_ESCAPE, tag, netns, &flow);
}

/* From its SYN on nothing is asked of a socket that the proxy dialled: 320 bytes of each connection to an app. */
static inline void forget_proxy(struct bpf_sock *sk) {
    struct tag *tag = sockets.sk_storage_get(sk, 0, 0);
    if (tag && tag->role == ROLE_PROXY)
        sockets.sk_storage_delete(sk);
}

/* The proxy's end of a captured connection takes over the original destination. */
static inline void accept_captured(struct bpf_sock_ops *ops, struct bpf_sock *sk, u64 netns, struct flow *flow) {
    struct local_key key = {.netns = netns};
    key.local = flow->source;
    struct origin *origin = origins.lookup(&key);
    if (!origin) {
        report(REASON_NO_ORIGIN, netns, 0, flow);
        return;
    }
    struct tag *tag = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (tag) {
        tag->role = ROLE_ACCEPTED;
        tag->netns = netns;
        tag->cgroup = origin->cgroup;
        tag->destination = origin->destination;
    } else {
        flow->destination = origin->destination;
        report(REASON_NO_ORIGIN, netns, origin->cgroup, flow);
    }
    struct usage *pod = usage.lookup(&netns);
    if (!origins.delete(&key) && pod)
        give_back(&pod->handshakes);
}

static inline void on_accepted(struct bpf_sock_ops *ops, struct bpf_sock *sk, u64 netns) {
    if (!pods.lookup(&netns))
        return;
    struct flow flow = {};
    remote_of(ops, &flow.source);
    local_of(ops, &flow.destination);
    if (flow.destination.port == PORT_OUTBOUND)
        accept_captured(ops, sk, netns, &flow);
    else
        bypass.delete(&flow);
}

static inline void on_close(struct bpf_sock_ops *ops, struct bpf_sock *sk, u64 netns) {
    struct flow flow = {};
    local_of(ops, &flow.source);
    remote_of(ops, &flow.destination);
    u64 cookie = bpf_get_socket_cookie(ops);
    u64 *dialler = bypass.lookup(&flow);
    if (dialler && *dialler == cookie)
        bypass.delete(&flow);
    struct tag *tag = sockets.sk_storage_get(sk, 0, 0);
    if (!tag || tag->role != ROLE_CLIENT)
        return;
    struct usage *pod = usage.lookup(&tag->netns);
    struct local_key key = {.netns = tag->netns};
    key.local = flow.source;
    struct origin *origin = tag->traces & TRACE_ORIGIN ? origins.lookup(&key) : 0;
    if (origin && origin->client == cookie && !origins.delete(&key) && pod)
        give_back(&pod->handshakes);
    if (pod && tag->traces & TRACE_LIVE4)
        give_back(&pod->live4);
    if (pod && tag->traces & TRACE_LIVE6)
        give_back(&pod->live6);
    tag->traces = 0;
}

static inline void on_listen(struct bpf_sock_ops *ops, struct bpf_sock *sk, u64 netns) {
    u32 port = ops->local_port;
    FENCE();
    if (port != PORT_OUTBOUND && port != PORT_INBOUND && port != PORT_HBONE)
        return;
    struct tag *tag = sockets.sk_storage_get(sk, 0, 0);
    if (!tag || tag->role != ROLE_PROXY || !pods.lookup(&netns))
        return;
    struct listener_key key = {.netns = netns, .port = port};
    int error = listeners.sock_hash_update(ops, &key, BPF_ANY); /* bcc rewrites whole statements here */
    if (!error)
        count(REASON_LISTENING);
}

int weft_sockops(struct bpf_sock_ops *ops) {
    u32 op = ops->op;
    if (op != BPF_SOCK_OPS_TCP_LISTEN_CB && op != BPF_SOCK_OPS_TCP_CONNECT_CB &&
        op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB)
        return 0;
    struct bpf_sock *sk = ops->sk;
    if (!sk || (ops->family != 2 && ops->family != 10))
        return 0;
    u64 netns = bpf_get_netns_cookie(ops);
    if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
        on_connect(ops, sk, netns);
        forget_proxy(sk);
    } else if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
        on_accepted(ops, sk, netns);
    else if (op == BPF_SOCK_OPS_TCP_LISTEN_CB)
        on_listen(ops, sk, netns);
    else if (ops->args[1] == STATE_CLOSE)
        on_close(ops, sk, netns);
    return 0;
}
