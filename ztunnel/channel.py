"""The channel between ztunnel's supervisor and one data worker: the messages on it.

Both ends are weft's own processes of the same privilege (the worker is the supervisor's child and inherits its end of the
socket pair as a numbered descriptor), so messages are pickled values of mesh.* and of ours; a frame (ztunnel.framing)
is a small header and the pickle, with up to MAX_FDS descriptors riding on its first byte (SCM_RIGHTS). The worker never blocks
on the channel: what it cannot send it queues up to a bound, and drops connection events first (counted), never replies.

Order matters and is kept: the supervisor sends inventory and certificates before the pods that need them where it can, and
every AddPod is answered by PodAdded.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from mesh.domains import CLUSTER_DOMAIN
from mesh.identity import Identity
from ztunnel.connection_record import ConnectionRecord, Direction, Flag, IPAddress
from ztunnel.limits import NODE, POD, Limits, Usage
from ztunnel.tuning import Tuning

if TYPE_CHECKING:  # a proxy that starts listens before it knows of these (ztunnel.front)
    from mesh.policy import Policy
    from mesh.workload import Service, Workload
    from ztunnel.query_counts import QueryCounts, QueryLabels

MAX_FDS = 9
MAX_FRAME_BYTES = 64 << 20

OUTBOUND, INBOUND, HBONE = PORTS = (15001, 15006, 15008)
"""On which the proxy listens in a pod: captured on the way out, plain text and tunnels on the way in."""
SOCKS = 15080
"""On the pod's own loopback, for tests, where an operator turned it on."""


# --- supervisor -> worker


class Configure(NamedTuple):
    """First message: who and where this proxy is. Timeouts in seconds."""

    node: str
    network: str
    cluster_id: str
    trust_domain: str
    worker: int
    keep_source_address: bool = True
    enhanced_baggage: bool = True
    """Says in answers who was reached, and believes what requests say of clients that no address tells."""
    localhost_app_tunnel: bool = True
    """An application that wants PROXY headers is dialled at the loopback address."""
    packet_mark: int = 0x539
    tuning: Tuning = Tuning()
    on_demand: bool = False
    """Not everything is told: what is met and not known is to be asked for."""
    resolv_conf: str = "/etc/resolv.conf"
    """Names the nameservers; read again when it changes."""
    tls12: bool = False
    """Speak TLS 1.2 too."""
    cluster_domain: str = CLUSTER_DOMAIN
    preferred_service_namespace: str = ""
    ipv6: bool = True
    node_limits: Limits = NODE
    """This worker's share, as of the next."""
    pod_limits: Limits = POD
    offender_pause_s: float = 0.5
    """At most between two greetings of a source that keeps losing tunnels by its own fault."""
    trust_domain_aliases: frozenset[str] = frozenset()
    search_domains: tuple[str, ...] | None = None
    """What pods' resolvers append; None: Kubernetes' usual ones."""
    socks5: bool = False
    """15080 is the proxy's, too."""
    policies_at_info: bool = False
    """Log what policies decide as information, not only for who debugs."""


class AddPod(NamedTuple):
    """A pod to serve. Descriptors, in this order: its netns, a listener for each of `ports`, the sockets of its DNS."""

    uid: str
    """Kubernetes uid, as in ZDS."""
    namespace: str
    name: str
    service_account: str
    own: bool = False
    """The proxy's own pod: what it reaches sees the proxy's address."""
    ports: tuple[int, ...] = PORTS
    number: int = 0
    """Of this attempt to have it served."""


class RemovePod(NamedTuple):
    """Stop serving a pod: GOAWAY to its peers, close its listeners and connections."""

    uid: str


class UpdateInventory(NamedTuple):
    """Workloads and services that are new or changed, and resource names that are gone."""

    upserts: list["Workload | Service"]
    removals: list[str]
    unfinished: bool = False
    """More of the same state follows: who has not begun to decide by what is known waits for it."""


class UpdatePolicies(NamedTuple):
    """Policies that are new or changed, and keys that are gone; every tracked inbound connection is checked again."""

    upserts: list["Policy"]
    removals: list[str]


class Answered(NamedTuple):
    """The control plane answered these demands, and what it told was sent before: name -> why refused, empty if not."""

    answers: dict[str, str]


@dataclass(frozen=True, slots=True)
class SetCertificate:
    """An identity's current certificate. The key exists only in memory, here as in the worker."""

    identity: Identity
    chain_pem: bytes
    """Leaf first, then intermediates."""
    key_pem: bytes = field(repr=False)
    roots_pem: bytes
    expires_unix_s: float
    federated: tuple[tuple[str, bytes], ...] = ()
    """Other trust domains with their roots, PEM; see `ztunnel.authorities`."""


class CertificateFailed(NamedTuple):
    """No certificate for an identity now; who waits for it fails with this reason."""

    identity: Identity
    reason: str


class ForgetCertificate(NamedTuple):
    """No local workload has this identity any more."""

    identity: Identity


class SetRevoked(NamedTuple):
    """All that revocation lists name, in the place of what was: issuer's name (DER) -> serial numbers (content octets)."""

    revoked: dict[bytes, frozenset[bytes]]


