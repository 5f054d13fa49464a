"""One TCP client of a pod's DNS: messages with two bytes of length before each, any number of them (RFC 7766)."""

import socket
import struct
from collections.abc import Callable
from typing import Literal, Protocol

from ztunnel.dns_message import MAX_BYTES
from ztunnel.loop import ERROR, HANGUP, IN, OUT
from ztunnel.node import Node

MAX_CLIENTS = 64
"""Of one pod in one worker; the one that has been silent for longest makes room."""
_MAX_WAITING_BYTES = 2 * MAX_BYTES
_READ_BYTES = 256
"""Five questions or so: then others get their turn."""
PAUSE_S = 0.01
"""A socket that asked for too much is left alone for so long: a default buffer holds what 20,000 questions a second bring."""
MAX_QUERY_BYTES = 4096
"""Longer messages are no questions."""
Reply = Callable[[bytes], None]


class Server(Protocol):
    """Who answers."""

    def take(self, wire: bytes, protocol: Literal["udp", "tcp"], reply: Reply) -> bool:
        """Answer one message, once; False: not at all."""

    def has_time(self) -> bool:
        """Whether more is to be heard now; else what comes waits for PAUSE_S where it is."""

    def heard(self, client: "DNSClient") -> None:
        """A client said something."""

    def gone(self, client: "DNSClient") -> None:
        """It closed."""


class DNSClient:
    """Owns its socket. Closed when it is silent for DNS_IDLE_S, reads nothing, or sends what is too long to be a question."""

    def __init__(self, node: Node, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._node = node
        self._sock = sock
        self._in = bytearray()
        self._out = bytearray()
        self._open = True
        self._ended = self._paused = False
        self._unanswered = 0
        self._node.loop.watch(sock.fileno(), IN, self)
        self._touch()

    def _touch(self) -> None:
        self._node.dns_idle.add(self, self._node.loop.now, self.close)

    def on_event(self, events: int) -> None:
        """See ztunnel.loop.Handler."""
        try:
            if events & (ERROR | HANGUP):
                self.close()
            if events & OUT and self._open:
                self._touch()  # it reads, however slowly
                self._flush()
        except OSError:
            self.close()
        if events & IN and self._open:
            if not self._server.has_time():
                self._pause(True)
                self._node.loop.call_at(self._node.loop.now + PAUSE_S, lambda: self._pause(False))
            elif self._node.loop.may_look_up():
                self.go_on()
            else:
                self._node.loop.rota.add(self._server, self)

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        self._watch()

    def go_on(self) -> None:
        """See ztunnel.rota.Continued."""
        try:
            if self._open and not self._ended:
                self._read()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def _read(self) -> None:
        part = self._sock.recv(_READ_BYTES)
        if not part:
            self._ended = True
            self._watch()
            self._close_when_done()
            return
        self._in += part
        while self._open and len(self._in) >= 2:
            size = self._in[0] << 8 | self._in[1]
            if size > MAX_QUERY_BYTES:
                self.close()
                return
            if len(self._in) < 2 + size:
                return
            wire = bytes(self._in[2 : 2 + size])
            del self._in[: 2 + size]
            self._touch()
            self._server.heard(self)
            self._unanswered += 1
            if not self._server.take(wire, "tcp", self._reply):
                self._unanswered -= 1

    def _reply(self, message: bytes) -> None:
        if not self._open:
            return
        self._unanswered -= 1
        self._out += struct.pack("!H", len(message)) + message
        self._touch()
        try:
            self._flush()
        except OSError:
            self.close()
        if len(self._out) > _MAX_WAITING_BYTES:
            self.close()

    def _flush(self) -> None:
        while self._out:
            try:
                del self._out[: self._sock.send(self._out)]
            except BlockingIOError:
                break
        self._watch()
        self._close_when_done()

    def _watch(self) -> None:
        if self._open:
            self._node.loop.modify(self._sock.fileno(), (0 if self._ended or self._paused else IN) | (OUT if self._out else 0))

    def _close_when_done(self) -> None:
        """A client that said its last still gets its answers."""
        if self._ended and self._unanswered <= 0 and not self._out:
            self.close()

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""
        self.close()

    def close(self) -> None:
        """End it."""
        if self._open:
            self._open = False
            self._node.dns_idle.discard(self)
            self._node.loop.forget(self._sock.fileno())
            self._sock.close()
            self._server.gone(self)
