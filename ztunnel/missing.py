"""What a decision would need to know and nobody has told yet, on demand: names to ask the control plane for. Pure.

Each answer may lead to the next question (an address to a service, the service to its waypoint), so whoever asks looks again.
A service that nobody serves is asked for too: istiod tells of pods that are gone, but not of those that came in their place.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from mesh.inventory import Inventory
from mesh.workload import Address, BalancingMode, GatewayAddress, NetworkAddress, Service, Workload
from ztunnel.gate import served_as, service_named
from ztunnel.hbone import Authority
from ztunnel.route import Request

MAX_NAMES = 8
"""Of one connection at a time: an address in two networks, a service's waypoints, and gateways between networks."""


def missing_outbound(inventory: Inventory, network: str, request: Request) -> list[str]:
    """What `ztunnel.route.decide` would look for in vain."""
    if request.destination.is_loopback:
        return []
    return _first(_of_client(inventory, network, request))


def _of_client(inventory: Inventory, network: str, request: Request) -> Iterator[str]:
    client = request.client
    for where in dict.fromkeys((network, client.network)):
        owner = inventory.workload_by_address(where, request.destination)
        service = inventory.service_by_vip(where, request.destination, client.namespace)
        if owner is None and (service is None or not _has_address(service, where, request.destination)):
            yield str(NetworkAddress(where, request.destination))
        for one in (owner, service):
            if one is not None:
                yield from _behind(inventory, client, one)


def _has_address(service: Service, network: str, address: Address) -> bool:
    """Whether an address is a service's own. One in its range may be somebody's too, who has a waypoint and wins."""
    return any(vip.prefix is None and vip.address == address and vip.network == network for vip in service.vips)


def _behind(inventory: Inventory, client: Workload, target: Workload | Service) -> Iterator[str]:
    """Waypoints of a target, gateways to where it, its waypoints or their endpoints are, and services that nobody serves."""
    yield from _abroad(inventory, client, target)
    if target.waypoint is None:
        yield from _unserved(inventory, target)
    waypoints = [target.waypoint] if target.waypoint is not None else []
    if isinstance(target, Service):
        waypoints += [one.destination for one in target.weighted_waypoints]
    for waypoint in waypoints:
        found = inventory.referred(waypoint.destination)
        if found is None:
            yield str(waypoint)
        else:
            yield from _abroad(inventory, client, found)
            yield from _unserved(inventory, found)


def _unserved(inventory: Inventory, target: Workload | Service) -> Iterator[str]:
    if isinstance(target, Service) and target.mode is not BalancingMode.PASSTHROUGH and not inventory.endpoints(target.key):
        yield target.key


def _abroad(inventory: Inventory, client: Workload, target: Workload | Service) -> Iterator[str]:
    workloads = [target] if isinstance(target, Workload) else [one.workload for one in inventory.endpoints(target.key)]
    gateways = {one.network_gateway for one in workloads if one.network != client.network}
    for gateway in gateways:
        if gateway is not None and inventory.referred(gateway.destination) is None:
            yield str(gateway)


def missing_inbound(inventory: Inventory, network: str, workload: Workload, local: Address, authority: Authority) -> list[str]:
    """What `ztunnel.gate.admit` would look for in vain."""
    host = authority.host
    if isinstance(host, str):
        known = service_named(inventory, workload, host) is not None
        return [] if known else _first(_hostname(workload, host))
    if host == local or workload.application_tunnel is not None:
        return []
    return _first(_named(inventory, network, host))


def _hostname(workload: Workload, host: str) -> Iterator[str]:
    """Whose service a hostname may be: of the namespace that it names, or of our own."""
    yield from served_as(workload, host)
    labels = host.split(".")
    if labels[2:3] == ["svc"]:
        yield f"{labels[1]}/{host}"
    yield f"{workload.namespace}/{host}"


def _named(inventory: Inventory, network: str, host: IPv4Address | IPv6Address) -> Iterator[str]:
    target = inventory.by_address(network, host)
    waypoint: GatewayAddress | None = target.waypoint if target is not None else None
    if target is None:
        yield str(NetworkAddress(network, host))
    elif waypoint is not None and inventory.referred(waypoint.destination) is None:
        yield str(waypoint)


def _first(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))[:MAX_NAMES]
