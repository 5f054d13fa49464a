"""A Kubernetes Service as a service of the mesh, and the ports by which others serve it. Pure; filled in as istiod does."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from control.topology import Topology
from control.vips import Claim
from mesh import workload as nouns
from mesh.manifests import (
    WAYPOINT_PORT,
    Endpoint,
    Namespace,
    Pod,
    Problem,
    Service,
    ServiceEntry,
    ServicePort,
    canary_wish,
    spoken_wish,
)
from mesh.workload import (
    Address,
    AppProtocol,
    BalancingMode,
    GatewayAddress,
    IPFamilies,
    NamespacedHostname,
    Network,
    NetworkAddress,
    Scope,
    WeightedWaypoint,
)

AnyService = Service | ServiceEntry
_VERSIONS = {"IPv4": 4, "IPv6": 6}
_FAMILIES: dict[tuple[int, ...], IPFamilies] = {(4,): IPFamilies.IPV4_ONLY, (6,): IPFamilies.IPV6_ONLY}
_DISTRIBUTION = "networking.istio.io/traffic-distribution"
"""An annotation of services and namespaces; a service's own field wins."""
_DISTRIBUTIONS = {
    "PreferClose": (Scope.NETWORK, Scope.REGION, Scope.ZONE),
    "PreferSameZone": (Scope.NETWORK, Scope.REGION, Scope.ZONE),
    "PreferSameNode": (Scope.NETWORK, Scope.REGION, Scope.ZONE, Scope.SUBZONE, Scope.NODE),
}
_INGRESS = "istio.io/ingress-use-waypoint"
"""A label of services and namespaces; a service's own wins."""
_PROTOCOLS = {
    "http": AppProtocol.HTTP11,
    "kubernetes.io/ws": AppProtocol.HTTP11,
    "http2": AppProtocol.HTTP2,
    "kubernetes.io/h2c": AppProtocol.HTTP2,
    "grpc": AppProtocol.GRPC,
    "tcp": AppProtocol.TCP,
    "tls": AppProtocol.TLS,
    "https": AppProtocol.TLS,
    "kubernetes.io/wss": AppProtocol.TLS,
}


def hostname_of(namespace: str, name: str, domain: str) -> str:
    """The name by which clients know a service of a cluster that has a domain in DNS."""
    return f"{name}.{namespace}.svc.{domain}"


def keys_of(service: AnyService, domain: str) -> tuple[str, ...]:
    """Its resource names: one for each name by which clients know it."""
    hosts = service.hosts if isinstance(service, ServiceEntry) else (hostname_of(service.namespace, service.name, domain),)
    return tuple(f"{service.namespace}/{host}" for host in hosts)


def versions_of(service: Service, ranges: Sequence[Network]) -> tuple[int, ...]:
    """The IP versions that a service uses, the preferred one first: one unless its author asks for two, as in Kubernetes."""
    offered = list(dict.fromkeys(one.version for one in ranges))
    asked = [_VERSIONS[family] for family in service.ip_families] or [one.version for one in service.cluster_ips]
    if service.ip_family_policy == "SingleStack":
        return tuple((asked or offered)[:1])
    if service.ip_family_policy == "RequireDualStack":
        return tuple(dict.fromkeys([*asked, *offered, 4, 6]))[:2]
    if service.ip_family_policy == "PreferDualStack":
        return tuple(dict.fromkeys([*asked, *offered]))[:2]
    return tuple(asked or offered[:1])


def claim_of(service: Service, ranges: Sequence[Network]) -> Claim | None:
    """What addresses a service asks for; None where it wants none."""
    if service.headless:
        return None
    versions = versions_of(service, ranges)
    wanted = tuple(address for address in service.cluster_ips if address.version in versions)
    return Claim(f"{service.namespace}/{service.name}", versions, wanted)


def left_out(service: Service, ranges: Sequence[Network]) -> Iterator[Problem]:
    """Warnings about addresses that a service names, and has no use for by what else it says."""
    versions = versions_of(service, ranges)
    for address in service.cluster_ips:
        if address.version not in versions:
            reason = f"{address} is left out: by ipFamilies and ipFamilyPolicy it uses no IPv{address.version}"
            yield Problem("", 0, service.title, "spec.clusterIPs", reason, True)


def waypoint_of(namespace: str, topology: Topology, *labels: Mapping[str, str]) -> GatewayAddress | None:
    """The waypoint of services that the first labels which speak of one ask for; None where they ask for none.

    Whether there is such a waypoint is not asked: who wants one must not be reached past it. One whose Gateway says that it is
    for others is none.
    """
    wish = spoken_wish(namespace, *labels)
    if wish is None or topology.purposes.get(wish, "service") not in ("service", "all"):
        return None
    return waypoint_named(wish, topology.domain)


def waypoint_named(wish: tuple[str, str], domain: str) -> GatewayAddress:
    """Where a waypoint is, by namespace and name."""
    return GatewayAddress(NamespacedHostname(wish[0], hostname_of(*wish, domain)), WAYPOINT_PORT)