class QueryConnections(NamedTuple):
    """Ask for the open connections; answered by Connections with the same number, one or more."""

    number: int


Place = tuple[str, str, int, int]
"""In a program: function (empty where only the line is known), file, the function's first line, the line."""
Stack = tuple[tuple[Place, ...], int, int]
"""The innermost place first, how often it was seen, and what that took: nanoseconds, or bytes."""
ProfileKind = Literal["cpu", "heap"]


class TakeProfile(NamedTuple):
    """Watch yourself for so long; answered by Profile with the same number."""

    number: int
    kind: ProfileKind
    seconds: int
    frequency: int
    """Samples a second of CPU time."""


class AddDNS(NamedTuple):
    """Further sockets of a pod's DNS, which could not be opened when the pod came. Descriptors: those sockets."""

    uid: str


class SetLogLevels(NamedTuple):
    """Log from these levels on, by scope; the empty name is that of all others. Scopes that are not named are no exceptions."""

    levels: dict[str, int]


class Shutdown(NamedTuple):
    """Close listeners, drain, and end after at most this long."""

    deadline_s: float


# --- worker -> supervisor


class PodAdded(NamedTuple):
    """Answer to AddPod: the listeners are being served, or why not."""

    uid: str
    error: str = ""
    number: int = 0
    """The one of that AddPod: an answer that comes too late is none to the next."""


class NeedCertificate(NamedTuple):
    """A connection waits for this identity's certificate."""

    identity: Identity


class Demand(NamedTuple):
    """Ask the control plane for workloads and services by these names: `NETWORK/ADDRESS`, `NAMESPACE/HOSTNAME`, xDS uid."""

    names: tuple[str, ...]


@dataclass(slots=True)  # as the next but one: frozen ones are made in 2x the time, and these are of each connection
class Opened:
    """A connection was accepted and allowed: bytes can flow."""

    record: ConnectionRecord


class Progress(NamedTuple):
    """Byte counts of a connection that is still open: (number, bytes_sent, bytes_received) each, since its opening."""

    counts: list[tuple[int, int, int]]


@dataclass(slots=True)
class Closed:
    """A connection ended, well, refused or broken: `flag` and `error` say which. It was open before unless refused."""

    record: ConnectionRecord
    was_open: bool
    told: bool = True
    """Whether Opened was sent, where it was open; what opens and closes within one batch travels once."""
    count: int = 1
    """How many it stands for, where it never was: the last of many between the same ends (ztunnel.failures)."""


@dataclass(frozen=True, slots=True)
class EarlyFailure:
    """A connection failed before it could be tracked (handshake, unknown source): the access log's `connection failed`."""

    pod_uid: str
    direction: Direction
    source: tuple[IPAddress, int]
    destination: tuple[IPAddress, int]
    flag: Flag
    error: str
    identity: Identity | None = None
    """The peer's, where it was proved."""
    count: int = 1
    """How many it stands for: the last of many of one peer that failed alike."""


class Offence(NamedTuple):
    """A peer lost a tunnel because it broke the protocol or its budget. Its connections, or an EarlyFailure, tell the story."""

    identity: Identity | None
    """None: it had not proved any."""
    kind: str
    """The error code that it was told, or UNREAD: it did not read what it asked for."""


class Unasked(NamedTuple):
    """On demand: a connection was refused, because who made it has more asked for than its share."""

    identity: Identity | None


class Revocation(NamedTuple):
    """A peer was refused or cut off for its revoked certificate; not `known`: for a chain that could not be looked up."""

    direction: Direction
    known: bool


class Connections(NamedTuple):
    """Answer to QueryConnections, or a part of it."""

    number: int
    records: list[ConnectionRecord]
    unfinished: bool = False
    """More parts will come."""


class Profile(NamedTuple):
    """Answer to TakeProfile."""

    number: int
    stacks: list[Stack]


class WorkerStatus(NamedTuple):
    """Sent every second: sizes that an operator watches, by name (open connections, tunnels, buffered bytes, drops)."""

    gauges: dict[str, int]
    usage: dict[str, Usage]
    """What each pod (by uid) and the node (under "") holds of its limits."""


class DNSCounts(NamedTuple):
    """What was resolved since the last such message; sent every second while there is something to count."""

    on_demand: dict[tuple[str, str], int]
    """(hostname of a workload without address, the xDS uid of whose connection it was) -> lookups."""
    queries: "dict[QueryLabels, QueryCounts]"
    """What pods asked their DNS proxy."""


ToWorker = (
    Configure
    | AddPod
    | RemovePod
    | UpdateInventory
    | UpdatePolicies
    | Answered
    | SetCertificate
    | CertificateFailed
    | ForgetCertificate
    | SetRevoked
    | QueryConnections
    | TakeProfile
    | AddDNS
    | SetLogLevels
    | Shutdown
)
FromWorker = (
    PodAdded
    | NeedCertificate
    | Demand
    | Opened
    | Progress
    | Closed
    | EarlyFailure
    | Offence
    | Unasked
    | Revocation
    | Connections
    | Profile
    | WorkerStatus
    | DNSCounts
)
