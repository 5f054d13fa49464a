"""Questions to the nameservers: over UDP, again, to the next server, over TCP where an answer is cut.

Each attempt has a socket of its own, connected (so that the kernel drops what others send) from a port and with an id that
nobody can guess; an answer must repeat the question. A server that cannot answer (refused, SERVFAIL) is followed by the next
one at once; one that is silent, after TIMEOUT_S. One that cannot read a question with EDNS hears it without (RFC 6891, 7).
"""

import errno
import socket
import struct
from collections.abc import Callable
from secrets import randbelow
from typing import Protocol

from mesh.workload import Address
from ztunnel.dns_message import FORMERR, NOERROR, NOTIMP, NXDOMAIN, DNSError, Question
from ztunnel.dns_response import Response, Wishes, ask, read_response
from ztunnel.loop import IN, OUT, Deadlines, Loop
from ztunnel.nameservers import Nameservers

TIMEOUT_S = 2.0
ROUNDS = 2
"""How often each server is asked."""
PORT = 53
PAYLOAD_BYTES = 1232
"""What we take over UDP (DNS flag day 2020); longer answers come over TCP."""
MAX_EXCHANGES = 1024
"""Questions under way in one worker."""
PLAIN = Wishes()
_MAX_STRAYS = 16
"""Datagrams that answer something else, per attempt: then somebody guesses, and the next attempt has other numbers."""


class Origin(Protocol):
    """Where questions leave from."""

    def make_socket_of(self, family: int, kind: int) -> socket.socket:
        """A marked, non-blocking socket."""


class Home:
    """The proxy's own namespace."""

    def __init__(self, mark: int) -> None:
        self._mark = mark

    def make_socket_of(self, family: int, kind: int) -> socket.socket:
        """See Origin. Without the privilege to mark, unmarked: nobody captures the proxy's own namespace."""
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        except OSError as error:
            if error.errno != errno.EPERM:
                sock.close()
                raise
        return sock


class Upstream:
    """One per worker: the servers, and all questions that are under way."""

    def __init__(
        self, loop: Loop, nameservers: Nameservers, home: Origin, port: int = PORT, timeout_s: float = TIMEOUT_S
    ) -> None:
        """`home`: where the file is that names the servers."""
        self.loop = loop
        self.home = home
        self.port = port
        self.deadlines = Deadlines(timeout_s)
        self._nameservers = nameservers
        self.under_way: dict[Exchange, None] = {}

    def servers(self) -> tuple[Address, ...]:
        """Whom to ask."""
        return self._nameservers.current(self.loop.now)

    def ask(self, origin: Origin, question: Question, done: "Done", wishes: Wishes = PLAIN) -> "Exchange | None":
        """Ask; `done` is called once, later. None when too much is under way: then it is not called."""
        if len(self.under_way) >= MAX_EXCHANGES:
            return None
        exchange = Exchange(self, origin, question, done, wishes)
        self.under_way[exchange] = None
        self.loop.call_at(self.loop.now, exchange.start)
        return exchange


Done = Callable[[Response | None, str], None]
"""(answer, reason): None with the reason when no server answered; else what the best one said, error codes included."""


