/* What the programs and the agent share: ports, marks, reasons, and the layout of every map. The Python twin of this
 * file is layout.py; tests/bpf/test_layout.py compares the two, number by number and offset by offset.
 *
 * Addresses are 16 bytes in network byte order, IPv4 as ::ffff:a.b.c.d, so that a socket of either family and a packet
 * of either family meet under one key. Ports are in host byte order. Padding is explicit and zero, because keys are
 * compared byte by byte. Cookies and cgroup ids are the kernel's own numbers.
 */
#ifndef WEFT_REDIRECT_H
#define WEFT_REDIRECT_H

#define PORT_OUTBOUND 15001 /* where the proxy takes what a pod dials */
#define PORT_INBOUND 15006  /* where the proxy takes plain text for a pod */
#define PORT_HBONE 15008    /* where the proxy takes tunnels */
#define PORT_DNS 15053      /* where the proxy answers for names, on the pod's loopback */
#define PORT_NAMESERVER 53

#define MARK_MASK 0xfff
#define MARK_PROXY 0x539   /* every socket of a proxy: a hint for people and rules, never a credential */
#define MARK_DELIVER 0x111 /* proxy to its own pod's app: routed to lo, so that a foreign source address works */

#define ROLE_PROXY 1    /* made by a process in a proxy's cgroup */
#define ROLE_CLIENT 2   /* dialled by a pod and sent to the proxy */
#define ROLE_ACCEPTED 3 /* the proxy's end of such a connection */
#define ROLE_HOST 4     /* dialled by an exempt process of the node itself */
#define ROLE_DNS 5      /* asks a nameserver, and was sent to the proxy's DNS */

#define TRACE_ORIGIN 1 /* in `origins` under this socket's address */
#define TRACE_LIVE4 2  /* counted in `usage` as a captured IPv4 connection */
#define TRACE_LIVE6 4  /* counted in `usage` as a captured IPv6 connection */

#define POD_CAPTURE 1 /* connections are captured; without it the pod only registers listeners */
#define POD_DNS 2     /* what it asks of nameservers is captured too */

#define EXCLUDED_OUTBOUND 1
#define EXCLUDED_INBOUND 2
#define EVERY_PORT 0            /* in `excluded_ports`: whatever port */
#define EXCLUDED_RANGE_BITS 224 /* of a key of `excluded_ranges` behind its length */

#define POD_CAPACITY 1024
#define ADDRESS_CAPACITY 4096
#define PROXY_CAPACITY 16
#define HANDSHAKE_CAPACITY 32768     /* connections of a node between SYN and accepted: `origins` and `bypass` each */
#define POD_HANDSHAKES 4096          /* a pod's share of `origins`: one pod cannot use up what all share */
#define EXCLUDED_PORT_CAPACITY 16384 /* a pod's lists have at most 64 entries each */
#define EXCLUDED_RANGE_CAPACITY 16384
#define EVENT_BYTES 262144
#define EVENTS_PER_SECOND 1000 /* and CPU; the rest is only counted */

/* What is counted; up to REASON_EVENTS each is also an event. */
enum reason {
    REASON_HOST = 0,        /* a process of the node itself reached an enrolled pod past the proxy */
    REASON_NO_LISTENER = 1, /* refused: the pod's proxy does not listen */
    REASON_NO_POD = 2,      /* refused: came in at an address that is not known to be the pod's */
    REASON_DIRECT = 3,      /* refused: dialled 15001 or 15006 itself */
    REASON_NO_ORIGIN = 4,   /* accepted at 15001 without original destination: the proxy must refuse it */
    REASON_FULL = 5,        /* refused: no room for the original destination */
    REASON_BYPASS_FULL = 6, /* refused: no room for a bypass entry */
    REASON_ESCAPE = 7,      /* refused: a connection whose connect() came before enrolment, or passed no hook */
    REASON_NO_ADDRESS = 8,  /* refused: the pod has no address of the family dialled */
    REASON_NO_STORAGE = 9,  /* refused: the socket's storage could not be made */
    REASON_NO_MARK = 10,    /* refused: the proxy's socket could not be marked for delivery */
    REASON_NO_STEER = 11,   /* refused: the kernel would not hand the connection to the proxy's listener */
    REASON_EXCLUDED = 12,   /* let past the proxy: excluded from capture by explicit wish */
    REASON_EVENTS = 13,
    REASON_CAPTURED = 13,       /* outbound connections sent to the proxy */
    REASON_STEERED = 14,        /* inbound connections handed to the proxy */
    REASON_DELIVERED = 15,      /* the proxy's connections to apps */
    REASON_OWN = 16,            /* a pod's connections to its own addresses */
    REASON_LISTENING = 17,      /* listeners registered */
    REASON_MPTCP = 18,          /* MPTCP sockets not made, so that programs fall back to TCP */
    REASON_EVENTS_LOST = 19,    /* the ring buffer was full */
    REASON_EVENTS_LIMITED = 20, /* over EVENTS_PER_SECOND */
    REASON_STRAY = 21,          /* refused: a late packet of a connection inside a pod that is over */
    REASON_DNS = 22,            /* connections and datagrams to nameservers, sent to the proxy's DNS */
    REASONS = 23,
};

