"""Workloads and services: what runs where and under which names, as the data plane needs to know it.

Plain values without behaviour of their own; `mesh.resources` reads them from xDS, `mesh.inventory` indexes them.
"""

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from mesh.domains import TRUST_DOMAIN
from mesh.identity import Identity
from mesh.value import value

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class TunnelProtocol(Enum):
    """How a workload's node expects its connections."""

    NONE = "TCP"
    HBONE = "HBONE"


class NetworkMode(Enum):
    """Whether a workload owns its addresses or shares its node's."""

    STANDARD = "Standard"
    HOST_NETWORK = "HostNetwork"


class Scope(IntEnum):
    """What a load-balancing preference compares (numbers are the wire's, whose 0 compares nothing and is refused)."""

    REGION = 1
    ZONE = 2
    SUBZONE = 3
    NODE = 4
    CLUSTER = 5
    NETWORK = 6


class BalancingMode(IntEnum):
    """How strictly preferences bind (numbers are the wire's)."""

    UNSPECIFIED = 0
    STRICT = 1
    FAILOVER = 2
    PASSTHROUGH = 3


class AppProtocol(IntEnum):
    """What a service's port is said to speak (numbers are the wire's)."""

    UNKNOWN = 0
    HTTP11 = 1
    HTTP2 = 2
    GRPC = 3
    TCP = 4
    TLS = 5


class IPFamilies(IntEnum):
    """Which address families a service uses (numbers are the wire's)."""

    AUTOMATIC = 0
    IPV4_ONLY = 1
    IPV6_ONLY = 2
    DUAL = 3


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """An address and the network in which it means something; `prefix` set for a CIDR VIP."""

    network: str
    address: Address
    prefix: int | None = None

    def __str__(self) -> str:
        return f"{self.network}/{self.address}" + (f"/{self.prefix}" if self.prefix is not None else "")


@dataclass(frozen=True, slots=True)
class NamespacedHostname:
    """A service's hostname, with the namespace that owns it."""

    namespace: str
    hostname: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.hostname}"


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where a waypoint or a network gateway is found."""

    destination: NamespacedHostname | NetworkAddress
    hbone_port: int

    def __str__(self) -> str:
        return str(self.destination)


@dataclass(frozen=True, slots=True)
class WeightedWaypoint:
    """One of several waypoints that share a service's traffic."""

    destination: GatewayAddress
    weight: int


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """A workload that wants its connections on one port, optionally with a PROXY v2 header."""

    proxy_protocol: bool
    port: int
    """0: the destination's own port."""


@dataclass(frozen=True, slots=True)
class Locality:
    """Where a workload runs, coarse to fine."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


_identity = lru_cache(maxsize=4096)(Identity)
"""One object for all pods, and all connections, of a service account."""


@value
class Workload:
    """One endpoint of the mesh: usually a pod."""

    uid: str
    """xDS uid, `CLUSTER//Pod/NAMESPACE/NAME`: not the Kubernetes object's uid."""
    name: str
    namespace: str
    addresses: tuple[Address, ...] = ()
    network: str = ""
    protocol: TunnelProtocol = TunnelProtocol.NONE
    trust_domain: str = TRUST_DOMAIN
    service_account: str = "default"
    waypoint: GatewayAddress | None = None
    network_gateway: GatewayAddress | None = None
    node: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_type: str = "pod"
    workload_name: str = ""
    native_tunnel: bool = False
    authorization_policies: tuple[str, ...] = ()
    healthy: bool = True
    cluster_id: str = "Kubernetes"
    hostname: str = ""
    services: dict[str, dict[int, int]] = field(default_factory=dict)
    """`namespace/hostname` -> service port -> this workload's own target port."""
    application_tunnel: ApplicationTunnel | None = None
    locality: Locality = Locality()
    network_mode: NetworkMode = NetworkMode.STANDARD
    capacity: int = 1
    policy_sources: dict[str, str] = field(default_factory=dict)
    """Converted policy `namespace/name` -> the user's object, e.g. `PeerAuthentication demo/default`."""

    @property
    def identity(self) -> Identity:
        """The identity under which this workload's node speaks for it."""
        return _identity(self.trust_domain, self.namespace, self.service_account)

    @property
    def is_pod(self) -> bool:
        """Whether it is told of as a pod: not as an endpoint that an entry, or a slice, names."""
        return "//Pod/" in self.uid


@dataclass(frozen=True, slots=True)
class Service:
    """A name and virtual addresses in front of workloads."""

    name: str
    namespace: str
    hostname: str
    vips: tuple[NetworkAddress, ...] = ()
    """Exact and CIDR addresses."""
    ports: dict[int, int] = field(default_factory=dict)
    """Service port -> target port; 0 means a named port, found per workload."""
    subject_alt_names: tuple[str, ...] = ()
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    preferences: tuple[Scope, ...] = ()
    mode: BalancingMode = BalancingMode.UNSPECIFIED
    allow_unhealthy: bool = False
    ip_families: IPFamilies = IPFamilies.AUTOMATIC
    canonical: bool = False
    namespace_only: bool = False
    """Hidden from other namespaces."""
    shown_to: tuple[str, ...] = ()
    """The namespaces that see it, where that is neither its own alone nor all of them."""
    by_client_address: bool = False
    """Connections from one address go to one endpoint (Kubernetes: sessionAffinity ClientIP)."""
    app_protocols: dict[int, AppProtocol] = field(default_factory=dict)
    """By service port, where one is said. For others to read: no ztunnel has a use for it, and it is not read back."""
    ingress_use_waypoint: bool = False
    """Whether gateways into the mesh are to go by way of its waypoint too. Likewise."""

    @property
    def key(self) -> str:
        """`namespace/hostname`: the resource name, and the key of `Workload.services`."""
        return f"{self.namespace}/{self.hostname}"

    def is_shown_to(self, namespace: str) -> bool:
        """Whether clients of a namespace (empty: not known) see it."""
        if not namespace or not (self.namespace_only or self.shown_to):
            return True
        return namespace == self.namespace if self.namespace_only else namespace in self.shown_to
