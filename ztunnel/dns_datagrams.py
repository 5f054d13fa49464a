"""A pod's DNS over UDP: a question a datagram."""

import logging
import socket

from ztunnel.dns_client import MAX_QUERY_BYTES, PAUSE_S, Reply, Server
from ztunnel.loop import Loop

_REST = 256
"""Datagrams that a socket takes before it is closed: a default buffer holds about as many."""
_log = logging.getLogger("dns")


class DNSDatagrams:
    """Owns its socket, which all workers share."""

    def __init__(self, loop: Loop, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._loop = loop
        self._sock = sock
        self._sock.setblocking(False)
        self._open = True
        self._watch()

    def _watch(self) -> None:
        if self._open:
            self._loop.watch_shared(self._sock.fileno(), self)

    def on_event(self, _events: int) -> None:
        """Questions wait, unless another worker was faster."""
        if not self._server.has_time():
            self._loop.forget(self._sock.fileno())
            self._loop.call_at(self._loop.now + PAUSE_S, self._watch)
        elif self._loop.may_look_up():
            self._take()
        else:
            self._loop.rota.add(self._server, self)

    def go_on(self) -> None:
        """See ztunnel.rota.Continued."""
        self._take()

    def take_rest(self) -> None:
        """Answer what has arrived, in one go."""
        for _ in range(_REST):
            if not self._take():
                return

    def _take(self) -> bool:
        if not self._open:
            return False
        try:
            wire, peer = self._sock.recvfrom(MAX_QUERY_BYTES)
        except OSError:  # nothing more; or word that an earlier answer found nobody
            return False
        self._server.take(wire, "udp", self._replier(peer))
        return True

    def _replier(self, peer: object) -> Reply:
        def reply(message: bytes) -> None:
            if self._open:
                try:
                    self._sock.sendto(message, peer)  # type: ignore[call-overload]
                except OSError as error:  # who asked is gone, or does not read
                    _log.debug("an answer was not taken: %s", error)

        return reply

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler: the socket is not given up for one bad message."""

    def close(self) -> None:
        """Give the socket back."""
        if self._open:
            self._open = False
            self._loop.forget(self._sock.fileno())
            self._sock.close()
