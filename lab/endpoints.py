"""Which ready pods stand behind which service: the join of selectors, addresses and ports, as kube-proxy sees it."""

from collections.abc import Iterable
from dataclasses import dataclass

from mesh.manifests import Pod, Service, ServicePort, service_selects
from mesh.workload import Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running pod as services see it."""

    pod: Pod
    addresses: tuple[Address, ...]
    ready: bool


def backends(service: Service, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """The pods that a service sends to now, by name. Without a selector: none."""
    chosen = (one for one in endpoints if (one.ready or service.publish_not_ready) and service_selects(service, one.pod))
    return sorted(chosen, key=lambda one: one.pod.name)


def targets(port: ServicePort, endpoints: Iterable[Endpoint], version: int) -> list[tuple[Address, int]]:
    """Where a service's port leads: address and port of each pod that has an address of the family and knows the port."""
    found = []
    for one in endpoints:
        number = port.target if isinstance(port.target, int) else one.pod.spec.port_named(port.target, port.protocol)
        address = next((address for address in one.addresses if address.version == version), None)
        if number is not None and address is not None:
            found.append((address, number))
    return found
