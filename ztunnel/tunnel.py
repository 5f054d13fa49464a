"""A tunnel: one HTTP/2 connection over mutual TLS on one socket. The only place where TLS bytes move.

Theory of operation. TLS runs on memory BIOs, so that one receive call brings up to 256 KiB and all records in it are
decrypted before the frames in them are parsed: the application gets one large send instead of one per record. In the other
direction small frames of all streams collect in `http.out`; the loop flushes every dirty tunnel once per turn, in one TLS
write and one send. A large payload goes out at once, its frame header in front of it in the same buffer, so that both fill
whole TLS records.

A turn of the loop belongs to all tunnels. Who sends more frames than the work of one turn (see ztunnel.intake), or begins a
handshake when the turn has moved on enough of them, goes on when its source's turn comes (ztunnel.rota); meanwhile its socket
is not read. A tunnel reads little at once until it has shown that it moves bytes: what is left over stays small.

What the socket does not take waits in a queue; above HIGH_WATER streams stop reading from their applications, and a peer
that makes us queue far beyond that (by asking for answers that it does not read) is dropped.
"""

import ssl
from collections import deque
from functools import partial
from socket import socket

from mesh.identity import Identity
from ztunnel import buffers
from ztunnel.channel import Flag
from ztunnel.client_hello import NO_APPLICATION_PROTOCOL, Hello
from ztunnel.fields import Fields
from ztunnel.flow import NOBODY, Stream
from ztunnel.frames import STREAM_WINDOW, Code, ProtocolError
from ztunnel.http2 import Connection
from ztunnel.limits import Held
from ztunnel.loop import GREETINGS_PER_TURN, IN, OUT, Deadlines, Loop
from ztunnel.tls import PeerRefused, chain_of, names_of, reason_of
from ztunnel.tunnel_owner import Owner
from ztunnel.wreck import Wreck

HIGH_WATER = 1 << 20
_LOW_WATER = HIGH_WATER // 2
_DROP_ABOVE = 8 << 20
_RECORD_BYTES = 16384
PATIENCE_S = 0.001
_SMALL_BYTES = 60_000
_cipher, _plain = buffers.cipher_view, buffers.plain_view
_PARSE_ABOVE = buffers.IO_BYTES - _RECORD_BYTES
_FIRST_READ_BYTES = _RECORD_BYTES


