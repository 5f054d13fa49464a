"""Which ready pods stand behind which service: the join of selectors, addresses and ports, as kube-proxy sees it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from mesh.workload import Address


@dataclass(frozen=True, slots=True)
class PodEndpoint:
    """A running pod as services see it."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    addresses: tuple[Address, ...]
    ready: bool
    ports: Mapping[tuple[str, str], int]
    """(protocol, port name) -> container port."""
    hostname: str
    subdomain: str = ""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service."""

    protocol: str
    """`tcp` or `udp`."""
    port: int
    target: int | str
    """A number, or the name of a container's port."""


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service, reduced to what names and virtual addresses need."""

    namespace: str
    name: str
    selector: Mapping[str, str]
    vips: tuple[Address, ...]
    headless: bool
    ports: tuple[ServicePort, ...]
    publish_not_ready: bool = False


def pod_endpoint(pod: Mapping[str, Any], addresses: tuple[Address, ...], ready: bool) -> PodEndpoint:
    """A Kubernetes Pod object as an endpoint."""
    metadata, spec = pod["metadata"], pod["spec"]
    named = {
        (str(port.get("protocol", "TCP")).lower(), str(port["name"])): int(port["containerPort"])
        for container in spec["containers"]
        for port in container.get("ports") or []
        if port.get("name")
    }
    hostname = str(spec.get("hostname") or metadata["name"])
    labels = metadata.get("labels") or {}
    subdomain = str(spec.get("subdomain") or "")
    return PodEndpoint(metadata["namespace"], metadata["name"], labels, addresses, ready, named, hostname, subdomain)


def service_view(service: Mapping[str, Any]) -> ServiceView:
    """A Kubernetes Service object, its addresses allocated, as names and virtual addresses see it."""
    metadata, spec = service["metadata"], service["spec"]
    texts = [str(text) for text in spec.get("clusterIPs") or [spec.get("clusterIP") or ""]]
    ports = tuple(
        ServicePort(str(port.get("protocol", "TCP")).lower(), int(port["port"]), port.get("targetPort") or int(port["port"]))
        for port in spec.get("ports") or []
    )
    return ServiceView(
        metadata["namespace"],
        metadata["name"],
        spec.get("selector") or {},
        tuple(ip_address(text) for text in texts if text not in ("", "None")),
        "None" in texts,
        ports,
        bool(spec.get("publishNotReadyAddresses")),
    )


def backends(service: ServiceView, pods: Iterable[PodEndpoint]) -> list[PodEndpoint]:
    """The pods that a service sends to now, by name. Without a selector: none."""
    return sorted(
        (
            pod
            for pod in pods
            if service.selector
            and pod.namespace == service.namespace
            and (pod.ready or service.publish_not_ready)
            and all(pod.labels.get(key) == value for key, value in service.selector.items())
        ),
        key=lambda pod: pod.name,
    )


def targets(port: ServicePort, pods: Iterable[PodEndpoint], version: int) -> list[tuple[Address, int]]:
    """Where a service's port leads: address and port of each pod that has an address of the family and knows the port."""
    found = []
    for pod in pods:
        number = port.target if isinstance(port.target, int) else pod.ports.get((port.protocol, port.target))
        address = next((address for address in pod.addresses if address.version == version), None)
        if number is not None and address is not None:
            found.append((address, number))
    return found
