"""The lab's cgroups: made, emptied, removed. Killing by cgroup reaches every process, whatever it forked."""

import time
from pathlib import Path

_POLL_S = 0.01


def create(path: Path) -> None:
    """Make a cgroup and its parents; one that is there is fine."""
    path.mkdir(parents=True, exist_ok=True)


def children(path: Path) -> list[Path]:
    """The cgroups right below it, by name."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def populated(path: Path) -> bool:
    """Whether any process is in it or below."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text()
    except FileNotFoundError:
        return False


def processes(path: Path) -> list[int]:
    """The processes that are in it itself."""
    try:
        return [int(line) for line in (path / "cgroup.procs").read_text().split()]
    except (FileNotFoundError, OSError):
        return []


def kill(path: Path, timeout_s: float = 60.0) -> None:
    """Kill every process in it and below, and wait until they are gone (cgroup.kill, Linux 5.14).

    Raises: TimeoutError naming it when one stays, in an uninterruptible state.
    """
    try:
        (path / "cgroup.kill").write_text("1")
    except FileNotFoundError:
        return
    until = time.monotonic() + timeout_s
    while populated(path):
        if time.monotonic() > until:
            raise TimeoutError(f"processes in {path} do not end: {processes(path)}")
        time.sleep(_POLL_S)


def remove(path: Path) -> None:
    """Remove an empty cgroup with all below; none is fine. What is attached to it goes with it.

    Raises: OSError when a process is left.
    """
    if not path.is_dir():
        return
    for child in children(path):
        remove(child)
    path.rmdir()
