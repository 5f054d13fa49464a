"""What must stay the same across restarts of the daemon: node indexes, host numbers, uids, and where a pod runs."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.addresses import MAX_NODES, pick_host
from mesh.domains import read_cluster_domain
from mesh.workload import Network


@dataclass(frozen=True, slots=True)
class Placement:
    """One life of one pod."""

    uid: str
    node: str
    spec: str
    """Digest of the pod's spec: another one is another life."""


@dataclass(slots=True)
class Ledger:
    """The lab's small numbers. Plain state: `load` and `save` are its only I/O."""

    nodes: dict[str, int] = field(default_factory=dict)
    """Node -> index."""
    hosts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Node -> pod `namespace/name` -> host number; kept after the pod's end, so that it comes back to its address."""
    pods: dict[str, Placement] = field(default_factory=dict)
    """Living pods."""
    domain: str = ""
    """The cluster's in DNS; empty: a weft of before, which did not write it, made this ledger."""

    def node_index(self, node: str) -> int:
        """The node's index; the lowest free one when it is new.

        Raises: ValueError when a lab can have no more nodes.
        """
        if node not in self.nodes:
            free = set(range(1, MAX_NODES + 1)) - set(self.nodes.values())
            if not free:
                raise ValueError(f"Node {node}: a lab has at most {MAX_NODES} nodes")
            self.nodes[node] = min(free)
        return self.nodes[node]

    def forget_node(self, node: str) -> None:
        """Give a node's index and host numbers back."""
        self.nodes.pop(node, None)
        self.hosts.pop(node, None)

    def host_number(self, node: str, pod: str, ranges: Sequence[Network]) -> int:
        """The pod's host number on its node.

        Raises: ValueError when the node's ranges are full.
        """
        taken = self.hosts.setdefault(node, {})
        live = {name for name, placement in self.pods.items() if placement.node == node}
        number = pick_host(pod, taken, live, ranges)
        for other in [name for name, kept in taken.items() if kept == number and name != pod]:
            del taken[other]
        taken[pod] = number
        return number


def load(path: Path) -> Ledger:
    """Read the ledger; an empty one when there is none.

    Raises: ValueError for a file that is not a ledger.
    """
    try:
        document = json.loads(path.read_text())
        return Ledger(
            {str(node): int(index) for node, index in document["nodes"].items()},
            {str(node): {str(pod): int(number) for pod, number in pods.items()} for node, pods in document["hosts"].items()},
            {str(pod): Placement(*(str(one[key]) for key in ("uid", "node", "spec"))) for pod, one in document["pods"].items()},
            read_cluster_domain(text) if (text := document.get("domain")) else "",
        )
    except FileNotFoundError:
        return Ledger()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a lab's ledger ({error!r}): remove the lab with: weft lab down") from error


def save(ledger: Ledger, path: Path) -> None:
    """Write the ledger as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(ledger), indent=1, sort_keys=True))
    os.replace(fresh, path)
