"""A pod's DNS over UDP: a question a datagram."""

import logging
import socket

from ztunnel.dns_client import MAX_QUERY_BYTES, Reply, Server
from ztunnel.loop import Loop

_PER_EVENT = 32
"""Datagrams: then others get their turn."""
_log = logging.getLogger("dns")


class DNSDatagrams:
    """Owns its socket, which all workers share."""

    def __init__(self, loop: Loop, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._loop = loop
        self._sock = sock
        self._sock.setblocking(False)
        self._open = self._watched = True
        self._loop.watch_shared(sock.fileno(), self)

    def on_event(self, _events: int) -> None:
        """Questions wait, unless another worker was faster."""
        for _ in range(_PER_EVENT):
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

    def stop(self) -> None:
        """Read nothing more; answers still leave."""
        if self._watched:
            self._watched = False
            self._loop.forget(self._sock.fileno())

    def close(self) -> None:
        """Give the socket back."""
        self.stop()
        self._open = False
        self._sock.close()