class Exchange:
    """One question, until it is answered or given up."""

    def __init__(self, upstream: Upstream, origin: Origin, question: Question, done: Done, wishes: Wishes) -> None:
        self._upstream = upstream
        self._origin = origin
        self._question = question
        self._done: Done | None = done
        self._wishes = wishes
        self._plan = list(upstream.servers()) * ROUNDS
        self._place = -1
        self._sock: socket.socket | None = None
        self._over_tcp = False
        self._in_plain = False
        """Without EDNS, though it was wished for."""
        self._id = 0
        self._strays = 0
        self._out = b""
        self._in = bytearray()
        self._best: Response | None = None
        self._reason = "no nameserver is known"

    def start(self) -> None:
        """Ask the first server."""
        if self._done is not None:
            self._next()

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        self._done = None
        self._release()
        self._upstream.under_way.pop(self, None)

    def _finish(self, response: Response | None) -> None:
        done = self._done
        self.cancel()
        if done is not None:
            done(response, "" if response else self._reason)

    def _next(self) -> None:
        """Ask the next server, or be done with the best there was."""
        self._release()
        self._place += 1
        if self._place >= len(self._plan):
            self._finish(self._best)
            return
        self._in_plain = False
        self._attempt(over_tcp=False)

    def _attempt(self, over_tcp: bool) -> None:
        server = self._plan[self._place]
        self._over_tcp = over_tcp
        self._id = randbelow(65536)
        self._strays = 0
        wishes = self._wishes._replace(edns=False) if self._in_plain else self._wishes
        message = ask(self._id, self._question, PAYLOAD_BYTES, wishes)
        family = socket.AF_INET if server.version == 4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM
        # An interface that is named with a server (fe80::1%eth0) is one of those beside the file.
        origin = self._upstream.home if server.version == 6 and server.scope_id else self._origin
        try:
            sock = self._sock = origin.make_socket_of(family, kind)
            error = sock.connect_ex((str(server), self._upstream.port))
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, "cannot reach it")
            if over_tcp:
                self._out = struct.pack("!H", len(message)) + message
                self._in.clear()
            else:
                sock.send(message)
        except OSError as failure:
            self._fail(f"nameserver {server}: {failure.strerror}")
            return
        loop = self._upstream.loop
        self._upstream.deadlines.add(self, loop.now, lambda: self._fail(f"nameserver {server} does not answer"))
        loop.watch(sock.fileno(), OUT if over_tcp else IN, self)

    def _fail(self, reason: str) -> None:
        """This attempt came to nothing; a timer of the loop starts the next, so that many servers are no deep stack."""
        self._release()
        self._reason = reason
        self._upstream.loop.call_at(self._upstream.loop.now, self._resume)

    def _resume(self) -> None:
        if self._done is not None and self._sock is None:
            self._next()

    def on_event(self, _events: int) -> None:
        """See ztunnel.loop.Handler."""
        loop = self._upstream.loop
        if loop.may_look_up():
            self.go_on()
        else:
            loop.rota.add(self._origin, self)

    def go_on(self) -> None:
        """See ztunnel.rota.Continued."""
        sock = self._sock
        if sock is None:
            return
        try:
            if self._over_tcp:
                self._on_stream(sock)
            else:
                self._on_datagram(sock)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"nameserver {self._plan[self._place]}: {error.strerror}")

    def _on_datagram(self, sock: socket.socket) -> None:
        message = sock.recv(65536)
        try:
            self._take(read_response(message, self._id, self._question))
        except DNSError as error:
            self._strays += 1
            if self._strays >= _MAX_STRAYS:
                self._fail(f"nameserver {self._plan[self._place]} answers something else: {error}")

    def _on_stream(self, sock: socket.socket) -> None:
        if self._out:
            self._out = self._out[sock.send(self._out) :]
            if not self._out:
                self._upstream.loop.modify(sock.fileno(), IN)
            return
        part = sock.recv(65536)
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "closed the connection")
        self._in += part
        if len(self._in) < 2 or len(self._in) < 2 + int.from_bytes(self._in[:2], "big"):
            return
        try:
            self._take(read_response(bytes(self._in[2 : 2 + int.from_bytes(self._in[:2], "big")]), self._id, self._question))
        except DNSError as error:
            self._fail(f"nameserver {self._plan[self._place]}: {error}")

    def _take(self, response: Response) -> None:
        self._release()
        if response.code in (FORMERR, NOTIMP) and self._wishes.edns and not self._in_plain:
            self._in_plain = True
            self._attempt(self._over_tcp)
        elif response.code not in (NOERROR, NXDOMAIN):
            self._best = self._best or response
            self._fail(f"nameserver {self._plan[self._place]} answers with code {response.code}")
        elif response.truncated and not self._over_tcp:
            self._best = response if self._best is None or self._best.code else self._best
            self._attempt(over_tcp=True)
        else:
            self._finish(response)

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""
        self._reason = f"internal error: {error}"
        self._finish(None)

    def _release(self) -> None:
        sock, self._sock = self._sock, None
        self._upstream.deadlines.discard(self)
        if sock is not None:
            self._upstream.loop.forget(sock.fileno())
            sock.close()