def shares(
    service: AnyService, owner: Namespace | None, first: GatewayAddress, topology: Topology
) -> tuple[WeightedWaypoint, ...]:
    """What a service's two waypoints get each; empty where it has one. A wrong wish for a second one is none, and so is one for
    a waypoint that is not there: it goes through the first one, as all of it would without the wish.
    """
    try:
        wish = canary_wish(service, owner)
    except ValueError:
        return ()
    second = waypoint_named(wish[0], topology.domain) if wish is not None else first
    if wish is None or second == first or wish[0] not in topology.waypoints:
        return ()
    return WeightedWaypoint(first, 100 - wish[1]), WeightedWaypoint(second, wish[1])


def mesh_service(
    service: Service,
    addresses: Iterable[Address],
    ranges: Sequence[Network],
    owner: Namespace | None,
    topology: Topology,
    identities: Iterable[str] = (),
) -> nouns.Service:
    """The service as proxies know it. A waypoint has none in front of itself, whatever its namespace wants.

    `identities`: of those who answer for it, where some are reached through a gateway.
    """
    labels = owner.labels if owner is not None else {}
    waypoint = waypoint_of(service.namespace, topology, service.labels, labels)
    own = NamespacedHostname(service.namespace, hostname_of(service.namespace, service.name, topology.domain))
    if waypoint is not None and waypoint.destination == own:
        waypoint = None
    mode, preferences = _balancing(service, owner)
    return nouns.Service(
        name=service.name,
        namespace=service.namespace,
        hostname=own.hostname,
        # On the nameless network too: a proxy that has not heard of a name yet must not take its services for strangers.
        vips=tuple(NetworkAddress(one, address) for one in dict.fromkeys(("", *topology.networks)) for address in addresses),
        ports={port.port: port.target if isinstance(port.target, int) else 0 for port in _dialled(service)},
        subject_alt_names=tuple(sorted(identities)),
        waypoint=waypoint,
        weighted_waypoints=shares(service, owner, waypoint, topology) if waypoint is not None else (),
        preferences=preferences,
        mode=mode,
        allow_unhealthy=service.publish_not_ready,
        ip_families=_FAMILIES.get(versions_of(service, ranges), IPFamilies.DUAL),
        canonical=True,
        by_client_address=service.by_client_address,
        app_protocols=protocols_of(service),
        ingress_use_waypoint=waypoint is not None and ingress_wish((service.labels, labels)),
    )


def _balancing(service: Service, owner: Namespace | None) -> tuple[BalancingMode, tuple[Scope, ...]]:
    if service.internal_traffic_local:
        return BalancingMode.STRICT, (Scope.NODE,)
    said = service.traffic_distribution
    preferences = _DISTRIBUTIONS.get(said, ()) if said else noted_preferences(service, owner)
    return (BalancingMode.FAILOVER if preferences else BalancingMode.UNSPECIFIED), preferences


def noted_preferences(service: AnyService, owner: Namespace | None) -> tuple[Scope, ...]:
    """Which endpoints an annotation prefers."""
    levels = [service.metadata, *([owner.metadata] if owner is not None else [])]
    noted = next((one.annotations[_DISTRIBUTION] for one in levels if _DISTRIBUTION in one.annotations), "")
    return _DISTRIBUTIONS.get(noted, ())


def ingress_wish(labels: Iterable[Mapping[str, str]]) -> bool:
    """Whether the first labels that speak of it want gateways to go by way of the waypoint too."""
    return next((one[_INGRESS] for one in labels if _INGRESS in one), "").lower() == "true"


def protocols_of(service: AnyService) -> dict[int, AppProtocol]:
    """What its ports say that they speak: by a field, else by the first part of their name."""
    ports = _dialled(service)
    said = {port.port: _PROTOCOLS.get((port.app_protocol or port.name.partition("-")[0]).lower()) for port in ports}
    return {port: protocol for port, protocol in said.items() if protocol is not None}


def _dialled(service: AnyService) -> Iterable[ServicePort]:
    """Its ports, one of each number: where that stands for several protocols the one for TCP, as connections are."""
    found: dict[int, ServicePort] = {}
    for port in service.ports:
        if port.protocol == "TCP" or port.port not in found:
            found[port.port] = port
    return found.values()


def served_by_pod(pod: Pod, services: Iterable[AnyService], domain: str) -> dict[str, dict[int, int]]:
    """By which of its ports a pod serves each port of services; a named port that the pod lacks is left out."""

    def target(_: AnyService, port: ServicePort) -> int | None:
        return port.target if isinstance(port.target, int) else pod.spec.port_named(port.target, port.protocol)

    return _served(services, domain, target)


def served_by_endpoint(endpoint: Endpoint, services: Iterable[AnyService], domain: str) -> dict[str, dict[int, int]]:
    """The same for who is no pod: a Service names its target port, a ServiceEntry's own port is looked up by its name."""

    def target(service: AnyService, port: ServicePort) -> int | None:
        if isinstance(service, ServiceEntry) and port.name in endpoint.ports:
            return endpoint.ports[port.name]
        return port.target if isinstance(port.target, int) else endpoint.ports.get(port.target)

    return _served(services, domain, target)


def _served(
    services: Iterable[AnyService], domain: str, target: Callable[[AnyService, ServicePort], int | None]
) -> dict[str, dict[int, int]]:
    served: dict[str, dict[int, int]] = {}
    for service in services:
        ports = {port.port: found for port in _dialled(service) if (found := target(service, port))}
        served |= dict.fromkeys(keys_of(service, domain), ports)
    return served
