"""PeerAuthentication: whether a pod accepts connections from peers that prove no identity."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Self

from mesh.manifests.cursor import Cursor
from mesh.manifests.metadata import Metadata, Object, present, read_selector
from mesh.manifests.names import port


class Mode(Enum):
    """What is accepted; UNSET asks the next wider scope."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    """As PERMISSIVE: this mesh never refuses mutual TLS."""
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


def _read_mode(mtls: Cursor | None) -> Mode:
    if mtls is None:
        return Mode.UNSET
    mode = Mode(mtls.choice("mode", tuple(one.value for one in Mode), "UNSET"))
    mtls.finish()
    return mode


def _read_ports(spec: Cursor) -> dict[int, Mode]:
    ports = {}
    for text, mtls in spec.keyed_children("portLevelMtls").items():
        mode = _read_mode(mtls)
        try:
            port(text)
        except ValueError as error:
            spec.refuse(f"portLevelMtls[{text}]", f"{error}, the pod's own port")
            continue
        if int(text) in ports:
            spec.refuse(f"portLevelMtls[{text}]", "one port occurs twice")
        ports[int(text)] = mode
    return ports


@dataclass(frozen=True, slots=True)
class PeerAuthentication(Object):
    """A mode for the pods it selects, with exceptions by port."""

    KIND: ClassVar[str] = "PeerAuthentication"
    API_VERSIONS: ClassVar[tuple[str, ...]] = ("security.istio.io/v1", "security.istio.io/v1beta1")

    mode: Mode = Mode.UNSET
    port_modes: dict[int, Mode] = field(default_factory=dict)
    """By the pod's own port; only beside a selector."""
    selector: dict[str, str] | None = None
    """None or empty: every pod of the namespace (in the root namespace: of the mesh)."""

    @classmethod
    def read(cls, metadata: Metadata, cursor: Cursor) -> Self:
        """Read spec."""
        spec = cursor.child("spec")
        if spec is None:
            return cls(metadata)
        made = cls(metadata, _read_mode(spec.child("mtls")), _read_ports(spec), read_selector(spec, "selector"))
        if made.port_modes and not made.selector:
            spec.refuse("portLevelMtls", "needs a selector that names labels")
        spec.finish()
        return made

    def body(self) -> dict[str, Any]:
        """Write spec."""
        spec: dict[str, Any] = present(
            mtls={"mode": self.mode.value} if self.mode is not Mode.UNSET else None,
            portLevelMtls={str(port): {"mode": mode.value} for port, mode in self.port_modes.items()},
        )
        if self.selector is not None:
            spec["selector"] = {"matchLabels": self.selector}
        return {"spec": spec} if spec else {}
