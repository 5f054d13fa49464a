"""What an inbound request may reach: pure checks before policy, sections 5.3 and 5.4 of the facts of Istio's ztunnel."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from mesh.inventory import Inventory
from mesh.workload import Address, GatewayAddress, NetworkMode, Service, Workload
from ztunnel.hbone import RESERVED_PORTS, Authority, ConnectRequest
from ztunnel.ledger import SocketAddress


class Admitted(NamedTuple):
    """The request names something that is here: connect to the connection's own local address and this port."""

    port: int
    service: Service | None
    announced: SocketAddress | None = None
    """Where the client meant to go, for the PROXY header that the application wants; None: it wants none."""


class Rejected(NamedTuple):
    """A final status, and why."""

    status: int
    reason: str


def admit(
    inventory: Inventory,
    network: str,
    workload: Workload,
    local: Address,
    request: ConnectRequest,
    reserved: frozenset[int] = RESERVED_PORTS,
) -> Admitted | Rejected:
    """Check a CONNECT that came to `local`, an address of `workload`; `reserved` ports are the proxy's own."""
    authority = request.authority
    if workload.network_mode is NetworkMode.HOST_NETWORK:  # the proxy's own pod may be one; no other is ever enrolled
        return Rejected(503, f"{local} is a node's address: what listens there is the node's, not {workload.name}'s")
    service: Service | None = None
    if isinstance(authority.host, str):
        service = service_named(inventory, workload, authority.host)
        if service is None:
            return Rejected(503, f"unknown hostname {authority.host}")
        port = _served_port(inventory, service, workload, local, authority.port)
        if not port:
            return Rejected(503, f"port {authority.port} of {authority.host} has no target here")
    else:
        if not _may_name(inventory, network, workload, local, authority.host):
            return Rejected(400, f"ip mismatch: {local} != {authority.host}")
        port = authority.port
    tunnel = workload.application_tunnel
    final = tunnel.port or port if tunnel is not None else port
    if port in reserved or final in reserved:
        return Rejected(503, f"self call to {Authority(local, final)}")
    service = service or service_of(inventory, workload, final, request.forwarded_host)
    if tunnel is None or not tunnel.proxy_protocol:
        return Admitted(final, service)
    announced = _announced(authority, service, network)
    if announced is None:
        return Rejected(503, f"service {authority.host} has no address to announce to the application in a PROXY header")
    return Admitted(final, service, announced)


def service_named(inventory: Inventory, workload: Workload, hostname: str) -> Service | None:
    """The service that a hostname means to a workload: one that it serves, whoever else may see that; else one that it sees."""
    for key in served_as(workload, hostname):
        if (service := inventory.service(key)) is not None:
            return service
    return inventory.service_by_hostname(hostname, workload.namespace)


def served_as(workload: Workload, hostname: str) -> Iterator[str]:
    """Keys of the services of a hostname that a workload serves."""
    return (key for key in workload.services if key.partition("/")[2] == hostname)


def _announced(authority: Authority, service: Service | None, network: str) -> SocketAddress | None:
    """What stands for an authority where only addresses can be said: a service's own, of our network and IPv4 if it can be."""
    if not isinstance(authority.host, str):
        return authority.host, authority.port
    vips = [vip for vip in service.vips if vip.prefix is None] if service is not None else []
    best = max(vips, key=lambda vip: (vip.network == network, vip.address.version == 4), default=None)
    return (best.address, authority.port) if best is not None else None


def service_of(inventory: Inventory, workload: Workload, port: int, hostname: str = "") -> Service | None:
    """The service by which a client meant a workload: the one it named, else the first whose target is the port."""
    first: Service | None = None
    for key, ports in workload.services.items():
        service = inventory.service(key)
        if service is None:
            continue
        if hostname and service.hostname == hostname:
            return service
        if first is None and (port in ports.values() or port in service.ports.values()):
            first = service
    return first


def _served_port(inventory: Inventory, service: Service, workload: Workload, local: Address, port: int) -> int | None:
    """The target of a service's port here; None where this workload neither serves it nor stands in front of it."""
    ports = workload.services.get(service.key)
    if ports is None and workload.application_tunnel is None and not _is_waypoint_of(inventory, service, workload, local):
        return None
    return (ports or {}).get(port) or service.ports.get(port)


def _may_name(inventory: Inventory, network: str, workload: Workload, local: Address, host: IPv4Address | IPv6Address) -> bool:
    """An address other than the local one is for a waypoint, which serves what names it."""
    if host == local or workload.application_tunnel is not None:
        return True
    target = inventory.by_address(network, host)
    return target is not None and _is_waypoint_of(inventory, target, workload, local)


def _is_waypoint_of(inventory: Inventory, target: Workload | Service, workload: Workload, local: Address) -> bool:
    """Whether what a target names as a waypoint of its is this workload, or a service with it behind.

    Istio's ztunnel looks at the first waypoint alone: there, one that shares a service's traffic must want PROXY headers.
    """
    named = [target.waypoint] if target.waypoint is not None else []
    if isinstance(target, Service):
        named += [share.destination for share in target.weighted_waypoints]
    return any(_leads_to(inventory, waypoint, workload, local) for waypoint in named)


def _leads_to(inventory: Inventory, waypoint: GatewayAddress, workload: Workload, local: Address) -> bool:
    found = inventory.referred(waypoint.destination)
    if isinstance(found, Workload):
        return local in found.addresses
    return found is not None and found.key in workload.services
