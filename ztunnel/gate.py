"""What an inbound request may reach: pure checks before policy, sections 5.3 and 5.4 of the facts of Istio's ztunnel."""

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from mesh.inventory import Endpoint, Inventory
from mesh.workload import Address, GatewayAddress, Service, Workload
from ztunnel.balance import target_port
from ztunnel.hbone import RESERVED_PORTS, Authority, ConnectRequest


class Admitted(NamedTuple):
    """The request names something that is here: connect to the connection's own local address and this port."""

    port: int
    service: Service | None


class Rejected(NamedTuple):
    """A final status, and why."""

    status: int
    reason: str


def admit(
    inventory: Inventory, network: str, workload: Workload, local: Address, request: ConnectRequest
) -> Admitted | Rejected:
    """Check a CONNECT that came to `local`, an address of `workload`."""
    authority = request.authority
    service: Service | None = None
    if isinstance(authority.host, str):
        service = inventory.service_by_hostname(authority.host, workload.namespace)
        if service is None:
            return Rejected(503, f"unknown hostname {authority.host}")
        found = _endpoint_port(inventory, service, workload, authority.port)
        if not found:
            return Rejected(503, f"port {authority.port} of {authority.host} has no target here")
        port = found
    else:
        if not _may_name(inventory, network, workload, local, authority.host):
            return Rejected(400, f"ip mismatch: {local} != {authority.host}")
        port = authority.port
    if workload.application_tunnel is not None:
        if workload.application_tunnel.proxy_protocol:
            return Rejected(503, "application tunnel with PROXY protocol not supported yet")
        port = workload.application_tunnel.port or port
    if port in RESERVED_PORTS:
        return Rejected(503, f"self call to {Authority(local, port)}")
    return Admitted(port, service or service_of(inventory, workload, port, request.forwarded_host))


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


def _endpoint_port(inventory: Inventory, service: Service, workload: Workload, port: int) -> int | None:
    ports = workload.services.get(service.key)
    return None if ports is None else target_port(service, Endpoint(workload, ports), port)


def _may_name(inventory: Inventory, network: str, workload: Workload, local: Address, host: IPv4Address | IPv6Address) -> bool:
    """An address other than the local one is for a waypoint, which serves what names it."""
    if host == local or workload.application_tunnel is not None:
        return True
    target = inventory.by_address(network, host)
    waypoint = target.waypoint if target is not None else None
    return waypoint is not None and _serves(inventory, waypoint, workload, local)


def _serves(inventory: Inventory, waypoint: GatewayAddress, workload: Workload, local: Address) -> bool:
    """Whether a waypoint is this workload, or a service with it behind."""
    found = inventory.referred(waypoint.destination)
    if isinstance(found, Workload):
        return local in found.addresses
    return found is not None and found.key in workload.services
