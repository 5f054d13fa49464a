"""`istio.workload.Address`: a workload or a service."""

from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from sys import intern
from types import MappingProxyType
from typing import Any, TypeVar

from google.protobuf.struct_pb2 import ListValue, Value

from mesh.domains import TRUST_DOMAIN
from mesh.proto import extension_pb2 as extension
from mesh.proto import workload_pb2 as wire
from mesh.resources.field import PORT_BITS, parse, pick, read_address, shared_strings
from mesh.workload import (
    ApplicationTunnel,
    AppProtocol,
    BalancingMode,
    GatewayAddress,
    IPFamilies,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    Service,
    TunnelProtocol,
    WeightedWaypoint,
    Workload,
)
from mesh.workload import Scope as Preference

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"

POLICY_SOURCES = "weft.policy-sources"
"""Name of the extension that says which of the user's objects a converted policy comes from."""
SESSION_AFFINITY = "weft.session-affinity"
"""Name of the extension that keeps a client's connections at one endpoint."""
SHOWN_TO = "weft.shown-to"
"""Name of the extension that lists the namespaces which see a service, as a ListValue. Who does not know it shows it to all."""

_WORKLOAD_TYPES = ("deployment", "cronjob", "pod", "job")
_NETWORK_MODES = (NetworkMode.STANDARD, NetworkMode.HOST_NETWORK)
_COMMONS, _COMMON_BYTES = 512, 2048
"""What workloads have in common, of at most so many bytes, that is kept for the next one that says the same."""
_UNSAID: Mapping[int, AppProtocol] = MappingProxyType({})
_E = TypeVar("_E", bound=IntEnum)


def _enum(kind: type[_E], number: int) -> _E:
    try:
        return kind(number)
    except ValueError:
        raise ValueError(f"decode error: unknown enumeration value {number}") from None


def _network_address(message: Any) -> NetworkAddress:
    address = read_address(message.address)
    if not message.HasField("length") or message.length == address.max_prefixlen:
        return NetworkAddress(message.network, address)
    if message.length > address.max_prefixlen:
        raise ValueError("invalid cidr: invalid IP prefix length")
    return NetworkAddress(message.network, address, message.length)


def _gateway(message: Any) -> GatewayAddress:
    kind = message.WhichOneof("destination")
    if kind == "hostname":
        named = NamespacedHostname(message.hostname.namespace, message.hostname.hostname)
        return GatewayAddress(named, message.hbone_mtls_port & PORT_BITS)
    if kind == "address":
        return GatewayAddress(_network_address(message.address), message.hbone_mtls_port & PORT_BITS)
    raise ValueError("nonempty gateway address is missing address")


def _optional_gateway(message: Any, field: str) -> GatewayAddress | None:
    return _gateway(getattr(message, field)) if message.HasField(field) else None


def _protocol(number: int) -> TunnelProtocol:
    if number == wire.LEGACY_ISTIO_MTLS:
        raise ValueError("unknown enum: unsupported tunnel protocol: legacy istio mtls")
    return pick((TunnelProtocol.NONE, TunnelProtocol.HBONE), number)


def _workload_type(number: int) -> str:
    """One that is newer than this is the first, as for Istio's ztunnel: it is a label, and no reason to lose the workload."""
    return _WORKLOAD_TYPES[number if 0 <= number < len(_WORKLOAD_TYPES) else 0]


def _preference(number: int) -> Preference:
    if not number:
        raise ValueError("unknown enum: invalid target")
    return _enum(Preference, number)


def _services(message: Any) -> dict[str, dict[int, int]]:
    for key in message.services:
        if "/" not in key:
            raise ValueError(f"failed to parse namespaced hostname: {key}")
    return _shared_services(
        tuple(
            (key, tuple((port.service_port & PORT_BITS, port.target_port & PORT_BITS) for port in ports.ports))
            for key, ports in message.services.items()
        )
    )


@lru_cache(maxsize=4096)
def _shared_services(services: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]) -> dict[str, dict[int, int]]:
    """One object for all workloads of the same services; nobody changes it."""
    return {intern(key): dict(ports) for key, ports in services}


def _application_tunnel(message: Any) -> ApplicationTunnel | None:
    if not message.HasField("application_tunnel"):
        return None
    tunnel = message.application_tunnel
    return ApplicationTunnel(pick((False, True), tunnel.protocol), tunnel.port & PORT_BITS)


def _extension(message: Any, name: str, content: Any) -> Any:
    """The content of an extension of ours; empty where the message has none."""
    for one in message.extensions:
        if one.name == name and one.config.Is(content.DESCRIPTOR):
            parse(content, one.config.value)
    return content


