"""The sockets of a pod's DNS proxy: UDP and TCP on its loopback addresses.

A pod whose port is taken is served all the same, without DNS until the port is free: its connections do not depend on it, and
one pod's oddity must not keep a node from being ready (which is what happens to Istio's ztunnel).
"""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress

_BACKLOG = 128
_IPV6_OFF = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"


def open_dns_sockets(places: Sequence[tuple[str, int]], mark: int, shared: bool = True) -> tuple[list[socket.socket], str]:
    """Open what can be opened in the calling thread's namespace; returns also what is wrong, in words, or nothing.

    `shared`: a successor may bind beside its predecessor that drains.
    IPv6 addresses are passed over where the namespace has no IPv6 on its loopback.
    """
    opened: list[socket.socket] = []
    trouble = []
    for address, port in places:
        if address == "::1" and not has_ipv6_loopback():
            continue
        here: list[socket.socket] = []
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                here.append(_open(address, port, kind, mark, shared))  # noqa: PERF401  what is open is closed when the next fails
        except OSError as error:
            for sock in here:
                sock.close()
            where = f"[{address}]" if ":" in address else address
            trouble.append(f"{where}:{port}: {os.strerror(error.errno or 0)}")
        else:
            opened += here
    return opened, "; ".join(trouble)


def has_ipv6_loopback() -> bool:
    """Whether the calling thread's namespace has ::1."""
    try:
        with open(_IPV6_OFF, encoding="ascii") as file:
            return file.read().strip() == "0"
    except FileNotFoundError:  # the kernel has none
        return False


def _open(address: str, port: int, kind: int, mark: int, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
