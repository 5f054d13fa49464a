"""A plain socket on one side, a stream of a tunnel on the other: the pump of HBONE.

The narrow interface that everything above sees, shared with ztunnel.passthrough: two ends are given, bytes move, `sent` and
`received` count them (sent: from the plain socket), the owner hears one `ended`; `abort` ends it from outside.

Back-pressure both ways: what the application sends is read only while both windows are open and the tunnel's queue is short;
what it does not take waits here, up to the stream's window, and reopens windows only once it has left. Half-close both ways:
an application's FIN becomes END_STREAM and the other way round. Resets both ways: an application's RST becomes RST_STREAM
CANCEL, and any RST_STREAM but NO_ERROR becomes a RST.

Bytes that an application sends at once may travel behind its request, before the answer, up to EARLY_BYTES of the window that
is known then: that saves a new connection one round trip between nodes. They go to a peer that has proved its identity, and
stop there when it refuses. One that said nothing lately may be gone: they wait for its answer, and go another way without it.
"""

from socket import SHUT_WR, socket

from ztunnel import buffers
from ztunnel.backlog import Backlog
from ztunnel.closing import end_on_close, undelivered_bytes
from ztunnel.connection_record import Flag
from ztunnel.fields import Fields, Repeating
from ztunnel.flow import Stream
from ztunnel.frames import BULK_FRAME_BYTES, DATA, HEADER_BYTES, Code, code_name, frame, header
from ztunnel.hbone import read_status, status_text
from ztunnel.http2 import Connection
from ztunnel.loop import ERROR, HANGUP, IN, OUT, Loop
from ztunnel.outflow import HIGH_WATER
from ztunnel.stream_owner import NOBODY, Owner
from ztunnel.tunnel import Tunnel

EARLY_BYTES = 64 << 10
KEPT_BYTES = 16 << 10
"""Of an application's first bytes, for another attempt where the peer declines; who sends more is tried once."""
_READS_PER_EVENT = 2
"""Others of this worker wait for no more than that; with one, four bulk senders cost 4 % more CPU."""
_FULL_BYTES = 64 << 10
"""A read that brings less has emptied the socket."""
_frame, _frame_view, _payload = buffers.frame, buffers.frame_view, buffers.payload_view
_pack = header.pack_into


