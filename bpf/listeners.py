"""Proxies' listeners that the kernel did not see begin: registered from the descriptors of the processes that have them.

sockops registers a listener at listen(), which the kernel tells once of a socket. A `listeners` map that was made anew, or
programs that steer a port which older ones let be, know nothing of a proxy that listens already: its pods would be refused
until it was restarted.
"""

import ctypes as ct
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress

from bpf.layout import PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND, ListenerKey
from bpf.libbpf import Map

PORTS = (PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE)
_SO_NETNS_COOKIE = 71
_SYS_PIDFD_GETFD = 438
_NO_EXIST = 1
_libc = ct.CDLL(None, use_errno=True)


def missing(pods: Map, listeners: Map) -> set[bytes]:
    """Keys of `listeners` that are not there, of every pod that is."""
    wanted = {bytes(ListenerKey(int.from_bytes(cookie, "little"), port)) for cookie in pods.keys() for port in PORTS}  # noqa: SIM118
    return wanted.difference(listeners.keys())


def register(listeners: Map, wanted: set[bytes], processes: Iterable[int]) -> int:
    """Register the listeners of these processes, as far as they are wanted; whoever is registered already stays.

    The processes are proxies', whom the caller trusts. Needs what ptrace needs. Those that end meanwhile have nothing.

    Returns: how many were registered.
    """
    left = set(wanted)
    for process in sorted(processes):
        for sock in _sockets(process) if left else ():
            with sock:
                key = _key(sock)
                if key in left:
                    with suppress(FileExistsError):  # another proxy began to listen meanwhile
                        listeners.put(key, sock.fileno().to_bytes(8, "little"), _NO_EXIST)
                    left.remove(key)
    return len(wanted) - len(left)


def _key(sock: socket.socket) -> bytes:
    """Where a listener would be registered; empty for what is no TCP listener of a proxy."""
    tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto == socket.IPPROTO_TCP
    if not tcp or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return b""
    cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    return bytes(ListenerKey(cookie, sock.getsockname()[1]))


def _sockets(process: int) -> Iterator[socket.socket]:
    """Duplicates of a process's sockets, one at a time."""
    try:
        pidfd = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        for name in _descriptors(process):
            fd = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, int(name), 0)
            if fd >= 0:
                yield socket.socket(fileno=fd)
            elif ct.get_errno() == 1:  # EPERM: not this one alone
                raise PermissionError(f"the listeners of process {process} may not be looked at: CAP_SYS_PTRACE is missing")
    finally:
        os.close(pidfd)


def _descriptors(process: int) -> Iterator[str]:
    """Numbers of those that are sockets."""
    folder = f"/proc/{process}/fd"
    try:
        for name in os.listdir(folder):
            if os.readlink(f"{folder}/{name}").startswith("socket:"):
                yield name
    except (FileNotFoundError, ProcessLookupError):
        return  # closed, or ended, under our eyes
