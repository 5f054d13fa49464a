"""Gateways of the Gateway API: ways to other networks, and how the pods of a waypoint want their connections."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from mesh.manifests.cursor import Cursor
from mesh.manifests.metadata import Metadata, Object, present
from mesh.manifests.names import address, dns_label, dns_subdomain
from mesh.workload import ApplicationTunnel

NETWORK = "topology.istio.io/network"
"""The label that says on which network something is: of a pod, a node, a gateway, and of the root namespace for all others."""
REMOTE, EAST_WEST, _WAYPOINT = "istio-remote", "istio-east-west", "istio-waypoint"
PURPOSES = ("service", "workload", "all", "none")
_BINDING, _PURPOSE, _ACCOUNT = (
    "ambient.istio.io/waypoint-inbound-binding",
    "istio.io/waypoint-for",
    "gateway.istio.io/service-account",
)
_ADDRESS_TYPES = {"IPAddress": address, "Hostname": dns_subdomain}


@dataclass(frozen=True, slots=True)
class Gateway(Object):
    """A way into a network, or a waypoint."""

    KIND: ClassVar[str] = "Gateway"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1")

    class_name: str = ""
    addresses: tuple[tuple[str, str], ...] = ()
    """`IPAddress` or `Hostname`, and which."""
    listeners: tuple[tuple[str, int, str], ...] = ()
    """Name, port, protocol."""
    application_tunnel: ApplicationTunnel | None = None
    """How its pods want connections, where a proxy stands before them: what an annotation says."""

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read spec, and what labels and annotations say of it."""
        spec = cursor.child("spec", required=True)
        if spec is None:
            return cls(metadata)
        made = cls(
            metadata,
            spec.text("gatewayClassName", check=dns_subdomain, required=True),
            tuple(_read_address(entry) for entry in spec.children("addresses")),
            tuple(_read_listener(entry) for entry in spec.children("listeners")),
            _read_binding(metadata, cursor),
        )
        spec.finish(ignored=("allowedListeners", "backendTLS", "infrastructure", "tls"))
        made._check(cursor)
        return made

    def body(self) -> dict[str, Any]:
        """Write spec."""
        return {
            "spec": present(
                gatewayClassName=self.class_name,
                addresses=[{"type": kind, "value": value} for kind, value in self.addresses],
                listeners=[{"name": name, "port": port, "protocol": protocol} for name, port, protocol in self.listeners],
            )
        }

    def _check(self, cursor: Cursor) -> None:
        if self.purpose not in PURPOSES:
            cursor.refuse(f"metadata.labels[{_PURPOSE}]", f"{self.purpose!r} is none of {', '.join(PURPOSES)}")
        if self.class_name in (REMOTE, EAST_WEST) and not self.network:
            cursor.warn(f"metadata.labels[{NETWORK}]", "missing: nobody knows to which network it leads")
        elif self.class_name in (REMOTE, EAST_WEST) and (not self.hbone_port or not self.addresses):
            cursor.warn("spec", f"without an address and a listener of protocol HBONE nobody reaches network {self.network!r}")
        elif self.network and self.class_name not in (REMOTE, EAST_WEST, _WAYPOINT):
            leads = f"no way to network {self.network!r}: that is what {REMOTE} and {EAST_WEST} are"
            cursor.warn("spec.gatewayClassName", f"{self.class_name!r}: {leads}")

    @property
    def network(self) -> str:
        """The network that it leads to; empty where it says none."""
        return self.labels.get(NETWORK, "")

    @property
    def purpose(self) -> str:
        """Whom it is a waypoint for."""
        return self.labels.get(_PURPOSE, "service")

    @property
    def hbone_port(self) -> int:
        """Where it takes tunnels; 0: nowhere."""
        return next((port for _, port, protocol in self.listeners if protocol == "HBONE"), 0)

    @property
    def service_account(self) -> str:
        """Under which it proves who it is: what its annotation says, else as Istio calls it."""
        return self.metadata.annotations.get(_ACCOUNT) or (f"{self.name}-{REMOTE}" if self.class_name == REMOTE else self.name)


def _read_binding(metadata: Metadata, cursor: Cursor) -> ApplicationTunnel | None:
    text = metadata.annotations.get(_BINDING)
    if text is None:
        return None
    protocol, slash, port = text.partition("/")
    numbered = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
    if protocol in ("PROXY", "NONE") and (numbered or not slash):
        return ApplicationTunnel(protocol == "PROXY", int(port) if slash else 0)
    reason = f"{text!r}: write PROXY or NONE, and /PORT where it is not the port that was dialled"
    cursor.refuse(f"metadata.annotations[{_BINDING}]", reason)
    return None


def _read_address(entry: Cursor) -> tuple[str, str]:
    kind = entry.choice("type", tuple(_ADDRESS_TYPES), "IPAddress")
    made = kind, entry.text("value", check=_ADDRESS_TYPES[kind], required=True)
    entry.finish()
    return made


def _read_listener(entry: Cursor) -> tuple[str, int, str]:
    name = entry.text("name", check=dns_label, required=True)
    made = name, entry.number("port", 1, 65535, required=True), entry.text("protocol", required=True)
    entry.finish(ignored=("allowedRoutes",), harmless=("hostname", "tls"))
    return made
