"""Which networks a mesh has, who is on which, the ways between them, and what its waypoints are for. Pure.

Filled in as istiod does. Beyond it, a node's label says on which network its pods are: one control plane may serve nodes of
several networks, whose services have one address in all of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from mesh.domains import CLUSTER_DOMAIN
from mesh.manifests import (
    EAST_WEST,
    NETWORK,
    REMOTE,
    WAYPOINT_PORT,
    Endpoint,
    Gateway,
    Namespace,
    Object,
    Pod,
    Service,
    ServiceEntry,
    WorkloadEntry,
    named_networks,
    second_wish,
    waypoint_wish,
)
from mesh.workload import ApplicationTunnel, GatewayAddress, NamespacedHostname, NetworkAddress

_GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class NetworkGateway:
    """A way into a network."""

    title: str
    """Of the object that says so."""
    namespace: str
    service_account: str
    network: str
    address: str
    """An IP address, or a hostname."""
    is_hostname: bool
    port: int

    @property
    def uid(self) -> str:
        """Its resource name."""
        return f"NetworkGateway/{self.network}/{self.address}/{self.port}"

    @property
    def where(self) -> GatewayAddress:
        """How a workload of its network names it."""
        if self.is_hostname:
            return GatewayAddress(NamespacedHostname(self.namespace, self.address), self.port)
        return GatewayAddress(NetworkAddress(self.network, ip_address(self.address)), self.port)


@dataclass(frozen=True, slots=True)
class Topology:
    """The networks of one mesh. Two are equal where they mean the same."""

    root: str = ""
    """The network of everything that says none."""
    networks: tuple[str, ...] = ("",)
    """All that something is on."""
    gateways: tuple[NetworkGateway, ...] = ()
    nodes: Mapping[str, str] = field(default_factory=dict)
    """The networks of nodes that name theirs."""
    tunnels: Mapping[Key, ApplicationTunnel] = field(default_factory=dict)
    """By the gateway whose pods want them."""
    purposes: Mapping[Key, str] = field(default_factory=dict)
    """Whom waypoints are for, by gateway."""
    waypoints: frozenset[Key] = frozenset()
    """The Services that tunnels can be dialled to."""
    wishes: frozenset[Key] = frozenset()
    """The waypoints that anybody asks for, there or not."""
    domain: str = CLUSTER_DOMAIN
    """The cluster's in DNS."""

    def network_of(self, pod: Pod, node: str) -> str:
        """Where a pod is: by its own label, its node's, the root namespace's."""
        return pod.labels.get(NETWORK) or self.nodes.get(node) or self.root

    def gateway_to(self, network: str) -> GatewayAddress | None:
        """The way into a network; None where there is none."""
        return next((one.where for one in self.gateways if one.network == network), None)

    def tunnel_of(self, namespace: str, labels: Mapping[str, str]) -> ApplicationTunnel | None:
        """How the pods of a waypoint want connections; None for all others."""
        return self.tunnels.get((namespace, labels.get(_GATEWAY_NAME, "")))


def topology(objects: Iterable[Object], pods: Iterable[Pod], root_namespace: str, domain: str) -> Topology:
    """Put together what a whole set of objects says."""
    known, pods = list(objects), list(pods)
    root, nodes = named_networks(known, root_namespace)
    gateways = sorted((one for one in known if isinstance(one, Gateway)), key=lambda one: (one.namespace, one.name))
    networks = {root, *nodes.values(), *(pod.labels.get(NETWORK) or root for pod in pods)}
    networks.update(endpoint.network or root for one in known for endpoint in _endpoints(one))
    tunnels = {(one.namespace, one.name): tunnel for one in gateways if (tunnel := one.application_tunnel) is not None}
    purposes = {(one.namespace, one.name): one.purpose for one in gateways}
    ways = tuple(way for one in gateways for way in _ways(one))
    waypoints = frozenset((one.namespace, one.name) for one in known if is_waypoint(one))
    wishes = frozenset(wish for one in (*known, *pods) for wish in _wishes(one))
    return Topology(root, tuple(sorted(networks)), ways, nodes, tunnels, purposes, waypoints, wishes, domain)


def _wishes(one: Object) -> Iterator[Key]:
    namespace = one.name if isinstance(one, Namespace) else one.namespace
    for labels in (one.labels, *(endpoint.labels for endpoint in _endpoints(one))):
        for wish in (waypoint_wish(namespace, labels), second_wish(namespace, labels)):
            if wish is not None:
                yield wish


def is_waypoint(one: Object) -> bool:
    """Whether it is a Service that tunnels can be dialled to."""
    return isinstance(one, Service) and any(port.port == WAYPOINT_PORT for port in one.ports)


def speaks_of_waypoints(one: Object | None) -> bool:
    """Whether it is a Service that is one, or asks for one."""
    return isinstance(one, Service) and (is_waypoint(one) or next(_wishes(one), None) is not None)


def _endpoints(one: Object) -> Iterable[Endpoint]:
    if isinstance(one, ServiceEntry):
        return one.endpoints
    return (one.endpoint,) if isinstance(one, WorkloadEntry) else ()


def _ways(gateway: Gateway) -> Iterable[NetworkGateway]:
    if gateway.class_name not in (REMOTE, EAST_WEST) or not gateway.network or not gateway.hbone_port:
        return
    for kind, address in gateway.addresses:
        yield NetworkGateway(
            gateway.title,
            gateway.namespace,
            gateway.service_account,
            gateway.network,
            address,
            kind == "Hostname",
            gateway.hbone_port,
        )
