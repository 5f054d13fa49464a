"""What a former daemon made and no object asks for any more: found by its names, removed once, at the daemon's start."""

import logging
import shutil
from pathlib import Path

from lab import cgroup, fabric
from lab.desired import Desired
from lab.layout import NETNS_FOLDER, Layout
from wire import keyring

_log = logging.getLogger(__name__)


def remove(layout: Layout, wanted: Desired) -> list[tuple[str, str]]:
    """Remove nodes that are not wanted, and pods that are not wanted or run on another node: (node, uid) of these pods."""
    removed = []
    for node in _children(layout.cgroup):
        if node.startswith("."):
            continue
        for pod in pods_of_node(layout, node):
            wish = wanted.pods.get(pod)
            if wish is None or wish.node != node:
                _log.info("removing %s of node %s, which nothing asks for", pod, node)
                uid = network_owner(layout, pod)
                if uid:
                    removed.append((node, uid))
                cgroup.kill(layout.pod_cgroup(node, pod))
                fabric.delete_pod(layout, node, pod)
                cgroup.remove(layout.pod_cgroup(node, pod))
                for folder in (layout.pod_run(pod), layout.pod_volumes(pod)):
                    shutil.rmtree(folder, ignore_errors=True)
        if node not in wanted.nodes:
            _log.info("removing node %s, which nothing asks for", node)
            cgroup.kill(layout.node_cgroup(node))
            keyring.forget_all(keyring.scope(layout.places.prefix, node))
            fabric.delete_node(layout, node)
            cgroup.remove(layout.node_cgroup(node))
    return removed


def network_owner(layout: Layout, pod: str) -> str:
    """The uid of the life for which a pod's network was made; empty when there is none."""
    try:
        return (layout.pod_run(pod) / "network").read_text().split()[0]
    except (FileNotFoundError, IndexError):
        return ""


def pods_of_node(layout: Layout, node: str) -> list[str]:
    """The pods `namespace/name` that have a cgroup or a network namespace on a node."""
    found = set(_children(layout.pods_cgroup(node)))
    start = layout.node_netns(node) + "--"
    if NETNS_FOLDER.is_dir():
        found |= {entry.name.removeprefix(start) for entry in NETNS_FOLDER.iterdir() if entry.name.startswith(start)}
    return sorted(name.replace(".", "/", 1) for name in found)


def nodes(layout: Layout) -> list[str]:
    """The nodes that have a cgroup or a run folder."""
    found = {name for name in _children(layout.cgroup) if not name.startswith(".")}
    return sorted(found | set(layout.places.nodes()) | set(_children(layout.run / "nodes", files=True)))


def _children(folder: Path, files: bool = False) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if files or entry.is_dir())
