"""Connections in the making: connected without waiting. And socket addresses as values."""

import errno
import os
import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from mesh.workload import Address
from ztunnel.channel import HBONE
from ztunnel.connection_record import Flag
from ztunnel.loop import OUT, Deadlines, Loop

_SO_ORIGINAL_DST = 80  # not in Python's socket module
_TRIES = 4
"""Ports that one connection is tried from: those of `source_ports`, then the kernel's."""


class Owner(Protocol):
    """Who wants a connection."""

    def connected(self, sock: socket.socket) -> None:
        """It is there; the owner has the socket now."""

    def not_connected(self, flag: Flag, error: str) -> None:
        """It is not, and will not be."""


class Dial:
    """One connection in the making; owns its socket until it hands it over."""

    __slots__ = ("_deadlines", "_failure", "_loop", "_owner", "_remake", "_sock", "_where")

    def __init__(
        self,
        loop: Loop,
        deadlines: Deadlines,
        owner: Owner,
        sock: socket.socket,
        where: tuple[str, int],
        remake: Callable[[], socket.socket] | None = None,
        failure: str = "io error",
    ) -> None:
        """`failure`: what Istio's ztunnel calls it when there is no connection."""
        self._failure = failure
        self._loop = loop
        self._deadlines = deadlines
        self._owner = owner
        self._sock: socket.socket | None = sock
        self._where = where
        self._remake = remake

    def start(self) -> None:
        """Connect. The owner may be called before this returns: within one machine a connection is there at once."""
        sock = self._sock
        assert sock is not None
        error = sock.connect_ex(self._where)
        if error == errno.EADDRNOTAVAIL and self._remake is not None:
            sock, error = self._retry(sock, self._remake)
        if error == errno.EINPROGRESS and not _has_peer(sock):
            self._deadlines.add(self, self._loop.now, self._timed_out)
            self._loop.watch(sock.fileno(), OUT, self)
        elif error in (0, errno.EINPROGRESS):
            self._sock = None
            self._owner.connected(sock)
        else:
            self._fail(error)

    def _retry(self, sock: socket.socket, remake: Callable[[], socket.socket]) -> tuple[socket.socket, int]:
        for _ in range(_TRIES - 1):
            sock.close()
            try:
                sock = self._sock = remake()
            except OSError as error:
                return sock, error.errno or errno.EIO
            if (failed := sock.connect_ex(self._where)) != errno.EADDRNOTAVAIL:
                return sock, failed
        return sock, errno.EADDRNOTAVAIL

    def on_event(self, _events: int) -> None:
        """The connection is there, or refused."""
        sock = self._sock
        if sock is None:
            return
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail(error)
        elif _has_peer(sock):
            self._release()
            self._owner.connected(sock)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        sock = self._sock
        if sock is not None:
            self._release()
            sock.close()

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""
        self.cancel()
        self._owner.not_connected("-", f"internal error: {error}")

    def _timed_out(self) -> None:
        self.cancel()
        host, port = self._where
        what = f"HBONE port {port}" if port == HBONE else f"port {port}"
        self._owner.not_connected("NETWORK_POLICY", f"connection timed out, maybe a NetworkPolicy is blocking {what}: {host}")

    def _fail(self, error: int) -> None:
        self.cancel()
        self._owner.not_connected("CONNECT", f"{self._failure}: {os.strerror(error)} (os error {error})")

    def _release(self) -> None:
        sock, self._sock = self._sock, None
        self._deadlines.discard(self)
        if sock is not None:
            self._loop.forget(sock.fileno())


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


@lru_cache(4096)
def text_of(address: Address) -> str:
    """An address as sockets take it."""
    return str(address)


def endpoint(raw: tuple[str, int] | tuple[str, int, int, int]) -> tuple[Address, int]:
    """A socket address as values; an IPv4 address inside IPv6 is the IPv4 address."""
    return parse_address(raw[0]), raw[1]


@lru_cache(4096)
def parse_address(text: str) -> Address:
    """An address of a socket: without its scope, and IPv4 where it is IPv4."""
    if text.startswith("::ffff:") and "." in text:
        text = text[7:]
    if ":" in text:
        return IPv6Address(socket.inet_pton(socket.AF_INET6, text.partition("%")[0]))
    return IPv4Address(socket.inet_aton(text))


def original_destination(sock: socket.socket) -> tuple[Address, int] | None:
    """Where the peer meant to connect to, as the redirect recorded it: IPv4 is asked first, then IPv6; None: nobody did."""
    try:
        return _meant(sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16))
    except OSError:
        pass
    try:
        return _meant(sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28))
    except OSError:
        return None


@lru_cache(4096)
def _meant(raw: bytes) -> tuple[Address, int]:
    """Read a sockaddr_in, or a sockaddr_in6."""
    if len(raw) == 16:
        _, port, address = struct.unpack_from("!HH4s", raw)
        return IPv4Address(address), port
    _, port, _, packed = struct.unpack_from("!HHL16s", raw)
    found = IPv6Address(packed)
    return found.ipv4_mapped or found, port
