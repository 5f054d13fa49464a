"""Sockets inside other network namespaces.

A socket belongs to the namespace in which its thread was when it was made, for ever. So the calling thread enters, makes the
socket and returns at once. Python 3.11 has no os.setns: libc's is called. Needs CAP_SYS_ADMIN.
"""

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71  # Linux 5.14
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot enter the network namespace: {os.strerror(error)}")


@contextmanager
def entered(netns_fd: int, home_fd: int) -> Iterator[None]:
    """Run the body with the calling thread inside `netns_fd`, and bring the thread back to `home_fd`.

    The body makes sockets and nothing that lasts or waits. When the way back fails the process ends: a thread astray in
    somebody's namespace would make every later socket there.
    """
    _setns(netns_fd)
    try:
        yield
    finally:
        if _libc.setns(home_fd, _CLONE_NEWNET) != 0:
            os.abort()


def open_home() -> int:
    """A descriptor of the calling thread's own network namespace, for `entered`."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def netns_id(netns_fd: int) -> tuple[int, int]:
    """What makes a namespace the same one: (st_dev, st_ino) of its file."""
    status = os.fstat(netns_fd)
    return status.st_dev, status.st_ino


def netns_cookie(netns_fd: int, home_fd: int) -> int:
    """The kernel's never-reused number of a namespace (SO_NETNS_COOKIE, Linux 5.14), as bpf_get_netns_cookie reports it."""
    with entered(netns_fd, home_fd):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with sock:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")


def port_bounds(text: str) -> tuple[int, int]:
    """The first and the last of `ip_local_port_range`; the kernel's own default where that says nothing sensible."""
    try:
        low, high = (int(word) for word in text.split())
    except ValueError:
        low, high = 0, 0
    return (low, high) if 0 < low <= high < 65536 else (32768, 60999)
