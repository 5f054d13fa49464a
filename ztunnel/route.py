"""Where an outbound connection goes: a pure decision, first match wins.

Rows of section 5.1 of the facts of Istio's ztunnel. A waypoint that cannot be found is an error, never a reason to go past it;
that holds where Istio's ztunnel would go past one too: for a service that only the client's own network knows.
"""

from typing import Literal, NamedTuple

from mesh.inventory import Inventory
from mesh.workload import Address, BalancingMode, GatewayAddress, Service, TunnelProtocol, Workload
from ztunnel.balance import NOBODY, sample_waypoint
from ztunnel.channel import Flag, Protocol
from ztunnel.hbone import HBONE_PORT, RESERVED_PORTS, Authority
from ztunnel.upstream import Choice, NoUpstream, Search, Upstream

_SELF_PORTS = RESERVED_PORTS | {15080}
Hop = Literal["", "waypoint"]


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
    """The port to dial: the tunnel's for HBONE."""
    authority: Authority | None = None
    expected: frozenset[str] = frozenset()
    """SPIFFE ids of which the server must prove one."""
    workload: Workload | None = None
    """Who is dialled: the destination, or the hop before it."""
    service: Service | None = None
    """What the client meant."""
    hop: Hop = ""
    """What `workload` is, where it is not the destination."""
    choice: Choice | None = None
    """Who was chosen, where others could have been: to be avoided if it fails."""


class Refused(NamedTuple):
    """Why not."""

    reason: str
    flag: Flag = "CONNECT"
    service: Service | None = None
    workload: Workload | None = None


def decide(
    inventory: Inventory, network: str, request: Request, chance: float, avoid: frozenset[str] = NOBODY
) -> Route | Refused:
    """Route one connection. `network` is this proxy's; `chance` is evenly spread over [0, 1).

    `avoid`: uids of workloads that are not chosen from a service, because they failed; without others there is no route.
    """
    destination, port, client = request.destination, request.port, request.client
    if destination.is_loopback and port in _SELF_PORTS:
        return Refused(f"self call to {Authority(destination, port)}")
    search = Search(inventory, client, destination, chance, avoid)
    try:
        return _route(inventory, network, request, search)
    except NoUpstream as error:
        return Refused(str(error), service=error.service, workload=error.workload)


def _route(inventory: Inventory, network: str, request: Request, search: Search) -> Route:
    destination, port, client = request.destination, request.port, request.client
    owner = inventory.workload_by_address(network, destination)
    service = inventory.service_by_vip(network, destination, client.namespace)
    meant = service if owner is None else None
    if client.network != network:  # upstreams are looked up from where the client is
        owner = inventory.workload_by_address(client.network, destination)
        service = inventory.service_by_vip(client.network, destination, client.namespace)
        meant = meant or (service if owner is None else None)
    if meant is not None:
        waypoint, search.chance = sample_waypoint(meant, search.chance)
        if waypoint is not None:
            upstream = _gateway(search, waypoint, f"service {meant.key}", meant, None)
            return _to_waypoint(request, upstream, meant)
    if service is not None and service.mode is not BalancingMode.PASSTHROUGH:
        upstream = _endpoint(search, service, request)
    elif owner is not None:
        upstream = Upstream(owner, destination, port)
    else:
        return Route("TCP", destination, port, service=service)
    workload = upstream.workload
    if meant is None and workload.waypoint is not None and not _is_waypoint(inventory, request, workload.waypoint):
        upstream = _gateway(search, workload.waypoint, f"workload {workload.name}.{workload.namespace}", None, workload)
        return _to_waypoint(request, upstream, None)
    return _to_workload(request, upstream)


def _endpoint(search: Search, service: Service, request: Request) -> Upstream:
    try:
        return search.endpoint(service, request.port, request.destination)
    except NoUpstream as error:
        reason = f"no healthy upstream: {Authority(request.destination, request.port)}: {error}"
        raise NoUpstream(reason, service) from None


def _gateway(
    search: Search, gateway: GatewayAddress, wanted_by: str, service: Service | None, workload: Workload | None
) -> Upstream:
    try:
        return search.gateway(gateway, "waypoint", wanted_by)
    except NoUpstream as error:
        raise NoUpstream(str(error), service, workload) from None


def _to_waypoint(request: Request, upstream: Upstream, service: Service | None) -> Route:
    address = _dialled(request, upstream, service)
    authority = Authority(request.destination, request.port)  # as the client wrote it: the waypoint routes by it
    return Route(
        "HBONE", address, upstream.port, authority, upstream.expected, upstream.workload, service, "waypoint", upstream.choice
    )


def _to_workload(request: Request, upstream: Upstream) -> Route:
    workload, service, port = upstream.workload, upstream.service, upstream.port
    address = _dialled(request, upstream, service)
    if workload.protocol is not TunnelProtocol.HBONE:
        return Route("TCP", address, port, workload=workload, service=service, choice=upstream.choice)
    authority = Authority(address, port)
    return Route("HBONE", address, HBONE_PORT, authority, upstream.expected, workload, service, choice=upstream.choice)


def _dialled(request: Request, upstream: Upstream, service: Service | None) -> Address:
    workload = upstream.workload
    if workload.network != request.client.network:
        gateway = workload.network_gateway or "none is known"
        reason = f"network gateway not supported yet: {workload.name} is on network {workload.network} (gateway: {gateway})"
        raise NoUpstream(reason, service, workload)
    if upstream.address is None:
        only = f"only the hostname {workload.hostname}" if workload.hostname else "of the service's families"
        reason = f"no healthy upstream: workload {workload.name}.{workload.namespace} has no address, {only}"
        raise NoUpstream(reason, service, workload)
    return upstream.address


def _is_waypoint(inventory: Inventory, request: Request, waypoint: GatewayAddress) -> bool:
    """Whether the client is the waypoint itself: one of its workloads, by identity and by address."""
    found = inventory.referred(waypoint.destination)
    if isinstance(found, Service):
        candidates = [endpoint.workload for endpoint in inventory.endpoints(found.key)]
    else:
        candidates = [found] if found is not None else []
    return any(one.identity == request.client.identity and request.source in one.addresses for one in candidates)
