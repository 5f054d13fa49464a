"""A workload or a service of a local configuration."""

from collections.abc import Iterator
from ipaddress import ip_address

from mesh.domains import TRUST_DOMAIN
from mesh.local_mesh.values import finish, gateway, network_address, network_of, parsed, pick, ports
from mesh.manifests.cursor import Cursor
from mesh.workload import (
    ApplicationTunnel,
    BalancingMode,
    IPFamilies,
    Locality,
    NetworkAddress,
    NetworkMode,
    Scope,
    Service,
    TunnelProtocol,
    WeightedWaypoint,
    Workload,
)

_PROTOCOLS = {one.value: one for one in TunnelProtocol}
_NETWORK_MODES = {one.value: one for one in NetworkMode}
_MODES = {one.name.capitalize(): one for one in BalancingMode if one} | {"Standard": BalancingMode.UNSPECIFIED}
_SCOPES = {one.name.capitalize(): one for one in Scope}
_FAMILIES = {"": IPFamilies.AUTOMATIC, "IPv4": IPFamilies.IPV4_ONLY, "IPv6": IPFamilies.IPV6_ONLY, "Dual": IPFamilies.DUAL}
_HEALTH = {"Healthy": True, "Unhealthy": False}
_TYPES = ("deployment", "cronjob", "pod", "job")


def read_workload(cursor: Cursor) -> Workload:
    """Read a workload; without a `uid` it is the pod of its name."""
    name, namespace = cursor.text("name", required=True), cursor.text("namespace", required=True)
    cluster = cursor.text("clusterId", "Kubernetes")
    workload = Workload(
        uid=cursor.text("uid", f"{cluster}//Pod/{namespace}/{name}"),
        name=name,
        namespace=namespace,
        addresses=parsed(cursor, "workloadIps", ip_address),
        network=cursor.text("network"),
        protocol=pick(cursor, "protocol", _PROTOCOLS, "TCP"),
        trust_domain=cursor.text("trustDomain", TRUST_DOMAIN),
        service_account=cursor.text("serviceAccount", "default"),
        waypoint=gateway(cursor.child("waypoint")),
        network_gateway=gateway(cursor.child("networkGateway")),
        node=cursor.text("node"),
        canonical_name=cursor.text("canonicalName"),
        canonical_revision=cursor.text("canonicalRevision"),
        workload_type=cursor.choice("workloadType", _TYPES, "pod"),
        workload_name=cursor.text("workloadName"),
        native_tunnel=cursor.flag("nativeTunnel"),
        authorization_policies=cursor.texts("authorizationPolicies"),
        healthy=pick(cursor, "status", _HEALTH, "Healthy"),
        cluster_id=cluster,
        hostname=cursor.text("hostname"),
        services=_services(cursor),
        application_tunnel=_application_tunnel(cursor.child("applicationTunnel")),
        locality=_locality(cursor.child("locality")),
        network_mode=pick(cursor, "networkMode", _NETWORK_MODES, "Standard"),
        capacity=cursor.number("capacity", 0, 2**32 - 1, 1),
        policy_sources=cursor.text_map("policySources"),
    )
    finish(cursor, f"workload {namespace}/{name}")
    return workload


def _services(cursor: Cursor) -> dict[str, dict[int, int]]:
    served = {}
    for key, one in cursor.keyed_children("services").items():
        if "/" not in key:
            cursor.refuse(f"services[{key}]", "no service: write NAMESPACE/HOSTNAME")
        served[key] = ports(one)
    return served


def _application_tunnel(cursor: Cursor | None) -> ApplicationTunnel | None:
    if cursor is None:
        return None
    tunnel = ApplicationTunnel(
        pick(cursor, "protocol", {"NONE": False, "PROXY": True}, "NONE"), cursor.number("port", 0, 65535)
    )
    finish(cursor, "an application tunnel")
    return tunnel


def _locality(cursor: Cursor | None) -> Locality:
    if cursor is None:
        return Locality()
    locality = Locality(cursor.text("region"), cursor.text("zone"), cursor.text("subzone"))
    finish(cursor, "a locality")
    return locality


def read_service(cursor: Cursor) -> Service:
    """Read a service; its `endpoints` are the workloads that say so themselves."""
    name, namespace = cursor.text("name", required=True), cursor.text("namespace", required=True)
    balancer = cursor.child("loadBalancer")
    service = Service(
        name=name,
        namespace=namespace,
        hostname=cursor.text("hostname", required=True),
        vips=(*parsed(cursor, "vips", network_address), *_cidrs(cursor)),
        ports=ports(cursor.child("ports")),
        subject_alt_names=cursor.texts("subjectAltNames"),
        waypoint=gateway(cursor.child("waypoint")),
        weighted_waypoints=tuple(_weighted(cursor)),
        preferences=_preferences(balancer),
        mode=pick(balancer, "mode", _MODES, "Standard") if balancer else BalancingMode.UNSPECIFIED,
        allow_unhealthy=pick(balancer, "healthPolicy", {"OnlyHealthy": False, "AllowAll": True}, "OnlyHealthy")
        if balancer
        else False,
        ip_families=pick(cursor, "ipFamilies", _FAMILIES, ""),
        canonical=cursor.flag("canonical"),
        shown_to=cursor.texts("shownTo"),
        by_client_address=pick(cursor, "sessionAffinity", {"": False, "ClientIP": True}, ""),
        namespace_only=pick(cursor, "visibility", {"Public": False, "Namespace": True}, "Public"),
    )
    cursor.child("endpoints")
    if balancer is not None:
        finish(balancer, "a load balancer")
    finish(cursor, f"service {service.key}")
    return service


def _preferences(balancer: Cursor | None) -> tuple[Scope, ...]:
    return parsed(balancer, "routingPreferences", _scope) if balancer is not None else ()


def _scope(text: str) -> Scope:
    if text not in _SCOPES:
        raise ValueError(f"{text!r} is none of {', '.join(_SCOPES)}")
    return _SCOPES[text]


def _cidrs(cursor: Cursor) -> Iterator[NetworkAddress]:
    for one in cursor.children("cidrVips"):
        text, network = one.text("cidr", "0.0.0.0/0", check=network_of, required=True), one.text("network")
        finish(one, "a range")
        covered = network_of(text)
        exact = covered.prefixlen == covered.max_prefixlen
        yield NetworkAddress(network, ip_address(text.partition("/")[0]), None if exact else covered.prefixlen)


def _weighted(cursor: Cursor) -> Iterator[WeightedWaypoint]:
    for one in cursor.children("weightedWaypoints"):
        found, weight = gateway(one.child("destination")), one.number("weight", 0, 2**32 - 1, required=True)
        if found is None:
            one.refuse("destination", "required")
        else:
            yield WeightedWaypoint(found, weight)
        finish(one, "a weighted waypoint")
