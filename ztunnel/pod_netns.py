"""A pod's network namespace, and the sockets that are made in it: marked, with their options, ahead of time where that pays."""

import _socket
import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import random
from typing import cast

from wire.netns import entered, port_bounds
from ztunnel.closing import reset_on_close
from ztunnel.loop import Loop
from ztunnel.source_ports import SourcePorts, reserved_ports
from ztunnel.tuning import Tuning

# Not in Python's socket module.
_IP_TRANSPARENT, _IP_BIND_ADDRESS_NO_PORT = 19, 24
_IPV6_TRANSPARENT = 75
Socket = cast("type[socket.socket]", _socket.socket)
"""Without the class in Python around it, which makes numbers into enumerations: 4 us of each connection."""
STOCK = 8
"""Sockets that are made at a time."""
_PORTS = Path("/proc/sys/net/ipv4")
"""Of the namespace of who looks."""
_log = logging.getLogger("ztunnel.worker")


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
        self.fd = -1  # of which no socket can be made, whoever gets the number next


def _set_foreign_options(sock: socket.socket) -> None:
    """For a connection to an application in the pod, whose end the kernel knows, from an address that may not be here."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _keep_urgent_bytes(sock)
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
    _keep_urgent_bytes(sock)
    if tuning.keepalive_s:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, tuning.keepalive_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, tuning.keepalive_interval_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, tuning.keepalive_probes)
    if tuning.user_timeout_s:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, tuning.user_timeout_s * 1000)


def _keep_urgent_bytes(sock: socket.socket) -> None:
    """What was sent with MSG_OOB is read in its place among the others; else it would be missing there (RFC 6093 section 6)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