class Tunnel:
    """One end of a tunnel; owns its socket."""

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        context: ssl.SSLContext,
        server: bool,
        owner: Owner,
        handshakes: Deadlines,
        source: object = None,
        held: Held | None = None,
    ) -> None:
        """`source`: with whom it shares its place in the rota; `held`: on whose account its bytes wait, if not the node's."""
        self.loop = loop
        self.owner, self.server = owner, server
        self.http = Connection(server, self, loop.now)
        self.peer: Identity | None = None
        self.established = False
        self.open = True
        self.lost_streams = 0
        """Streams that were open when the tunnel closed: each of them reports its own end."""
        self.queued = 0
        self.offence = ""
        """By what the peer lost the connection; empty when it behaved."""
        self.held = held or loop.held
        self._source = source
        self._late = False  # waits in the rota
        self._rest = memoryview(b"")  # plaintext beyond the work of a turn
        self._room = _cipher[:_FIRST_READ_BYTES]
        self._reading = False
        self._answered: list[Stream] = []
        self._patient_bytes = 0
        """How much of `http.out` is in no hurry; what comes behind it is."""
        self._handshakes: Deadlines | None = handshakes
        self._sock = sock
        self._fd = sock.fileno()
        self._send, self._recv_into = sock.send, sock.recv_into
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._hello = Hello() if server else None
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self.chain = partial(chain_of, self._tls)
        self._waiting: deque[memoryview] = deque()
        handshakes.add(self, loop.now, self._timed_out)
        loop.watch(self._fd, IN, self)
        if not server:
            self._handshake()

    # --- receiving

    def on_event(self, events: int) -> None:
        """The socket is ready."""
        if events & OUT:
            self._send_waiting()
        if events & ~OUT and self.open and not self._late:
            self._readable()

    def _readable(self) -> None:
        try:
            count = self._recv_into(self._room)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        if not count:
            self._lost("connection closed by the peer")
            return
        self._incoming.write(_cipher[:count])
        if not self.established:
            if not self._speaks_http2(_cipher[:count]):
                return
            if self.loop.greetings >= GREETINGS_PER_TURN:
                self._leave()
                return
            self.loop.greetings += 1
        self.go_on()
        if count == len(self._room) < buffers.IO_BYTES and not self._late:
            self._room = _cipher[: 2 * count]

    def go_on(self) -> None:
        """Do as much with what has come as one turn allows."""
        self._late = False
        if not self.established and not self._handshake():
            return
        self._reading = True
        try:
            self._decrypt()
        except ProtocolError as error:
            self.fail(error)
        except ssl.SSLError as error:
            self._push()
            self.close("TLS_FAILURE", f"tls error: {reason_of(error)}")
        if self.open:
            self._after_reading()

    def _decrypt(self) -> None:
        if self._rest and not self._use_rest():
            return
        read, pending, receive, now = self._tls.read, self._incoming, self.http.receive, self.loop.now
        filled = 0
        while pending.pending:
            try:
                count: int = read(buffers.IO_BYTES, _plain[filled:] if filled else _plain)  # type: ignore
            except ssl.SSLWantReadError:
                break
            if not count:
                if filled and (used := receive(_plain[:filled], now)) < filled:
                    self._keep(used, filled)  # and learn of the end again behind it
                else:
                    self._lost("connection closed by the peer")
                return
            filled += count
            if filled > _PARSE_ABOVE:
                if (used := receive(_plain[:filled], now)) < filled:
                    self._keep(used, filled)
                    return
                filled = 0
                if not self.open:
                    return
        if filled and (used := receive(_plain[:filled], now)) < filled:
            self._keep(used, filled)

    def _keep(self, used: int, filled: int) -> None:
        """Leave what was decrypted beyond the work of this turn for another."""
        if not self.open:
            return
        if self.held.refuses():
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, "more than a turn's work, and the buffers of its pod or node are full")
        self._rest = memoryview(bytes(_plain[used:filled]))
        self.held.add(filled - used)
        self._room = _cipher[:_FIRST_READ_BYTES]
        self._leave()

    def _use_rest(self) -> bool:
        """Whether nothing is left over any more."""
        rest, self._rest = self._rest, memoryview(b"")
        self.held.add(-len(rest))
        used = self.http.receive(rest, self.loop.now)
        if used < len(rest) and self.open:
            self._rest = rest[used:]
            self.held.add(len(self._rest))
            self._leave()
            return False
        return self.open

    def _leave(self) -> None:
        self._late = True
        self.loop.rota.add(self._source, self)

    def _after_reading(self) -> None:
        http = self.http
        self._reading = False
        if self._answered:
            answered, self._answered = self._answered, []
            self._send_answers(answered)
        if self._handshakes is not None and http.ready:
            self._handshakes.discard(self)
            self._handshakes = None
        if http.reopened:
            http.reopened = False
            self._resume()
        self.send_urgent()

    def _resume(self) -> None:
        http = self.http
        if http.blocked and self.queued <= HIGH_WATER:
            blocked, http.blocked = http.blocked, {}
            for stream in blocked:
                stream.resume()

    def _speaks_http2(self, data: memoryview) -> bool:
        """Look at the protocols that a client offers, once its ClientHello is whole; who offers others only is closed."""
        hello = self._hello
        if hello is None:
            return True
        refusal = hello.refusal(data)
        if hello.done:
            self._hello = None
        if not refusal:
            return True
        try:
            self._send(NO_APPLICATION_PROTOCOL)
        except OSError:
            pass  # gone, or not reading
        self.close("TLS_FAILURE", f"tls handshake error: {refusal}")
        return False

    def _handshake(self) -> bool:
        try:
            self._tls.do_handshake()
            self.peer = self.owner.check_peer(self, names_of(self._tls))
        except ssl.SSLWantReadError:
            self._push()
            return False
        except ssl.SSLError as error:
            self._push()  # the alert
            self.close("TLS_FAILURE", f"tls handshake error: {reason_of(error)}")
            return False
        except PeerRefused as error:
            reset_on_close(self._sock)
            self.close(error.flag, f"tls handshake error: {error}")
            return False
        self.established = True
        self.loop.dirty[self] = None
        self.owner.established(self)
        return self.open

    # --- sending

    def flush(self) -> None:
        """Write all small frames, and close when nothing is left to do."""
        self._write_small()
        if self.http.draining and self.http.finished and self.open and not self.queued:
            self.close("-", "")

    def _write_small(self) -> None:
        out = self.http.out
        if out and self.established and self.open:
            self._tls.write(out)
            self.http.out = bytearray()
            self._patient_bytes = 0
            self._push()

    def send_urgent(self) -> None:
        """Have what is in `http.out` written at the end of this turn, unless nothing of it is in a hurry."""
        if len(self.http.out) > self._patient_bytes:
            self.loop.dirty[self] = None

    def answered(self, stream: Stream) -> None:
        """An answer was added to `http.out`: have it written, when what came with its request has been looked at."""
        if self._reading:
            self._answered.append(stream)
        else:
            self._send_answers([stream])

    def _send_answers(self, answered: list[Stream]) -> None:
        # A client that sent bytes behind its request waits for the application's answer, not for ours: both go together,
        # or ours alone after a while. Saves a new connection one in three of records, sends and wake-ups of the other node.
        if any(stream.receive_window == STREAM_WINDOW or stream.remote_closed for stream in answered):
            self.loop.dirty[self] = None
            return
        if not self._patient_bytes:
            self.loop.call_at(self.loop.now + PATIENCE_S, self._flush_late)
        self._patient_bytes = len(self.http.out)

    def _flush_late(self) -> None:
        if self._patient_bytes and self.open:
            self.loop.dirty[self] = None

    def send_small(self, data: memoryview) -> None:
        """Add a small DATA frame to this turn's write."""
        out = self.http.out
        out += data
        self.loop.dirty[self] = None
        if len(out) > _SMALL_BYTES:
            self._write_small()

    def send_large(self, data: memoryview) -> None:
        """Write a DATA frame now, behind what is there."""
        out = self.http.out
        if out:
            self._tls.write(out)
            self.http.out = bytearray()
            self._patient_bytes = 0
        self._tls.write(data)
        self._push()

    def _push(self) -> None:
        data = self._outgoing.read()
        if not data:
            return
        if not self._waiting:
            try:
                sent = self._send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # the read side tells, with whatever the peer said last
            if sent == len(data):
                return
        else:
            sent = 0
        rest = memoryview(data)[sent:]
        self._waiting.append(rest)
        self.queued += len(rest)
        self.held.add(len(rest))
        if len(self._waiting) == 1:
            self.loop.modify(self._fd, IN | OUT)
        if self.queued > _DROP_ABOVE:
            self.offence = "UNREAD"
            self.close("-", "h2 failed: peer does not read what it asks for")

    def _send_waiting(self) -> None:
        before = self.queued
        while self._waiting:
            rest = self._waiting[0]
            try:
                sent = self._send(rest)
            except BlockingIOError:
                break
            except OSError:
                sent = len(rest)  # the read side tells
            self.queued -= sent
            if sent < len(rest):
                self._waiting[0] = rest[sent:]
                break
            self._waiting.popleft()
        self.held.add(self.queued - before)
        if not self._waiting:
            self.loop.modify(self._fd, IN)
            if self.http.draining:
                self.loop.dirty[self] = None
        if self.queued < _LOW_WATER:
            self._resume()

    # --- what the connection asks of its owner

    def requested(self, sid: int, fields: Fields) -> Stream | None:
        """Hand a request on."""
        return self.owner.requested(self, sid, fields)

    def retired(self) -> None:
        """Hand it on."""
        if self.open:
            if self.http.draining:
                self.loop.dirty[self] = None
            self.owner.retired(self)

    # --- ends

    def tick(self, now: float) -> None:
        """Keep the connection alive, or give it up."""
        if self.established and not self.http.tick(now):
            self.http.fail(Code.NO_ERROR)
            self._write_small()
            self.close("-", "h2 failed: keep-alive timed out")
        elif self.http.out:
            self.loop.dirty[self] = None

    def drain(self) -> None:
        """Take no new streams; open ones go on."""
        self.http.drain()
        self.loop.dirty[self] = None

    def end(self, error: str, flag: Flag = "-") -> None:
        """Say GOAWAY and close, with all its streams."""
        if self.established and self.open:
            self.http.fail(Code.NO_ERROR)
            self._write_small()
        self.close(flag, error)

    def fail(self, error: ProtocolError) -> None:
        """The peer broke the protocol: say so and close."""
        self.offence = error.code.name
        self.http.fail(error.code)
        self._write_small()
        self.close("-" if self.http.ready else "H2_HANDSHAKE_FAILURE", f"h2 failed: {error}")

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""
        self.close("-", f"internal error: {error}")

    def _timed_out(self) -> None:
        self.close("H2_HANDSHAKE_FAILURE" if self.established else "TLS_FAILURE", "tls handshake error: timed out or evicted")

    def _lost(self, why: str) -> None:
        """The socket is gone. An idle connection may go like that; a stream that is cut off is an error of its own."""
        if not self.established:
            self.close("TLS_FAILURE", f"tls handshake error: {why}")
        elif not self.http.ready:
            self.close("H2_HANDSHAKE_FAILURE", f"h2 failed: {why}")
        else:
            self.close("-", f"h2 failed: {why}" if self.http.streams else "")

    def close(self, flag: Flag, error: str) -> None:
        """Close the socket and lose every stream."""
        if not self.open:
            return
        self.open = False
        if self._handshakes is not None:
            self._handshakes.discard(self)
            self._handshakes = None
        self.loop.forget(self._fd)
        self._sock.close()
        self.held.add(-self.queued)
        self.queued = 0
        self._waiting.clear()
        self.loop.dirty.pop(self, None)
        if self._late:
            self.loop.rota.discard(self._source, self)
        self.held.add(-len(self._rest))
        self._rest = memoryview(b"")
        streams = self.http.abandon()
        self.lost_streams = len(streams)
        Wreck(self.loop, self._source, streams, flag, error).go_on()
        self.owner.closed(self, flag, error)
        self.http.owner = NOBODY  # the two refer to each other, and OpenSSL's memory must not wait for a collector


def reset_on_close(sock: socket) -> None:
    """Make the socket's close a reset: the other end learns that this was no orderly end."""
    sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: on, 0 seconds
