"""Removing a lab, whole, whatever state it is in: nothing but names is needed, no daemon, no record.

Order: processes first (they hold namespaces and mounts), then keys, mounts, namespaces, cgroups, folders. Only what carries the
lab's own prefix is touched, and in its folders only what weft puts there.
"""

import os
import shutil
from pathlib import Path

from lab import cgroup, netns, orphans
from lab.layout import NETNS_FOLDER, Layout
from lab.ledger import load
from lab.syscalls import detach
from wire import keyring

_RUN_ENTRIES = ("lab", "lab.sock", "nodes", "control.sock")
_STATE_ENTRIES = ("lab", "nodes", "control")


def present(layout: Layout) -> bool:
    """Whether anything of the lab is there."""
    folders = (layout.cgroup, layout.run, layout.state)
    return any(folder.exists() for folder in folders) or netns.exists(layout.fabric_netns)


def remove(layout: Layout) -> None:
    """Remove everything of the lab; what is gone already is fine.

    Raises: TimeoutError when a process does not end; RuntimeError, OSError when the kernel refuses.
    """
    names = _nodes(layout)
    cgroup.kill(layout.cgroup)
    keyring.forget_all(keyring.scope(layout.places.prefix))
    _unmount_below(layout.places.run)
    for name in _namespaces(layout, names):
        netns.delete(name)
    cgroup.remove(layout.cgroup)
    _unmount_below(layout.places.state)
    for folder, entries in ((layout.places.run, _RUN_ENTRIES), (layout.places.state, _STATE_ENTRIES)):
        _remove_entries(folder, entries)


def _nodes(layout: Layout) -> list[str]:
    known = set(orphans.nodes(layout))
    try:
        known |= load(layout.ledger).nodes.keys()
    except ValueError:
        pass  # a damaged ledger must not keep the lab from going
    return sorted(known)


def _namespaces(layout: Layout, nodes: list[str]) -> list[str]:
    """Pods' namespaces before their nodes'. A prefix is no proof: a lab `a` must not remove one of `a-b`."""
    present_names = sorted(entry.name for entry in NETNS_FOLDER.iterdir()) if NETNS_FOLDER.is_dir() else []
    own = [layout.node_netns(node) for node in nodes]
    pods = [name for name in present_names if any(name.startswith(f"{node}--") for node in own)]
    return [*pods, *own, layout.control_netns, layout.fabric_netns]


def _unmount_below(folder: Path) -> None:
    start = f"{folder}/"
    targets = [
        line.split()[4].encode().decode("unicode_escape") for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    for target in sorted((one for one in targets if one.startswith(start)), reverse=True):
        detach(target)


def _remove_entries(folder: Path, entries: tuple[str, ...]) -> None:
    for entry in entries:
        path = folder / entry
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if folder.is_dir() and not os.listdir(folder) and not os.path.ismount(folder):
        folder.rmdir()
