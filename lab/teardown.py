"""Removing pods, nodes and whole labs, in whatever state they are: no daemon is needed, nor a record.

Order: processes first (they hold namespaces and mounts), then keys, mounts, namespaces, cgroups, folders; what proves that
something is the lab's (`claim`) goes last, so that a removal that was broken off can go on.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lab import cgroup, fabric, netns
from lab.claim import Folder, folders, owns_cgroup
from lab.layout import Layout
from lab.syscalls import detach
from wire import keyring


def present(layout: Layout) -> bool:
    """Whether anything of the lab is there."""
    return owns_cgroup(layout) or any(folder.is_own for folder in folders(layout))


def remove(layout: Layout) -> None:
    """Remove everything of the lab; what is gone already is fine.

    Raises: TimeoutError when a process does not end; RuntimeError, OSError when the kernel refuses.
    """
    own = [folder for folder in folders(layout) if folder.is_own]
    if owns_cgroup(layout):
        cgroup.kill(layout.cgroup)
    keyring.forget_all(keyring.scope(layout.places.prefix))
    _unmount_below([folder.path / entry for folder in own for entry in folder.entries])
    if owns_cgroup(layout):
        for name in _namespaces(layout):
            netns.delete(name)
        for child in cgroup.children(layout.cgroup):
            if child != layout.lab_cgroup:
                cgroup.remove(child)
        cgroup.remove(layout.cgroup)
    for folder in own:
        _remove_entries(folder)


def remove_node(layout: Layout, node: str) -> None:
    """Remove a node with all that is on it.

    Raises: TimeoutError when a process does not end; RuntimeError, OSError when the kernel refuses.
    """
    places, own = layout.places.node(node), layout.node_cgroup(node)
    cgroup.kill(own)
    keyring.forget_all(keyring.scope(layout.places.prefix, node))
    _unmount_below([places.run])
    if own.is_dir():
        fabric.delete_node(layout, node)
    for folder in (places.run, places.state, layout.process_log(node, "_").parent):
        shutil.rmtree(folder, ignore_errors=True)
    layout.standing(node).unlink(missing_ok=True)
    cgroup.remove(own)


def remove_pod(layout: Layout, node: str, pod: str) -> None:
    """Remove the pod `namespace/name` from a node.

    Raises: TimeoutError when a process does not end; RuntimeError, OSError when the kernel refuses.
    """
    own = layout.pod_cgroup(node, pod)
    cgroup.kill(own)
    if own.is_dir():
        fabric.delete_pod(layout, node, pod)
    for folder in (layout.pod_run(pod), layout.pod_volumes(pod), layout.container_log(pod, "_").parent):
        shutil.rmtree(folder, ignore_errors=True)
    cgroup.remove(own)


def nodes(layout: Layout) -> list[str]:
    """The nodes that are there."""
    return [path.name for path in cgroup.children(layout.cgroup) if not path.name.startswith(".")]


def pods_of_node(layout: Layout, node: str) -> list[str]:
    """The pods `namespace/name` that are on a node."""
    return [path.name.replace(".", "/", 1) for path in cgroup.children(layout.pods_cgroup(node))]


def _namespaces(layout: Layout) -> list[str]:
    """Pods' namespaces before their nodes'. Whoever has one has a cgroup: names alone would be no proof."""
    pods = [layout.pod_netns(node, pod) for node in nodes(layout) for pod in pods_of_node(layout, node)]
    underlay = [layout.control_netns, layout.fabric_netns] if layout.control_cgroup.is_dir() else []
    return [*pods, *map(layout.node_netns, nodes(layout)), *underlay]


def _unmount_below(entries: Sequence[Path]) -> None:
    starts = tuple(f"{entry}/" for entry in entries)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    for target in sorted((one for one in targets if one.startswith(starts)), reverse=True):
        detach(target)


def _remove_entries(folder: Folder) -> None:
    *others, last = (folder.path / entry for entry in folder.entries)
    for path in (*others, *(child for child in last.iterdir() if child != folder.proof), folder.proof, last):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not os.listdir(folder.path) and not os.path.ismount(folder.path):
        folder.path.rmdir()
