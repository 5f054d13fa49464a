"""Finding a pod's network namespace, and telling whether it is still there.

The agent holds a descriptor of every enrolled pod's namespace, so the namespace itself never vanishes under it; it counts as
gone when nobody else holds it: its path is no longer that namespace, and no process of the pod's cgroup is in it.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from agent.pod import Pod, PodRequest
from wire.netns import netns_cookie, netns_id

_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_CLONE_NEWNET = 0x40000000
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Says nothing about a namespace: who took it for gone would take its pod out of the mesh."""


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find(request: PodRequest, home_fd: int) -> tuple[Pod, int]:
    """Open the namespace of a pod that the runtime announced; the caller owns the descriptor.

    Raises: ValueError when the path is no network namespace, or the node's own.
    """
    fd = _open(request.netns)
    if fd is None:
        raise ValueError(f"pod {request}: {request.netns} is not a network namespace: is the pod's sandbox running?")
    try:
        if netns_id(fd) == netns_id(home_fd):
            raise ValueError(
                f"pod {request}: {request.netns} is the node's own namespace: pods on the host network are not enrolled"
            )
        return Pod(request, netns_id(fd), netns_cookie(fd, home_fd), boot_id()), fd
    except BaseException:
        os.close(fd)
        raise


def find_again(pod: Pod, home_fd: int) -> int | None:
    """Open the namespace of a recorded pod: by its path, else through the processes of its cgroup, else through any process.

    None when it is gone. The cookie decides: inode numbers are used again, cookies are not. Raises: OSError where that
    cannot be told now.
    """
    if pod.boot_id != boot_id():
        return None
    for path in (pod.request.netns, *_process_namespaces(pod)):
        fd = _open(path)
        if fd is None:
            continue
        try:
            if netns_id(fd) == pod.netns_id and netns_cookie(fd, home_fd) == pod.cookie:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    return None


def is_alive(pod: Pod) -> bool:
    """Whether somebody but weft still holds the pod's namespace, or that cannot be told now. Exact as long as the agent holds
    it too."""
    try:
        return any(_id_of(path) == pod.netns_id for path in (pod.request.netns, *_process_namespaces(pod)))
    except OSError:
        return True


def _process_namespaces(pod: Pod) -> Iterator[str]:
    """The namespaces of the pod's processes; of all processes where the pod's cgroup is not known."""
    if pod.request.cgroup:
        pids = _cgroup_processes(Path(pod.request.cgroup))
    else:
        pids = (entry for entry in os.listdir("/proc") if entry.isdigit())
    return (f"/proc/{pid}/ns/net" for pid in pids)


def _cgroup_processes(folder: Path) -> Iterator[str]:
    for path, _, files in os.walk(folder, onerror=_unless_exhausted):
        if "cgroup.procs" in files:
            try:
                yield from Path(path, "cgroup.procs").read_text().split()
            except OSError as error:
                _unless_exhausted(error)
                continue  # went away, or a threaded cgroup whose processes are listed above it


def _unless_exhausted(error: OSError) -> None:
    if error.errno in _EXHAUSTED:
        raise error


def _id_of(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _open(path: str) -> int | None:
    """Open a path if it is a network namespace; nothing else is ever opened. Raises: OSError where that cannot be told now."""
    own = os.stat("/proc/self/ns/net")
    try:
        if os.stat(path).st_dev != own.st_dev:
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        _unless_exhausted(error)
        return None
    if os.fstat(fd).st_dev == own.st_dev and fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET:
        return fd
    os.close(fd)
    return None
