"""EndpointSlice: by whom a Service is served that selects nobody, as Kubernetes users write them by hand."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from mesh.manifests.cursor import Cursor
from mesh.manifests.metadata import Metadata, Object, present
from mesh.manifests.names import address, dns_label
from mesh.workload import Address

SERVICE = "kubernetes.io/service-name"
"""The label that names its Service."""
_VERSIONS = {"IPv4": 4, "IPv6": 6}
_MAX_ENDPOINTS, _MAX_ADDRESSES, _MAX_PORTS = 1000, 100, 100
"""As Kubernetes bounds them."""


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One who serves."""

    addresses: tuple[Address, ...]
    is_ready: bool = True
    pod: str = ""
    """Where it is a pod of the mesh, that pod's name: it counts, the addresses do not."""

    @classmethod
    def read(cls, cursor: Cursor, version: int, namespace: str) -> Self:
        """Read one entry of endpoints of a slice in a namespace."""
        addresses = tuple(map(address, cursor.texts("addresses", address, required="where it is")))
        if len(addresses) > _MAX_ADDRESSES:
            cursor.refuse("addresses", f"{len(addresses)} of them, at most {_MAX_ADDRESSES} are possible")
        if any(one.version != version for one in addresses):
            cursor.refuse("addresses", f"an address that is not of IPv{version}, the slice's addressType")
        conditions, target = cursor.child("conditions"), cursor.child("targetRef")
        ready = conditions.flag("ready", True) if conditions is not None else True
        if conditions is not None:
            conditions.finish(harmless=("serving", "terminating"))
        pod = target.text("name") if target is not None and target.text("kind") == "Pod" else ""
        if target is not None and pod and target.text("namespace", namespace) != namespace:
            target.refuse("namespace", f"a pod of another namespace stands behind no Service of {namespace}")
        cursor.finish(ignored=("hints",), harmless=("hostname", "nodeName", "zone", "deprecatedTopology"))
        return cls(addresses, ready, pod)

    def to_dict(self) -> dict[str, Any]:
        """Write it as Kubernetes JSON."""
        target = {"kind": "Pod", "name": self.pod} if self.pod else None
        conditions = None if self.is_ready else {"ready": False}
        return present(addresses=[str(one) for one in self.addresses], conditions=conditions, targetRef=target)


@dataclass(frozen=True, slots=True)
class EndpointSlice(Object):
    """Addresses and ports behind one Service."""

    KIND: ClassVar[str] = "EndpointSlice"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("discovery.k8s.io/v1", "discovery.k8s.io/v1beta1")

    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[tuple[str, int, str], ...] = ()
    """Name of the Service's port, number, protocol."""

    @property
    def service(self) -> str:
        """Its Service's name; empty where it is nobody's."""
        return self.labels.get(SERVICE, "")

    @property
    def pods(self) -> frozenset[str]:
        """The pods that it names."""
        return frozenset(one.pod for one in self.endpoints if one.pod)

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read what stands beside metadata: there is no spec."""
        kind = cursor.choice("addressType", ("IPv4", "IPv6", "FQDN"), "IPv4")
        if kind == "FQDN":
            cursor.warn("addressType", "FQDN has no effect: write a ServiceEntry with resolution: DNS")
        endpoints, ports = cursor.children("endpoints"), cursor.children("ports")
        for key, found, most in (("endpoints", endpoints, _MAX_ENDPOINTS), ("ports", ports, _MAX_PORTS)):
            if len(found) > most:
                cursor.refuse(key, f"{len(found)} of them, at most {most} are possible: share them among several slices")
        if SERVICE not in metadata.labels:
            cursor.warn(f"metadata.labels[{SERVICE}]", "missing: it stands behind no Service")
        version = _VERSIONS.get(kind)
        made = tuple(SliceEndpoint.read(entry, version, metadata.namespace) for entry in endpoints) if version else ()
        places = [one.addresses[:1] for one in made]
        if len(set(places)) < len(places):
            cursor.refuse("endpoints", "one address occurs twice: proxies know an endpoint by its first one")
        return cls(metadata, kind, made, tuple(map(_read_port, ports)))

    def body(self) -> dict[str, Any]:
        """Write what stands beside metadata."""
        ports = [present(name=name, port=port, protocol=protocol) for name, port, protocol in self.ports]
        return present(addressType=self.address_type, endpoints=[one.to_dict() for one in self.endpoints], ports=ports)


def _read_port(entry: Cursor) -> tuple[str, int, str]:
    name = entry.text("name", check=dns_label)
    made = name, entry.number("port", 1, 65535, 1, required=True), entry.choice("protocol", ("TCP", "UDP", "SCTP"), "TCP")
    entry.finish(harmless=("appProtocol",))
    return made