def _locality(message: Any) -> Locality:
    if not message.HasField("locality"):
        return _NOWHERE
    return _shared_locality(message.locality.region, message.locality.zone, message.locality.subzone)


_NOWHERE = Locality()
_shared_locality = lru_cache(maxsize=1024)(Locality)
_NO_SOURCES: dict[str, str] = {}


def _policy_sources(message: Any) -> dict[str, str]:
    if not message.extensions:
        return _NO_SOURCES
    return dict(_extension(message, POLICY_SOURCES, extension.PolicySources()).objects)


def _workload(message: Any) -> Workload:
    """Pods of one deployment differ in little: what they have in common is read once."""
    uid, name = intern(message.uid), intern(message.name)
    addresses = tuple(map(read_address, message.addresses))
    node, workload_name = intern(message.node), intern(message.workload_name)
    for field in _OWN:
        message.ClearField(field)
    rest = message.SerializeToString()
    common = _shared_common(rest) if len(rest) <= _COMMON_BYTES else _common(rest)
    return Workload(
        uid,
        name,
        common.namespace,
        addresses,
        common.network,
        common.protocol,
        common.trust_domain,
        common.service_account,
        common.waypoint,
        common.network_gateway,
        node,
        common.canonical_name,
        common.canonical_revision,
        common.workload_type,
        workload_name,
        common.native_tunnel,
        common.authorization_policies,
        common.healthy,
        common.cluster_id,
        common.hostname,
        common.services,
        common.application_tunnel,
        common.locality,
        common.network_mode,
        common.capacity,
        common.policy_sources,
    )


_OWN = ("uid", "name", "addresses", "node", "workload_name")
"""Fields in which the pods of one deployment differ."""


def _common(value: bytes) -> Workload:
    """All other fields."""
    message = wire.Workload.FromString(value)
    return Workload(
        uid="",
        name="",
        namespace=intern(message.namespace),
        network=intern(message.network),
        protocol=_protocol(message.tunnel_protocol),
        trust_domain=intern(message.trust_domain or TRUST_DOMAIN),
        service_account=intern(message.service_account or "default"),
        waypoint=_optional_gateway(message, "waypoint"),
        network_gateway=_optional_gateway(message, "network_gateway"),
        canonical_name=intern(message.canonical_name),
        canonical_revision=intern(message.canonical_revision),
        workload_type=_workload_type(message.workload_type),
        native_tunnel=message.native_tunnel,
        authorization_policies=shared_strings(message.authorization_policies),
        healthy=pick((True, False), message.status),
        cluster_id=intern(message.cluster_id or "Kubernetes"),
        hostname=message.hostname,
        services=_services(message),
        application_tunnel=_application_tunnel(message),
        locality=_locality(message),
        network_mode=pick(_NETWORK_MODES, message.network_mode),
        capacity=message.capacity.value if message.HasField("capacity") else 1,
        policy_sources=_policy_sources(message),
    )


_shared_common = lru_cache(maxsize=_COMMONS)(_common)


def _service(message: Any) -> Service:
    balancing = message.load_balancing
    return Service(
        name=message.name,
        namespace=message.namespace,
        hostname=message.hostname,
        vips=tuple(_network_address(address) for address in message.addresses),
        ports={port.service_port & PORT_BITS: port.target_port & PORT_BITS for port in message.ports},
        subject_alt_names=tuple(message.subject_alt_names),
        waypoint=_optional_gateway(message, "waypoint"),
        weighted_waypoints=tuple(WeightedWaypoint(_gateway(one.destination), one.weight) for one in message.weighted_waypoints),
        preferences=tuple(map(_preference, balancing.routing_preference)),
        mode=_enum(BalancingMode, balancing.mode),
        allow_unhealthy=pick((False, True), balancing.health_policy),
        ip_families=_enum(IPFamilies, message.ip_families),
        canonical=message.canonical,
        namespace_only=message.visibility == wire.NAMESPACE,
        shown_to=tuple(one.string_value for one in _extension(message, SHOWN_TO, ListValue()).values),
        by_client_address=_extension(message, SESSION_AFFINITY, extension.SessionAffinity()).client_address,
    )


def decode_address(value: bytes) -> Workload | Service:
    """Read an `istio.workload.Address`.

    Raises: ValueError with the reason, in the words of a ztunnel's NACK.
    """
    message = wire.Address()
    parse(message, value)
    kind = message.WhichOneof("type")
    if kind is None:
        raise ValueError("unknown address type")
    return _workload(message.workload) if kind == "workload" else _service(message.service)


def _put_network_address(message: Any, address: NetworkAddress) -> None:
    message.network = address.network
    message.address = address.address.packed
    if address.prefix is not None:
        message.length = address.prefix


