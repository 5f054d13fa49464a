"""ServiceEntry: a service that is not of Kubernetes, such as a database outside or virtual machines under one name."""

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, ClassVar, Self

from mesh.manifests.cursor import Cursor
from mesh.manifests.metadata import Metadata, Object, present
from mesh.manifests.names import dns_label, dns_subdomain, label_key, label_value, network
from mesh.manifests.service import ServicePort
from mesh.manifests.workload_entry import Endpoint
from mesh.workload import Network

STATIC, DNS, NONE, DYNAMIC = "STATIC", "DNS", "NONE", "DYNAMIC_DNS"
_RESOLUTIONS = (NONE, STATIC, DNS, "DNS_ROUND_ROBIN", DYNAMIC)
_TELLING = ("HTTP", "TLS", "GRPC", "HTTP2")
"""Protocols whose first bytes tell a waypoint which host is meant."""
_PROTOCOLS = ("TCP", "TLS", "HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "MONGO", "MYSQL", "REDIS", "UDP")
_MAX_HOSTS, _MAX_PORTS, _MAX_ADDRESSES, _MAX_ENDPOINTS = 256, 256, 256, 4096
"""As Kubernetes bounds them."""
_MAX_NAMESPACES = 256


@dataclass(frozen=True, slots=True)
class ServiceEntry(Object):
    """Names and addresses for endpoints that it lists, selects, or leaves to DNS or to who dials."""

    KIND: ClassVar[str] = "ServiceEntry"
    API_VERSIONS: ClassVar[tuple[str, ...]] = (
        "networking.istio.io/v1",
        "networking.istio.io/v1beta1",
        "networking.istio.io/v1alpha3",
    )

    hosts: tuple[str, ...] = ()
    addresses: tuple[Network, ...] = ()
    """A plain address is a network of one."""
    ports: tuple[ServicePort, ...] = ()
    resolution: str = NONE
    """NONE: connections go where they were dialled; STATIC; DNS (DNS_ROUND_ROBIN is the same here).

    DYNAMIC_DNS: of hosts with a wildcard its waypoint asks DNS for the one that a client names; no proxy can.
    """
    endpoints: tuple[Endpoint, ...] = ()
    selector: dict[str, str] = field(default_factory=dict)
    """Pods and WorkloadEntries of its namespace by labels; empty: none."""
    export_to: tuple[str, ...] = ()
    """Namespaces, or `*` everybody, `.` its own namespace, `~` nobody; empty: everybody."""
    subject_alt_names: tuple[str, ...] = ()
    location: str = ""
    """Of no effect: an endpoint's own labels say what it speaks."""

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read spec."""
        spec = cursor.child("spec", required=True)
        if spec is None:
            return cls(metadata)
        selector = spec.child("workloadSelector")
        made = cls(
            metadata,
            hosts=spec.texts("hosts", _host, required="the names by which it is called"),
            addresses=tuple(ip_network(text) for text in spec.texts("addresses", network)),
            ports=tuple(_read_port(entry) for entry in spec.children("ports")),
            resolution=spec.choice("resolution", _RESOLUTIONS, NONE),
            endpoints=tuple(Endpoint.read(entry) for entry in spec.children("endpoints")),
            selector=selector.text_map("labels", label_key, label_value) if selector is not None else {},
            export_to=spec.texts("exportTo", _audience),
            subject_alt_names=spec.texts("subjectAltNames"),
            location=spec.choice("location", ("", "MESH_EXTERNAL", "MESH_INTERNAL"), ""),
        )
        if selector is not None:
            selector.finish()
        spec.finish()
        if not spec.mistakes:
            made._check(spec)
        return made

    def body(self) -> dict[str, Any]:
        """Write spec."""
        return {
            "spec": present(
                hosts=list(self.hosts),
                addresses=[_written(one) for one in self.addresses],
                ports=[_port_dict(port) for port in self.ports],
                location=self.location,
                resolution=self.resolution,
                endpoints=[one.to_dict() for one in self.endpoints],
                workloadSelector=present(labels=self.selector),
                exportTo=list(self.export_to),
                subjectAltNames=list(self.subject_alt_names),
            )
        }

    @property
    def is_resolved(self) -> bool:
        """Whether it is for DNS to say where its hosts are: it lists and selects nobody."""
        return self.resolution not in (NONE, STATIC, DYNAMIC) and not self.endpoints and not self.selector

    @property
    def is_told(self) -> bool:
        """Whether anybody is to see it."""
        return self.export_to != ("~",)

    @property
    def is_private(self) -> bool:
        """Whether only its own namespace is to see it."""
        return self.shown_to == (self.namespace,)

    @property
    def shown_to(self) -> tuple[str, ...]:
        """The namespaces that are to see it; empty: all."""
        if not self.export_to or "*" in self.export_to:
            return ()
        return tuple(sorted({self.namespace if one == "." else one for one in self.export_to}))

    def gets_addresses(self, host: str) -> bool:
        """Whether one of its hosts is given addresses, as it has none of its own."""
        return not self.addresses and self.resolution != NONE and (self.resolution == DYNAMIC or not host.startswith("*."))

    def _check(self, spec: Cursor) -> None:
        counts = (
            ("hosts", len(self.hosts), _MAX_HOSTS),
            ("addresses", len(self.addresses), _MAX_ADDRESSES),
            ("ports", len(self.ports), _MAX_PORTS),
            ("endpoints", len(self.endpoints), _MAX_ENDPOINTS),
        )
        for key, count, most in counts:
            if count > most:
                spec.refuse(key, f"{count} of them, at most {most} are possible: share them among several ServiceEntries")
        if len(set(self.hosts)) < len(self.hosts):
            spec.refuse("hosts", "one host occurs twice")
        self._check_ports(spec)
        self._check_endpoints(spec)
        if self.resolution == DYNAMIC:
            self._check_dynamic(spec)
        if len(self.export_to) > _MAX_NAMESPACES:
            reason = f"{len(self.export_to)} of them, at most {_MAX_NAMESPACES} are possible: show it to all ('*')"
            spec.refuse("exportTo", reason)
        if "~" in self.export_to and len(self.export_to) > 1:
            spec.refuse("exportTo", "'~' stands alone: it shows the service to nobody")

    def _check_ports(self, spec: Cursor) -> None:
        if not self.ports:
            spec.refuse("ports", "at least one port")
        if len({port.port for port in self.ports}) < len(self.ports):
            spec.refuse("ports", "one port occurs twice")
        if len({port.name for port in self.ports}) < len(self.ports):
            spec.refuse("ports", "two ports of one name")

    def _check_dynamic(self, spec: Cursor) -> None:
        for key, found in (("addresses", self.addresses), ("endpoints", self.endpoints), ("workloadSelector", self.selector)):
            if found:
                spec.refuse(key, f"{DYNAMIC} is for hosts with a wildcard, wherever their waypoint finds them: leave it out")
        if plain := next((host for host in self.hosts if not host.startswith("*.")), ""):
            spec.refuse("hosts", f"{plain!r} has no wildcard: write it into an entry of its own with resolution: {DNS}")
        for index, port in enumerate(self.ports):
            if port.app_protocol not in _TELLING:
                spec.refuse(f"ports[{index}].protocol", f"{port.app_protocol} does not name its host: {', '.join(_TELLING)} do")

    def _check_endpoints(self, spec: Cursor) -> None:
        if self.endpoints and self.selector:
            spec.refuse("workloadSelector", "either endpoints or a workloadSelector")
        if self.resolution == NONE and (self.endpoints or self.selector):
            spec.refuse("resolution", "NONE goes to the address that was dialled, and to no endpoint: write STATIC or DNS")
        if self.resolution == STATIC:
            for index, one in enumerate(self.endpoints):
                if one.hostname:
                    spec.refuse(f"endpoints[{index}].address", f"{one.hostname!r} is no IP address: write resolution: DNS")
            if not self.endpoints and not self.selector:
                spec.warn("endpoints", "nobody stands behind it: list endpoints, or select some by workloadSelector")
        if self.is_resolved and (wild := next((host for host in self.hosts if host.startswith("*.")), "")):
            spec.refuse("hosts", f"{wild!r} is nothing that DNS could be asked for: list endpoints, or write resolution: NONE")
        places = Counter(one.address or one.network for one in self.endpoints)
        if twice := next((place for place, count in places.items() if count > 1), ""):
            spec.refuse("endpoints", f"{twice} occurs twice: proxies know an endpoint by its address")


def _audience(text: str) -> None:
    if text not in ("*", ".", "~"):
        dns_label(text)


def _host(text: str) -> None:
    dns_subdomain(text.removeprefix("*."))
    if text.rpartition(".")[2].isdigit():
        raise ValueError(f"{text!r} is an address, no name: write it under addresses")


def _read_port(entry: Cursor) -> ServicePort:
    number = entry.number("number", 1, 65535, 1, required=True)
    protocol = entry.text("protocol", "TCP")
    if protocol.upper() not in _PROTOCOLS:
        entry.refuse("protocol", f"{protocol!r} is none of {', '.join(_PROTOCOLS)}")
    made = ServicePort(
        number,
        entry.number("targetPort", 1, 65535, number),
        entry.text("name", required=True, check=dns_label),
        app_protocol=protocol.upper(),
    )
    entry.finish()
    return made


def _port_dict(port: ServicePort) -> dict[str, Any]:
    target = port.target if port.target != port.port else None
    return present(number=port.port, name=port.name, protocol=port.app_protocol, targetPort=target)


def _written(one: Network) -> str:
    return str(one.network_address) if one.prefixlen == one.max_prefixlen else str(one)
