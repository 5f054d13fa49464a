"""Outgoing connections: sockets made inside a pod's network namespace, marked, and connected without waiting."""

import _socket
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from random import random
from typing import Protocol, cast

from mesh.workload import Address
from wire.netns import entered, port_bounds
from ztunnel.channel import Flag
from ztunnel.closing import reset_on_close
from ztunnel.loop import OUT, Deadlines, Loop
from ztunnel.source_ports import SourcePorts, reserved_ports
from ztunnel.tuning import Tuning

# Not in Python's socket module.
_IP_TRANSPARENT, _IP_BIND_ADDRESS_NO_PORT = 19, 24
_IPV6_TRANSPARENT = 75
_SO_ORIGINAL_DST = 80
Socket = cast("type[socket.socket]", _socket.socket)
"""Without the class in Python around it, which makes numbers into enumerations: 4 us of each connection."""
STOCK = 8
"""Sockets that are made at a time."""
_TRIES = 4
"""Ports that one connection is tried from: those of `source_ports`, then the kernel's."""
_PORTS = Path("/proc/sys/net/ipv4")
"""Of the namespace of who looks."""
_log = logging.getLogger("ztunnel.worker")


class Owner(Protocol):
    """Who wants a connection."""

    def connected(self, sock: socket.socket) -> None:
        """It is there; the owner has the socket now."""

    def not_connected(self, flag: Flag, error: str) -> None:
        """It is not, and will not be."""


class Netns:
    """A pod's network namespace, where its sockets are born.

    Where one is wanted after the other they are made ahead, a few at a time: entering a namespace and leaving it again costs as
    much as making a socket, and its options as much again, and no connection waits for it.
    """

    def __init__(self, loop: Loop, fd: int, home_fd: int, mark: int, tuning: Tuning) -> None:
        self._loop = loop
        self.fd = fd
        self._home_fd = home_fd
        self._mark = mark
        self._tuning = tuning
        self._warned = False
        self._ports: SourcePorts | None = None
        self._stock: dict[tuple[int, bool], list[socket.socket]] = {}
        self._taken: set[tuple[int, bool]] = set()
        """Of which kinds since the last `release_idle`."""
        self._closed = False

    def make_socket(self, family: int, source: str | None) -> socket.socket:
        """A non-blocking TCP socket; with a `source`, bound to that address although it may be another host's.

        A source that cannot be had costs the address, not the connection, as in Istio's ztunnel.
        """
        kind = family, source is not None
        stock = self._stock.get(kind)
        if not stock:
            stock = self._stock[kind] = self._make(family, STOCK if kind in self._taken else 1, self._prepare(kind))
        sock = stock.pop()
        if kind not in self._taken:
            self._taken.add(kind)
        elif not stock:
            self._loop.afterwards.append((partial(self._restock, kind), self))
        if source is None:
            return sock
        try:
            self._bind(sock, source)
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warning("cannot keep the source address %s (nor others in this pod): %s", source, error)
        return sock

    def remake_socket(self, family: int, source: str | None) -> socket.socket:
        """Another one, since the last one's port is in use between the same ends."""
        if self._ports is not None:
            self._ports.clash()
        return self.make_socket(family, source)

    def _bind(self, sock: socket.socket, host: str) -> None:
        ports = self._ports
        if ports is None:
            ports = self._ports = self._look_up_ports()
        while port := ports.take():
            try:
                sock.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                ports.clash()
            else:
                return
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)  # the kernel's need be unique for one destination, too
        sock.bind((host, 0))

    def _look_up_ports(self) -> SourcePorts:
        with entered(self.fd, self._home_fd):
            bounds, reserved = (_PORTS / "ip_local_port_range").read_text(), (_PORTS / "ip_local_reserved_ports").read_text()
        return SourcePorts(port_bounds(bounds), reserved_ports(reserved), random())

    def make_socket_of(self, family: int, kind: int) -> socket.socket:
        """See ztunnel.dns_upstream.Origin."""
        return self._make(family, 1, None, kind)[0]

    def _make(
        self, family: int, count: int, prepare: Callable[[socket.socket], None] | None, kind: int = socket.SOCK_STREAM
    ) -> list[socket.socket]:
        made: list[socket.socket] = []
        try:
            with entered(self.fd, self._home_fd):
                for _ in range(count):  # each is in the list, to be closed, before the next can fail
                    made += [Socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)]
            for sock in made:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
                if prepare is not None:
                    prepare(sock)
        except OSError:
            for sock in made:
                sock.close()
            raise
        return made

    def _prepare(self, kind: tuple[int, bool]) -> Callable[[socket.socket], None]:
        return _set_foreign_options if kind[1] else partial(set_tcp_options, tuning=self._tuning)

    def _restock(self, kind: tuple[int, bool]) -> None:
        if not self._closed and not self._stock.get(kind):
            with suppress(OSError):  # who needs one will find out
                self._stock[kind] = self._make(kind[0], STOCK, self._prepare(kind))

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Crashing."""
        _log.error("no sockets were made ahead: %s", error)

    def release_idle(self) -> None:
        """Give back the stock from which nothing was taken since the last call."""
        self._give_back(self._stock.keys() - self._taken)
        self._taken.clear()

    def _give_back(self, kinds: set[tuple[int, bool]]) -> None:
        for kind in kinds:
            for sock in self._stock.pop(kind):
                sock.close()

    def close(self) -> None:
        """Give everything back."""
        self._closed = True
        self._give_back(set(self._stock))
        os.close(self.fd)


def _set_foreign_options(sock: socket.socket) -> None:
    """For a connection to an application in the pod, whose end the kernel knows, from an address that may not be here."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reset_on_close(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports need only be unique for one destination
    level, option = (
        (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT) if sock.family == socket.AF_INET6 else (socket.IPPROTO_IP, _IP_TRANSPARENT)
    )
    try:
        sock.setsockopt(level, option, 1)
    except OSError as error:  # then only local addresses can be bound, and the first other one is reported
        _log.debug("no transparent sockets: %s", error)


def set_tcp_options(sock: socket.socket, tuning: Tuning) -> None:
    """What every connection gets; a listener hands it on to what it accepts."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tuning.keepalive_s:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, tuning.keepalive_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, tuning.keepalive_interval_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, tuning.keepalive_probes)
    if tuning.user_timeout_s:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, tuning.user_timeout_s * 1000)


class Dial:
    """One connection in the making; owns its socket until it hands it over."""

    __slots__ = ("_deadlines", "_loop", "_owner", "_remake", "_sock", "_where")

    def __init__(
        self,
        loop: Loop,
        deadlines: Deadlines,
        owner: Owner,
        sock: socket.socket,
        where: tuple[str, int],
        remake: Callable[[], socket.socket] | None = None,
    ) -> None:
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
        self._owner.not_connected(
            "NETWORK_POLICY",
            f"connection timed out, maybe a NetworkPolicy is blocking port {port} of {host}",
        )

    def _fail(self, error: int) -> None:
        self.cancel()
        self._owner.not_connected("CONNECT", f"connection failed: {os.strerror(error)} (os error {error})")

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