class TunnelStream(Stream):
    """One HBONE connection; owns its plain socket, whose close is a reset unless both directions have ended."""

    __slots__ = (
        "_backlog",
        "_eof",
        "_fd",
        "_heard_last",
        "_held",
        "_http",
        "_kept",
        "_loop",
        "_mask",
        "_opening",
        "_sock",
        "closed",
        "owner",
        "received",
        "sent",
        "tunnel",
    )

    def __init__(self, tunnel: Tunnel, owner: Owner) -> None:
        super().__init__()
        self.tunnel = tunnel
        self.owner = owner
        self.sent = self.received = 0
        self.closed = False
        self._http: Connection = tunnel.http
        self._loop: Loop = tunnel.loop
        self._sock: socket | None = None
        self._fd = -1
        self._mask = -1
        """What the socket is watched for; -1: it is not, for now."""
        self._opening = False
        self._held = 0
        self._kept: bytearray | None = None
        self._backlog: Backlog | None = None
        self._eof = False
        self._heard_last = False
        """The peer had the last word: the application's end is no question to anybody."""

    # --- how it starts

    def keep_early(self, early: bytes) -> None:
        """Keep a copy of the application's first bytes until the peer answers; `early` are those that were kept before."""
        self._kept = bytearray(early)

    def request(self, sock: socket, repeating: Repeating, once: bytes, early: bytes = b"") -> None:
        """Ask the peer for a connection on behalf of `sock`'s application, which has sent `early` already."""
        self._http.request(self, repeating, once)
        self._held = max(0, self.window - (EARLY_BYTES if early or self._http.heard_lately(self._loop.now) else 0))
        self.window -= self._held
        self._loop.dirty[self.tunnel] = None
        if early and not self._send_early(early):
            self._sock = sock
            self.abort("CONNECT", "no room in the tunnel for another attempt")
            return
        self.attach(sock, speaks_first=True)

    def _send_early(self, early: bytes) -> bool:
        count = len(early)
        if count > min(self.window, self._http.window, self._http.chunk):
            return False
        self.window -= count
        self._http.window -= count
        self.sent += count
        self.tunnel.send_small(memoryview(frame(DATA, 0, self.sid, early)))
        return True

    def give_back(self) -> tuple[socket, bytes]:
        """End the stream without a word to its owner, who takes the application's socket, and the bytes that came from it."""
        sock, kept = self._sock, self._kept or b""
        assert sock is not None
        self.closed = True
        self.owner = NOBODY
        self._loop.forget(self._fd)
        self._sock, self._kept = None, None
        self._http.reset(self, Code.CANCEL)
        self._loop.dirty[self.tunnel] = None
        return sock, bytes(kept)

    @property
    def is_stuck(self) -> bool:
        """Nothing of it has moved, and its tunnel is full."""
        http = self._http
        if self.sent or self.received or self.remote_closed or self._backlog is not None:
            return False
        return http.receive_window <= 0 or (http.window <= 0 and self in http.blocked)

    def leave(self, error: str) -> None:
        """Go another way if one can be had; else end, if there is an error."""
        if not self.owner.declined(self, True) and error and self in self._http.blocked:
            self.abort("-", error)

    def attach(self, sock: socket, speaks_first: bool) -> None:
        """The application's socket is connected: move bytes; look at once for those of an application that speaks first."""
        self._sock, self._fd = sock, sock.fileno()
        self._loop.afterwards.append((self._watch, self))  # nobody has a question yet whose answer could come
        if self._backlog is not None:
            self._flush()
        elif self.remote_closed:
            self._end_of_tunnel()
        if speaks_first and not self.closed:
            self._readable()

    def _watch(self) -> None:
        if self._mask < 0 and not self.closed:
            self._mask = (0 if self._eof else IN) | (0 if self._backlog is None else OUT)
            self._loop.watch(self._fd, self._mask, self)

    def open(self) -> None:
        """Both ends are there: the owner hears of it, after what may be waited for."""
        self._opening = True
        self._loop.afterwards.append((self._tell_opened, self))

    def _tell_opened(self) -> None:
        if self._opening:
            self._opening = False
            self.owner.opened()

    def answer(self, fields: Repeating) -> None:
        """Accept the peer's request."""
        self._http.answer(self, fields)
        self.tunnel.answered(self)

    # --- application -> tunnel

    def on_event(self, events: int) -> None:
        """The application's socket is ready."""
        if events == IN == self._mask:
            self._readable()
            return
        if events & OUT and self._backlog is not None:
            self._flush()
        if events & ~OUT and not self.closed:
            if self._mask & IN:
                self._readable()
            elif events & (ERROR | HANGUP):  # else it was read meanwhile, when a window opened in the same turn
                self._broke(events)

    def _broke(self, events: int) -> None:
        if events & ERROR or (self._eof and not self._is_over):
            self._application_gone()
        elif not self._eof:  # both directions are shut and there is more to read: when windows open, and no spinning until then
            self._loop.forget(self._fd)
            self._mask = -1

    @property
    def _is_over(self) -> bool:
        """Both directions have ended, and all that came has left."""
        return self._eof and self.remote_closed and self._backlog is None

    def _readable(self) -> None:
        http, tunnel, sock = self._http, self.tunnel, self._sock
        assert sock is not None
        reads = _READS_PER_EVENT
        while True:
            room = http.chunk  # the least, as a rule
            if self.window < room:
                room = self.window
            if http.window < room:
                room = http.window
            if room <= 0 or tunnel.queued > HIGH_WATER:
                if self.local_closed:
                    self._discard(sock)
                    return
                self._want(self._mask & ~IN)
                http.blocked[self] = None
                return
            try:
                count = sock.recv_into(_payload, room)
            except BlockingIOError:
                return
            except OSError:
                self._application_gone()
                return
            if not count:
                self._application_ended()
                return
            self.window -= count
            http.window -= count
            self.sent += count
            self._heard_last = False
            if self._kept is not None:
                self._keep_sent(count)
            _pack(_frame, 0, count << 8, 0, self.sid)  # DATA is 0
            if count < BULK_FRAME_BYTES:
                tunnel.send_small(_frame_view[: HEADER_BYTES + count])
                return
            tunnel.send_large(_frame_view[: HEADER_BYTES + count])
            reads -= 1
            if not reads or (count < _FULL_BYTES and count < room):
                return

    def _keep_sent(self, count: int) -> None:
        kept = self._kept
        if kept is not None and len(kept) + count <= KEPT_BYTES:
            kept += _payload[:count]
        else:
            self._kept = None

    def resume(self) -> None:
        """See ztunnel.flow.Stream."""
        if self.closed or self._eof or self._fd < 0:
            return
        if self.window <= 0:  # it is the stream's own window that waits
            self._http.blocked[self] = None
            return
        if self._mask < 0:
            self._watch()
        else:
            self._want(self._mask | IN)
        self._readable()

    def _application_ended(self) -> None:
        self._eof = True
        self.tunnel.end_stream(self, self._heard_last)
        if self._is_over:
            self._loop.afterwards.append((self._over, self))
        else:
            self._want(self._mask & ~IN)

    def _over(self) -> None:
        """Both directions have ended, and all bytes have left."""
        if self._sock is not None:
            end_on_close(self._sock)
        self._finish("-", "")

    def _application_gone(self) -> None:
        """The application's socket broke: its peer learns it, and the log has no error, as that is how programs end."""
        self._http.reset(self, Code.CANCEL)
        self._loop.dirty[self.tunnel] = None
        self._finish("-", "")

    # --- tunnel -> application

    def take(self, data: memoryview) -> int:
        """See ztunnel.flow.Stream."""
        count = 0
        self._heard_last = True
        if self._backlog is None:
            sock = self._sock
            try:
                count = sock.send(data) if sock is not None else 0
            except BlockingIOError:
                pass
            except OSError:
                self._application_gone()
                return len(data)
            self.received += count
            if count == len(data):
                return count
            self._backlog = Backlog(self.tunnel.held)
        self._keep(data[count:])
        return count

    def _keep(self, rest: memoryview) -> None:
        backlog = self._backlog
        assert backlog is not None
        if self.tunnel.held.refuses():
            self._http.discarded(len(rest))
            self.abort(
                "-", "the buffers of its pod or node are full and this application does not read", Code.ENHANCE_YOUR_CALM
            )
            return
        backlog.add(rest)
        if self._fd >= 0:
            self._want(self._mask | OUT)

    def _flush(self) -> None:
        backlog = self._backlog
        if backlog is None or self._sock is None:
            return
        try:
            sent = backlog.send(self._sock.send)
        except OSError:
            self._application_gone()
            return
        if sent:
            self.received += sent
            self._http.delivered(self, sent)
            self.tunnel.send_urgent()
        if backlog.size:
            self._want(self._mask | OUT)
            return
        self._backlog = None
        self._want(self._mask & ~OUT)
        if self.remote_closed:
            self._end_of_tunnel()

    def peer_ended(self) -> None:
        """See ztunnel.flow.Stream."""
        self._heard_last = True
        if self._backlog is None and self._fd >= 0:
            # A client's next request comes with the end of its last connection, and goes first.
            self._loop.afterwards.append((self._end_of_tunnel, self))

    def _end_of_tunnel(self) -> None:
        if self.closed or self._backlog is not None:
            return
        assert self._sock is not None
        if self._eof:
            self._over()
            return
        try:
            self._sock.shutdown(SHUT_WR)
        except OSError:
            self._application_gone()

    def peer_answered(self, fields: Fields) -> None:
        """See ztunnel.flow.Stream."""
        status = read_status(fields)
        if status != 200:
            if status == 503 and self._kept is not None and self.owner.declined(self, False):
                return
            self.abort("CONNECT", f"http status: {status_text(status)}", Code.CANCEL)
            return
        self._kept = None
        self.window += self._held
        self._held = 0
        self.open()
        if self in self._http.blocked:
            self._http.reopened = True

    def peer_reset(self, code: int) -> None:
        """See ztunnel.flow.Stream."""
        if code == Code.REFUSED_STREAM and self._kept is not None and not self.answered and self.owner.declined(self, True):
            return
        self.remote_closed = self.local_closed = True
        if code == Code.NO_ERROR and self.answered and self._fd >= 0:
            self._hear_no_more()
            return
        normal = code in (Code.NO_ERROR, Code.CANCEL) and self.answered
        flag: Flag = "-" if self.answered else "CONNECT"
        self._finish(flag, "" if normal else f"h2 failed: stream reset by peer: {code_name(code)}")

    def _hear_no_more(self) -> None:
        """The peer has said all, and wants to hear no more: what a server said arrives, whatever its client says meanwhile."""
        assert self._sock is not None
        self._eof = self._eof or self._http.server  # clients have no such word: nobody who does not read is kept for one
        if self._backlog is None and (self._eof or not undelivered_bytes(self._sock)):
            self._over()
            return
        self.window = 0
        if self._mask < 0:
            self._watch()
        else:
            self._want(self._mask & ~IN if self._eof else self._mask | IN)
        self._end_of_tunnel()

    def _discard(self, sock: socket) -> None:
        try:
            self._eof = not sock.recv_into(_payload)
        except BlockingIOError:
            return
        except OSError:
            self._application_gone()
            return
        if self._eof:
            self._want(self._mask & ~IN)
        if self._backlog is None and (self._eof or not undelivered_bytes(sock)):
            self._over()

    def connection_lost(self, flag: Flag, error: str) -> None:
        """See ztunnel.flow.Stream."""
        untouched = flag == "-" and self._kept is not None and not self.sent and not self.answered
        if self.closed or (untouched and self.owner.declined(self, True)):
            return
        self._finish(flag, error or "h2 failed: connection closed")

    # --- ends

    def abort(self, flag: Flag, error: str, code: Code = Code.CANCEL) -> None:
        """End both sides now, with resets."""
        if not self.closed:
            self._http.reset(self, code)
            self._loop.dirty[self.tunnel] = None
            self._finish(flag, error)

    def drop(self) -> None:
        """Forget the stream without a word to its owner, who has rejected its request."""
        self.owner = NOBODY
        self._finish("-", "")

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""
        self.abort("-", f"internal error: {error}", Code.INTERNAL_ERROR)

    def _want(self, mask: int) -> None:
        if mask != self._mask and self._mask >= 0:
            self._mask = mask
            self._loop.modify(self._fd, mask)

    def _finish(self, flag: Flag, error: str) -> None:
        if self.closed:
            return
        self.closed = True
        if self._sock is not None:
            self._loop.forget_closing(self._fd)
            self._sock.close()
            self._sock = None
        if self._backlog is not None:
            self._http.discarded(self._backlog.clear())
            self._backlog = None
        self._tell_opened()
        owner, self.owner = self.owner, NOBODY
        owner.ended(flag, error)
