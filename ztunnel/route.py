"""Where an outbound connection goes: a pure decision, first match wins.

Rows of section 5.1 of the facts of Istio's ztunnel. A waypoint that cannot be found is an error, never a reason to go past it;
that holds where Istio's ztunnel would go past one too: for a service that only the client's own network knows.
"""

from typing import NamedTuple

from mesh.inventory import Inventory
from mesh.workload import Address, BalancingMode, GatewayAddress, Service, TunnelProtocol, Workload
from ztunnel.balance import NOBODY, Role, sample_waypoint
from ztunnel.connection_record import Flag, Hop, Protocol
from ztunnel.hbone import HBONE_PORT, RESERVED_PORTS, Authority
from ztunnel.outliers import Choice
from ztunnel.upstream import NoUpstream, Search, Upstream, parsable

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
    address: Address | None
    """None: of `hostname`, by DNS."""
    port: int
    """The port to dial: the tunnel's where there is one."""
    authority: Authority | None = None
    expected: frozenset[str] = NOBODY
    """SPIFFE ids of which the server must prove one."""
    workload: Workload | None = None
    """Who is dialled: the destination, or the hop before it."""
    service: Service | None = None
    """What the client meant."""
    hop: Hop = ""
    """What `workload` is, where it is not the destination."""
    choice: Choice | None = None
    """Who was chosen, where others could have been: to be avoided if it fails."""
    inner_expected: frozenset[str] = NOBODY
    """Of a tunnel in a tunnel: who must answer behind the gateway."""
    hostname: str = ""
    certain: bool = False
    """Chance had no say: whoever asks the same, of the same mesh, goes there."""

    def resolved(self, address: Address) -> "Route | Refused":
        """The same, to an address that the hostname turned out to have."""
        if address.is_loopback and (self.port in _SELF_PORTS or self.protocol != "TCP"):
            return Refused(
                f"self call to {Authority(address, self.port)}: {self.hostname} is this pod itself",
                service=self.service,
                workload=self.workload,
            )
        authority = self.authority
        if authority is not None and not self.hop:
            authority = Authority(address, authority.port)
        return self._replace(address=address, authority=authority)


class Refused(NamedTuple):
    """Why not."""

    reason: str
    flag: Flag = "CONNECT"
    service: Service | None = None
    workload: Workload | None = None


def decide(
    inventory: Inventory,
    network: str,
    request: Request,
    chance: float,
    avoid: frozenset[str] = NOBODY,
    aside: frozenset[Choice] = frozenset(),
) -> Route | Refused:
    """Route one connection. `network` is this proxy's; `chance` is evenly spread over [0, 1).

    `avoid`: uids of workloads that are not chosen from a service, because they failed this connection: no route without others.
    `aside`: those that failed many before, and are chosen only where too few others are left (`ztunnel.outliers`).
    """
    destination, port, client = request.destination, request.port, request.client
    if destination.is_loopback and port in _SELF_PORTS:
        return Refused(f"self call to {Authority(destination, port)}")
    search = Search(inventory, client, request.source, destination, chance, avoid, aside)
    try:
        route = _route(inventory, network, request, search)
        return route if search.drawn else route._replace(certain=True)
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
        search.drawn |= len(meant.weighted_waypoints) > 1
        waypoint, search.chance = sample_waypoint(meant, search.chance)
        if waypoint is not None:
            upstream = _gateway(search, waypoint, "waypoint", f"service {meant.key}", meant, None)
            return _to_waypoint(request, search, upstream, meant)
    if service is not None and service.mode is not BalancingMode.PASSTHROUGH:
        upstream = _endpoint(search, service, request, owner if meant is None else None)
    elif owner is not None:
        upstream = Upstream(owner, destination, port)
    else:
        return Route("TCP", destination, port, service=service)
    workload = upstream.workload
    if workload.network != client.network:
        return _through_gateway(request, search, upstream, service)
    if meant is None and workload.waypoint is not None and not _is_waypoint(inventory, request, workload.waypoint):
        upstream = _gateway(search, workload.waypoint, "waypoint", _named(workload), None, workload)
        return _to_waypoint(request, search, upstream, None)
    return in_mesh(inventory, _to_workload(upstream))


def _endpoint(search: Search, service: Service, request: Request, owner: Workload | None) -> Upstream:
    """An endpoint of a service, or where it has none, `owner` of the address itself: a range may be around pods of the mesh.

    Istio's ztunnel takes the address in plain there.
    """
    try:
        return search.endpoint(service, request.port, request.destination)
    except NoUpstream as error:
        if owner is not None and not search.avoid:
            return Upstream(owner, request.destination, request.port)
        reason = f"no healthy upstream: {Authority(request.destination, request.port)}: {error}"
        raise NoUpstream(reason, service) from None


