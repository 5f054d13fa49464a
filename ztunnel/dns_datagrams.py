"""A pod's DNS over UDP: a question a datagram."""

import logging
import socket

from ztunnel.dns_client import MAX_QUERY_BYTES, Reply, Server
from ztunnel.loop import Loop

_PER_EVENT = 8
"""Datagrams: then others get their turn, some 0.5 ms later."""
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
        self._loop.watch_shared(sock.fileno(), self)

    def on_event(self, _events: int) -> None:
        """Questions wait, unless another worker was faster."""
        self._take(_PER_EVENT)

    def take_rest(self) -> None:
        """Answer what has arrived, in one go."""
        self._take(_REST)

    def _take(self, most: int) -> None:
        for _ in range(most):
            if not self._open:
                return
            try:
                wire, peer = self._sock.recvfrom(MAX_QUERY_BYTES)
            except OSError:  # nothing more; or word that an earlier answer found nobody
                return
            self._server.take(wire, "udp", self._replier(peer))

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
