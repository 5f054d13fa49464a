"""Proxies' sockets in pods that the kernel did not see begin: made known from the descriptors of the processes that have them.

sockops registers a listener at listen(), and a socket is tagged when it is made; of each the kernel tells once. A map that was
made anew, or programs that care for a port which older ones let be, know nothing of a proxy that runs already: its pods would
be refused, or their names not answered by it, until it was restarted.
"""

import ctypes as ct
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from bpf.layout import PORT_DNS, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND, ListenerKey, Role, Tag
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


def register(maps: Mapping[str, Map], processes: Iterable[int]) -> int:
    """Make these processes' listeners and DNS sockets in pods known; whoever is registered already stays.

    The processes are proxies', whom the caller trusts. Needs what ptrace needs. Those that end meanwhile have nothing.

    Returns: how many were made known.
    """
    wanted, count = missing(maps["pods"], maps["listeners"]), 0
    for process in sorted(processes):
        for sock in _sockets(process):
            with sock:
                key = _key(sock)
                if bytes(key) in wanted:
                    with suppress(FileExistsError):  # another proxy began to listen meanwhile
                        maps["listeners"].put(bytes(key), sock.fileno().to_bytes(8, "little"), _NO_EXIST)
                    wanted.remove(bytes(key))
                    count += 1
                elif key.port == PORT_DNS and maps["pods"].get(key.netns.to_bytes(8, "little")):
                    count += _tag(maps["sockets"], sock)
    return count


def _key(sock: socket.socket) -> ListenerKey:
    """Where a listener, or a socket for datagrams, is; zeros for what is neither."""
    listens = sock.family in (socket.AF_INET, socket.AF_INET6) and (
        sock.proto == socket.IPPROTO_UDP
        or (sock.proto == socket.IPPROTO_TCP and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )
    if not listens:
        return ListenerKey()
    port = sock.getsockname()[1]
    if sock.proto == socket.IPPROTO_UDP and port != PORT_DNS:
        return ListenerKey()
    return ListenerKey(int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little"), port)


def _tag(sockets: Map, sock: socket.socket) -> bool:
    fd = sock.fileno().to_bytes(4, "little")
    if sockets.get(fd) is not None:
        return False
    sockets.put(fd, bytes(Tag(role=Role.PROXY)))
    return True


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
