"""Where weft keeps its sockets, state and pins. Every process and command asks here, so that two labs can live side by side.

`WEFT_RUN_DIR` (default /run/weft) and `WEFT_STATE_DIR` (default /var/lib/weft) move everything; `WEFT_PREFIX` (default weft)
names network namespaces and the cgroup subtree.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""What a node may be called: its folders are."""
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class PlacesError(ValueError):
    """A variable that cannot name an installation: which, why, and what to write."""


@dataclass(frozen=True, slots=True)
class Places:
    """The roots of one installation."""

    run: Path
    state: Path
    prefix: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Places":
        """Read the roots from the environment, with the defaults of a node. Raises: PlacesError."""
        prefix = environment.get("WEFT_PREFIX") or "weft"
        if not _PREFIX.fullmatch(prefix):
            raise PlacesError(f"WEFT_PREFIX={prefix!r}: no name for namespaces: write up to 32 letters, digits, '-', '_', '.'")
        return cls(
            _folder("WEFT_RUN_DIR", environment, "/run/weft"),
            _folder("WEFT_STATE_DIR", environment, "/var/lib/weft"),
            prefix,
        )

    @property
    def control_socket(self) -> Path:
        """weft-control's own API (gRPC, root only)."""
        return self.run / "control.sock"

    @property
    def control_state(self) -> Path:
        """Manifests, root key and database of the embedded control plane."""
        return self.state / "control"

    def nodes(self) -> list[str]:
        """The nodes that have a run folder here, sorted."""
        folder = self.run / "nodes"
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []

    def node(self, name: str) -> "NodePlaces":
        """The places of one node."""
        return NodePlaces(name, self.run / "nodes" / name, self.state / "nodes" / name)


@dataclass(frozen=True, slots=True)
class NodePlaces:
    """The places of one node."""

    name: str
    run: Path
    state: Path

    @property
    def agent_socket(self) -> Path:
        """`POST /cmdadd`, `POST /cmddel` (HTTP/1.1) and `weft.agent.Agent` (gRPC)."""
        return self.run / "agent.sock"

    @property
    def hubble_socket(self) -> Path:
        """`observer.Observer` (gRPC)."""
        return self.run / "hubble.sock"

    @property
    def zds_socket(self) -> Path:
        """The agent's end of ZDS (SOCK_SEQPACKET)."""
        return self.run / "ztunnel.sock"

    @property
    def admin_socket(self) -> Path:
        """The proxy's admin endpoints (HTTP/1.1)."""
        return self.run / "admin.sock"

    @property
    def token(self) -> Path:
        """The node's credential for control (0600)."""
        return self.run / "token"

    @property
    def root(self) -> Path:
        """PEM of what signs control's server certificate."""
        return self.run / "root-cert.pem"

    @property
    def bpffs(self) -> Path:
        """The lab's bpffs of this node; on a real node programs are pinned under /sys/fs/bpf/weft."""
        return self.run / "bpf"


def check_node_name(name: str, said: str) -> None:
    """Refuse what no node can be called; `said`: where it was said, and how. Raises: ValueError."""
    if not _NODE_NAME.fullmatch(name):
        raise ValueError(f"{said}: not a node's name: lower-case letters, digits, '-' and '.'")


def _folder(name: str, environment: Mapping[str, str], default: str) -> Path:
    folder = Path(environment.get(name) or default)
    if not folder.is_absolute():
        raise PlacesError(f"{name}={str(folder)!r}: processes start in different folders: write a whole path, from /")
    return Path(os.path.realpath(folder))  # /var/run is a link: mounts and other root file systems know the folder itself