struct address {
    __u32 words[4];
};
_Static_assert(sizeof(struct address) == 16, "address");

struct endpoint {
    struct address address;
    __u32 port;
};
_Static_assert(sizeof(struct endpoint) == 20, "endpoint");

/* `settings`, one entry. Zero: not known yet, and nobody is exempt. */
struct settings {
    __u64 node_netns;  /* cookie of the node's own network namespace */
    __u64 pods_cgroup; /* id of the cgroup below which all pods run */
};
_Static_assert(sizeof(struct settings) == 16, "settings");

/* `pods`: netns cookie -> this. An address of zeros: the pod has none of that family. */
struct pod {
    struct address ip4; /* where captured IPv4 connections go */
    struct address ip6; /* where captured IPv6 connections go */
    __u32 flags;        /* POD_ */
    __u32 pad;
    char uid[64]; /* NUL-padded */
};
_Static_assert(sizeof(struct pod) == 104, "pod");

/* `excluded_ports`: this -> 1. */
struct excluded_port {
    __u64 netns;     /* 0: of every pod of the node */
    __u32 port;      /* EVERY_PORT: inbound only */
    __u32 direction; /* EXCLUDED_ */
};
_Static_assert(sizeof(struct excluded_port) == 16, "excluded_port");

/* `excluded_ranges`: this -> 1, the longest prefix that fits. The family stands in the key, so that a short IPv6 prefix
 * takes in no IPv4 address, which is kept as IPv6. */
struct excluded_range {
    __u32 bits;     /* how many of those that follow count */
    __u32 netns[2]; /* low half, high half; 0: of every pod of the node */
    __u32 is_ip4;
    struct address address;
};
_Static_assert(sizeof(struct excluded_range) == 32, "excluded_range");

/* `usage`: netns cookie -> this. */
struct usage {
    __u64 live4; /* captured connections that are open now, IPv4 and IPv6 */
    __u64 live6;
    __u64 handshakes; /* of these, not accepted yet */
};
_Static_assert(sizeof(struct usage) == 24, "usage");

/* `listeners`: this -> the proxy's listener in a pod. */
struct listener_key {
    __u64 netns;
    __u32 port;
    __u32 pad;
};
_Static_assert(sizeof(struct listener_key) == 16, "listener_key");

/* `origins`: this -> original destination, from SYN to accept. */
struct local_key {
    __u64 netns;
    struct endpoint local; /* of the client */
    __u32 pad;
};
_Static_assert(sizeof(struct local_key) == 32, "local_key");

struct origin {
    __u64 client; /* socket cookie, so that only its owner removes an entry */
    __u64 cgroup; /* of the process that dialled */
    struct endpoint destination;
    __u32 pad;
};
_Static_assert(sizeof(struct origin) == 40, "origin");

/* `bypass`: this -> cookie of the socket that dials. From SYN to accept, or until the dialling socket closes. */
struct flow {
    struct endpoint source;
    struct endpoint destination;
};
_Static_assert(sizeof(struct flow) == 40, "flow");

/* `sockets`: what a socket carries. */
struct tag {
    __u64 netns;
    __u64 cgroup;                /* of the process that made or dialled it */
    struct endpoint destination; /* CLIENT, ACCEPTED, DNS: what the app dialled */
    __u32 role;                  /* ROLE_ */
    __u32 traces;                /* TRACE_: what its end must clean up */
    __u32 pad;
};
_Static_assert(sizeof(struct tag) == 48, "tag");

/* `events`: one record. */
struct event {
    __u64 time; /* CLOCK_MONOTONIC, ns */
    __u64 netns;
    __u64 cgroup;
    struct flow flow; /* the client's address (port 0: not bound yet), and what it dialled */
    __u32 reason;
    __u32 pad;
};
_Static_assert(sizeof(struct event) == 72, "event");

/* `budget`, per CPU: events of the current second. */
struct budget {
    __u64 second;
    __u64 spent;
};
_Static_assert(sizeof(struct budget) == 16, "budget");

#endif
