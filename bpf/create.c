/* Socket creation: the one moment at which every supported kernel tells both the socket and the cgroup of who makes it.
 * A sockops program of Linux 6.1 cannot ask for a cgroup, so proxies' sockets are tagged here and known by their tag
 * later.
 */
#include "report.h"

#define PROTOCOL_MPTCP 262
#define NO_SUCH_OPTION 92 /* ENOPROTOOPT: what a kernel without MPTCP answers, and what programs fall back from */

int weft_create(struct bpf_sock *sk) {
    if (sk->type != SOCK_STREAM && sk->type != SOCK_DGRAM)
        return 1;
    if (sk->protocol == PROTOCOL_MPTCP) {
        /* Its subflows are captured all right, but getpeername asks the MPTCP socket, which carries no tag. */
        u64 netns = bpf_get_netns_cookie(sk);
        if (!pods.lookup(&netns))
            return 1;
        count(REASON_MPTCP);
        bpf_set_retval(-NO_SUCH_OPTION);
        return 0;
    }
    u64 cgroup = bpf_get_current_cgroup_id();
    if (!proxies.lookup(&cgroup))
        return 1;
    struct tag *tag = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!tag)
        return 0;
    tag->role = ROLE_PROXY;
    tag->cgroup = cgroup;
    return 1;
}
