"""Where an outbound connection goes: a pure decision, first match wins.

Rows of section 5.1 of the facts of Istio's ztunnel. What rows 3, 4, 8 and 9 match (a waypoint, another network) is refused
by name until weft carries it, whether it could be resolved or not: a waypoint is never bypassed.
"""

from typing import NamedTuple

from mesh.inventory import Endpoint, Inventory
from mesh.workload import (
    Address,
    BalancingMode,
    GatewayAddress,
    IPFamilies,
    NetworkAddress,
    Service,
    TunnelProtocol,
    Workload,
)
from ztunnel.balance import choose, target_port
from ztunnel.channel import Flag, Protocol
from ztunnel.hbone import HBONE_PORT, RESERVED_PORTS, Authority

_SELF_PORTS = RESERVED_PORTS | {15080}


class Request(NamedTuple):
    """What an application asked for."""

    client: Workload
    source: Address
    destination: Address
    port: int


class Route(NamedTuple):
    """What to dial, and who must answer."""

    protocol: Protocol
    address: Address
    port: int
    """The port to dial: 15008 for HBONE."""
    authority: Authority | None = None
    expected: frozenset[str] = frozenset()
    """SPIFFE ids of which the server must prove one."""
    workload: Workload | None = None
    service: Service | None = None


class Refused(NamedTuple):
    """Why not."""

    reason: str
    flag: Flag = "CONNECT"
    service: Service | None = None
    workload: Workload | None = None


def decide(inventory: Inventory, network: str, request: Request, chance: float) -> Route | Refused:
    """Route one connection. `network` is this proxy's; `chance` is evenly spread over [0, 1)."""
    destination, port, client = request.destination, request.port, request.client
    if destination.is_loopback and port in _SELF_PORTS:
        return Refused(f"self call to {Authority(destination, port)}")
    owner = inventory.workload_by_address(network, destination)
    service = inventory.service_by_vip(network, destination, client.namespace)
    waypoint = _service_waypoint(service) if service is not None and owner is None else None
    if service is not None and waypoint is not None:
        return Refused(_unsupported(waypoint), service=service)
    if client.network != network:  # upstreams are looked up from where the client is
        owner = inventory.workload_by_address(client.network, destination)
        service = inventory.service_by_vip(client.network, destination, client.namespace)
    if service is not None and service.mode is not BalancingMode.PASSTHROUGH:
        endpoint = choose(service, inventory.endpoints(service.key), client, port, chance)
        if endpoint is None:
            return Refused(f"no healthy upstream: {Authority(destination, port)}", service=service)
        return _to_endpoint(request, service, endpoint)
    if owner is None:
        return Route("TCP", destination, port, service=service)
    if owner.waypoint is not None and not _is_waypoint(inventory, request, owner.waypoint):
        return Refused(_unsupported(owner.waypoint), workload=owner)
    return _to_workload(request, service, owner, destination, port)


def _unsupported(gateway: GatewayAddress | str) -> str:
    return f"waypoint not supported yet: {gateway}"


def _service_waypoint(service: Service) -> GatewayAddress | None:
    weighted = [one.destination for one in service.weighted_waypoints if one.weight > 0]
    return weighted[0] if weighted else service.waypoint


def _to_endpoint(request: Request, service: Service, endpoint: Endpoint) -> Route | Refused:
    workload = endpoint.workload
    port = target_port(service, endpoint, request.port)
    if port is None:
        return Refused(f"no healthy upstream: {Authority(request.destination, request.port)}", service=service)
    address = _address_of(workload, service, request.destination)
    if workload.network != request.client.network:
        gateway = workload.network_gateway or f"network {workload.network}"
        return Refused(_unsupported(gateway), service=service, workload=workload)
    if address is None:
        reason = f"no healthy upstream: {workload.name} has no address, only the hostname {workload.hostname}"
        return Refused(reason, service=service, workload=workload)
    return _to_workload(request, service, workload, address, port)


def _to_workload(request: Request, service: Service | None, workload: Workload, address: Address, port: int) -> Route | Refused:
    if workload.network != request.client.network:
        return Refused(_unsupported(workload.network_gateway or f"network {workload.network}"), workload=workload)
    if workload.protocol is not TunnelProtocol.HBONE:
        return Route("TCP", address, port, workload=workload, service=service)
    names = service.subject_alt_names if service else ()
    expected = frozenset((*(name for name in names if name.startswith("spiffe://")), str(workload.identity)))
    return Route("HBONE", address, HBONE_PORT, Authority(address, port), expected, workload, service)


def _address_of(workload: Workload, service: Service, destination: Address) -> Address | None:
    """Of several addresses: the one that was asked for, else of the service's family, else of the caller's, else the first."""
    if destination in workload.addresses:
        return destination
    wanted = {IPFamilies.IPV4_ONLY: 4, IPFamilies.IPV6_ONLY: 6}.get(service.ip_families, destination.version)
    same = [address for address in workload.addresses if address.version == wanted]
    return next(iter(same or workload.addresses), None)


def _is_waypoint(inventory: Inventory, request: Request, waypoint: GatewayAddress) -> bool:
    """Whether the client is the waypoint itself: one of its workloads, by identity and by address."""
    where = waypoint.destination
    candidates: list[Workload] = []
    if isinstance(where, NetworkAddress):
        owner = inventory.workload_by_address(where.network, where.address)
        service = inventory.service_by_vip(where.network, where.address, "")
        candidates += [owner] if owner else []
    else:
        service = inventory.service(str(where))
    if service is not None:
        candidates += [endpoint.workload for endpoint in inventory.endpoints(service.key)]
    return any(one.identity == request.client.identity and request.source in one.addresses for one in candidates)
