"""What a lab calls its things: network namespaces, cgroups, folders and sockets, all under one prefix.

`down` finds everything again by these names alone, so nothing of a lab is ever named in another place.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from mesh.domains import CLUSTER_DOMAIN, read_cluster_domain
from wire.cgroup import cgroup2_mount
from wire.places import Places, PlacesError

_NETNS_FOLDER = Path("/run/netns")
SOURCE_ROOT = Path(__file__).resolve().parent.parent
"""Where weft's packages lie: processes of a node start here with `python -m`."""

POD_BRIDGE = "pods"
"""The bridge of a node's pods, in the node's network namespace; it carries the first address of each pod range."""
FABRIC_BRIDGE = "fabric"
"""The bridge that joins the nodes, in the fabric's network namespace."""
RESERVED = ("fabric", "control")
"""Parts of a lab that have a network namespace beside the nodes': no node is called so."""
UPLINK = "eth0"
"""A node's interface towards the fabric, and a pod's towards its node."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of one lab."""

    places: Places
    domain: str = CLUSTER_DOMAIN
    """The cluster's in DNS."""
    names_domain: bool = False
    """Whether that was asked for; else a lab keeps the one that it has."""

    @classmethod
    def from_environment(cls) -> "Layout":
        """The lab that WEFT_PREFIX, WEFT_RUN_DIR, WEFT_STATE_DIR and WEFT_CLUSTER_DOMAIN name. Raises: PlacesError."""
        text = os.environ.get("WEFT_CLUSTER_DOMAIN")
        try:
            domain = read_cluster_domain(text) if text else CLUSTER_DOMAIN
        except ValueError as error:
            raise PlacesError(f"WEFT_CLUSTER_DOMAIN={text!r}: {error}") from None
        return cls(Places.from_environment(), domain, bool(text))

    @property
    def fabric_netns(self) -> str:
        """The underlay: one bridge that every node hangs on."""
        return f"{self.places.prefix}-fabric"

    @property
    def control_netns(self) -> str:
        """Where weft-control runs, on the underlay."""
        return f"{self.places.prefix}-control"

    def node_netns(self, node: str) -> str:
        """A node's own network namespace."""
        return f"{self.places.prefix}-{node}"

    def pod_netns(self, node: str, pod: str) -> str:
        """The network namespace of the pod `namespace/name`."""
        return f"{self.places.prefix}-{node}--{pod.replace('/', '.', 1)}"

    @property
    def cgroup(self) -> Path:
        """The lab's subtree of cgroup v2; all its processes are below."""
        return cgroup2_mount() / self.places.prefix

    @property
    def lab_cgroup(self) -> Path:
        """The daemon's own cgroup. The leading dot keeps it apart from nodes, whose names start with a letter or digit."""
        return self.cgroup / ".lab"

    @property
    def control_cgroup(self) -> Path:
        """weft-control's cgroup."""
        return self.cgroup / ".control"

    def node_cgroup(self, node: str) -> Path:
        """A node's cgroup: the mesh's programs attach here."""
        return self.cgroup / node

    def pods_cgroup(self, node: str) -> Path:
        """The parent of all pods' cgroups of a node."""
        return self.cgroup / node / "pods"

    def pod_cgroup(self, node: str, pod: str) -> Path:
        """The cgroup of the pod `namespace/name`."""
        return self.pods_cgroup(node) / pod.replace("/", ".", 1)

    @property
    def socket(self) -> Path:
        """The daemon's own API (HTTP/1.1, root only)."""
        return self.places.run / "lab.sock"

    @property
    def run(self) -> Path:
        """What the daemon must find again after its own restart, and nobody after a reboot."""
        return self.places.run / "lab"

    @property
    def state(self) -> Path:
        """Addresses, volumes and logs."""
        return self.places.state / "lab"

    @property
    def ledger(self) -> Path:
        """Which node, address and uid a pod has."""
        return self.state / "ledger.json"

    def pod_run(self, pod: str) -> Path:
        """Records and the hosts file of the pod `namespace/name`."""
        return self.run / "pods" / pod.replace("/", ".", 1)

    @property
    def scratch(self) -> Path:
        """An empty folder that every container builds its root on, each in a mount namespace of its own."""
        return self.run / "root"

    def prober_socket(self, node: str) -> Path:
        """Where a node's prober listens."""
        return self.run / "probers" / f"{node}.sock"

    @property
    def programs(self) -> Path:
        """Which processes weft's own programs are."""
        return self.run / "programs"

    def standing(self, node: str) -> Path:
        """Which network a node has, once it is whole."""
        return self.run / "nodes" / node

    def program_record(self, node: str, part: str) -> Path:
        """Which process a node's `agent`, `ztunnel` or `prober` is."""
        return self.programs / f"{node}.{part}.json"

    def pod_volumes(self, pod: str) -> Path:
        """The emptyDir volumes of a pod; on disk, since /run may be small."""
        return self.state / "volumes" / pod.replace("/", ".", 1)

    @property
    def logs(self) -> Path:
        """All log files."""
        return self.state / "logs"

    def process_log(self, node: str, part: str) -> Path:
        """The log of a node's `agent` or `ztunnel`."""
        return self.logs / "nodes" / node / f"{part}.log"

    def container_log(self, pod: str, container: str, init: bool = False) -> Path:
        """The log of one container, or of an init container."""
        return self.logs / "pods" / pod.replace("/", ".", 1) / f"{container}{'.init' if init else ''}.log"


def link_name(kind: str, owner: str) -> str:
    """A stable interface name of at most 15 characters for a veth's far end, e.g. `p1f0c9a7be4`."""
    return kind + hashlib.sha256(owner.encode()).hexdigest()[:10]


def netns_path(name: str) -> Path:
    """Where a named network namespace is found."""
    return _NETNS_FOLDER / name