def _put_gateway(message: Any, gateway: GatewayAddress) -> None:
    if isinstance(gateway.destination, NetworkAddress):
        _put_network_address(message.address, gateway.destination)
    else:
        message.hostname.namespace = gateway.destination.namespace
        message.hostname.hostname = gateway.destination.hostname
        message.hostname.SetInParent()
    message.hbone_mtls_port = gateway.hbone_port


def _put_ports(messages: Any, ports: dict[int, int], protocols: Mapping[int, AppProtocol] = _UNSAID) -> None:
    for service_port, target_port in ports.items():
        messages.add(service_port=service_port, target_port=target_port, app_protocol=protocols.get(service_port, 0))


def _put_optional(message: Any, workload: Workload) -> None:
    """Fill in what most workloads do not have."""
    if workload.trust_domain != TRUST_DOMAIN:
        message.trust_domain = workload.trust_domain
    if workload.waypoint:
        _put_gateway(message.waypoint, workload.waypoint)
    if workload.network_gateway:
        _put_gateway(message.network_gateway, workload.network_gateway)
    if workload.application_tunnel:
        message.application_tunnel.protocol = int(workload.application_tunnel.proxy_protocol)
        message.application_tunnel.port = workload.application_tunnel.port
        message.application_tunnel.SetInParent()
    if workload.locality != Locality():
        locality = workload.locality
        message.locality.CopyFrom(wire.Locality(region=locality.region, zone=locality.zone, subzone=locality.subzone))
    if workload.capacity != 1:
        message.capacity.value = workload.capacity
        message.capacity.SetInParent()
    if workload.policy_sources:
        one = message.extensions.add(name=POLICY_SOURCES)
        one.config.Pack(extension.PolicySources(objects=workload.policy_sources), deterministic=True)


def encode_workload(workload: Workload) -> bytes:
    """Write a workload as an `istio.workload.Address`."""
    address = wire.Address()
    message = address.workload
    message.SetInParent()
    message.uid, message.name, message.namespace = workload.uid, workload.name, workload.namespace
    message.addresses.extend(one.packed for one in workload.addresses)
    message.network = workload.network
    message.tunnel_protocol = wire.HBONE if workload.protocol is TunnelProtocol.HBONE else wire.NONE
    message.service_account = workload.service_account
    message.node = workload.node
    message.canonical_name, message.canonical_revision = workload.canonical_name, workload.canonical_revision
    message.workload_type = _WORKLOAD_TYPES.index(workload.workload_type)
    message.workload_name = workload.workload_name
    message.native_tunnel = workload.native_tunnel
    message.authorization_policies.extend(workload.authorization_policies)
    message.status = wire.HEALTHY if workload.healthy else wire.UNHEALTHY
    message.cluster_id = workload.cluster_id
    message.hostname = workload.hostname
    message.network_mode = _NETWORK_MODES.index(workload.network_mode)
    for key, ports in workload.services.items():
        message.services[key].SetInParent()
        _put_ports(message.services[key].ports, ports)
    _put_optional(message, workload)
    return bytes(address.SerializeToString(deterministic=True))


def encode_service(service: Service) -> bytes:
    """Write a service as an `istio.workload.Address`."""
    address = wire.Address()
    message = address.service
    message.SetInParent()
    message.name, message.namespace, message.hostname = service.name, service.namespace, service.hostname
    for vip in service.vips:
        _put_network_address(message.addresses.add(), vip)
    _put_ports(message.ports, service.ports, service.app_protocols)
    message.subject_alt_names.extend(service.subject_alt_names)
    if service.waypoint:
        _put_gateway(message.waypoint, service.waypoint)
    for share in service.weighted_waypoints:
        weighted = message.weighted_waypoints.add(weight=share.weight)
        _put_gateway(weighted.destination, share.destination)
    if service.preferences or service.mode or service.allow_unhealthy:
        message.load_balancing.routing_preference.extend(service.preferences)
        message.load_balancing.mode = service.mode
        message.load_balancing.health_policy = int(service.allow_unhealthy)
    message.ip_families = service.ip_families
    message.canonical = service.canonical
    message.ingress_use_waypoint = service.ingress_use_waypoint
    message.visibility = wire.NAMESPACE if service.namespace_only else wire.PUBLIC
    if service.by_client_address:
        one = message.extensions.add(name=SESSION_AFFINITY)
        one.config.Pack(extension.SessionAffinity(client_address=True), deterministic=True)
    if service.shown_to:
        one = message.extensions.add(name=SHOWN_TO)
        one.config.Pack(ListValue(values=[Value(string_value=name) for name in service.shown_to]), deterministic=True)
    return bytes(address.SerializeToString(deterministic=True))