def _gateway(
    search: Search, gateway: GatewayAddress, role: Role, wanted_by: str, service: Service | None, workload: Workload | None
) -> Upstream:
    try:
        return search.gateway(gateway, role, wanted_by)
    except NoUpstream as error:
        raise NoUpstream(str(error), service, workload) from None


def _to_waypoint(request: Request, search: Search, upstream: Upstream, service: Service | None) -> Route:
    if upstream.workload.network != request.client.network:
        return _through_gateway(request, search, upstream, service)
    authority = Authority(request.destination, request.port)  # as the client wrote it: the waypoint routes by it
    return _dialled(upstream, "HBONE", upstream.port, authority, service, "waypoint")


def _to_workload(upstream: Upstream) -> Route:
    port, service = upstream.port, upstream.service
    if upstream.workload.protocol is not TunnelProtocol.HBONE:
        return _dialled(upstream, "TCP", port, None, service)
    return _dialled(upstream, "HBONE", HBONE_PORT, Authority(upstream.address or upstream.workload.hostname, port), service)


def in_mesh(inventory: Inventory, route: Route) -> Route:
    """The route, or where it leads in plain to an address of somebody who is in the mesh, the one to that one.

    Who writes down a pod's address as an entry's endpoint has not said that it be reached without mutual TLS.
    """
    address, listed = route.address, route.workload
    if route.protocol != "TCP" or address is None or listed is None:
        return route
    owner = inventory.workload_by_address(listed.network, address)
    if owner is None or owner.protocol is not TunnelProtocol.HBONE:
        return route
    names = parsable(route.service.subject_alt_names) if route.service is not None else NOBODY
    expected, authority = names | {str(owner.identity)}, Authority(address, route.port)
    return route._replace(protocol="HBONE", port=HBONE_PORT, authority=authority, expected=expected, workload=owner)


def _through_gateway(request: Request, search: Search, upstream: Upstream, service: Service | None) -> Route:
    """To a workload, or a waypoint, on another network: a tunnel to the gateway, and in it one to whom it passes bytes on."""
    workload = upstream.workload
    if service is None:
        reason = f"{_named(workload)} is on network {workload.network}, and only services are reached across networks"
        raise NoUpstream(reason, None, workload)
    if workload.network_gateway is None:
        reason = f"{_named(workload)} is on network {workload.network}, to which no gateway is known"
        raise NoUpstream(reason, service, workload)
    if not upstream.names:
        of = upstream.service.key if upstream.service is not None else f"{workload.namespace}/{workload.name}"
        reason = f"service {of} has no subject_alt_names: nobody behind network gateway {workload.network_gateway} could prove "
        raise NoUpstream(reason + "who it is; the control plane must send them", service, workload)
    gateway = _gateway(search, workload.network_gateway, "network gateway", _named(workload), service, workload)
    authority = Authority(service.hostname, request.port)
    return _dialled(gateway, "DOUBLEHBONE", gateway.port, authority, service, "gateway", upstream)


def _dialled(
    upstream: Upstream,
    protocol: Protocol,
    port: int,
    authority: Authority | None,
    service: Service | None,
    hop: Hop = "",
    behind: Upstream | None = None,
) -> Route:
    """The route that dials an upstream; `behind`: to whom that one passes bytes on."""
    workload, address = upstream.workload, upstream.address
    if address is None and not workload.hostname:
        reason = f"no healthy upstream: {_named(workload)} has no address of the family that its service is for"
        raise NoUpstream(reason, service, workload)
    return Route(
        protocol,
        address,
        port,
        authority,
        upstream.expected if authority is not None else NOBODY,
        workload,
        service,
        hop,
        upstream.choice or (behind.choice if behind is not None else None),
        behind.names if behind is not None else NOBODY,
        workload.hostname if address is None else "",
    )


def _named(workload: Workload) -> str:
    return f"workload {workload.name}.{workload.namespace}"


def _is_waypoint(inventory: Inventory, request: Request, waypoint: GatewayAddress) -> bool:
    """Whether the client is the waypoint itself: one of its workloads, by identity and by address."""
    found = inventory.referred(waypoint.destination)
    if isinstance(found, Service):
        candidates = [endpoint.workload for endpoint in inventory.endpoints(found.key)]
    else:
        candidates = [found] if found is not None else []
    return any(one.identity == request.client.identity and request.source in one.addresses for one in candidates)
