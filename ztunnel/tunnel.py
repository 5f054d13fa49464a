"""A tunnel: one HTTP/2 connection over mutual TLS on one socket. The only place where TLS bytes move.

Theory of operation. TLS runs on memory BIOs, so that one receive call brings up to 256 KiB and all records in it are
decrypted before the frames in them are parsed: the application gets one large send instead of one per record. In the other
direction small frames of all streams collect in `http.out`; the loop flushes every dirty tunnel once per turn, in one TLS
write and one send. A large payload goes out at once, its frame header in front of it in the same buffer, so that both fill
whole TLS records, and those whole packets.

A turn of the loop belongs to all tunnels. Who sends more frames than the work of one turn (see ztunnel.intake), begins a
handshake when the turn has moved on enough of them, or comes when many others have used up the turn's time, goes on when its
source's turn comes (ztunnel.rota); meanwhile its socket is not read. A tunnel reads little at once until it has shown that it
moves bytes: what is left over stays small.

What the socket does not take waits in a queue; above HIGH_WATER streams stop reading from their applications, and a peer
that makes us queue far beyond that (by asking for answers that it does not read) is dropped.
"""

import ssl
from contextlib import suppress
from socket import AF_UNIX, IPPROTO_TCP, MSG_PEEK, SHUT_WR, TCP_MAXSEG, TCP_NOTSENT_LOWAT, socket

from mesh.identity import Identity
from ztunnel import buffers
from ztunnel.authorities import Authorities
from ztunnel.channel import Flag
from ztunnel.client_hello import NO_APPLICATION_PROTOCOL, Hello
from ztunnel.closing import reset_on_close
from ztunnel.fields import Fields
from ztunnel.flow import NOBODY, Stream
from ztunnel.frames import HEADER_BYTES, SETTINGS_ACK, Code, ProtocolError, payload_in_whole_packets
from ztunnel.hellos import End
from ztunnel.http2 import Connection
from ztunnel.limits import Held
from ztunnel.loop import BULKY_BYTES, GREETINGS_PER_TURN, IN, OUT, Deadlines, Loop
from ztunnel.outflow import HIGH_WATER, Outflow
from ztunnel.tls import reason_of
from ztunnel.tunnel_owner import Owner
from ztunnel.verification import PeerRefused, Verified
from ztunnel.wreck import Wreck

_RECORD_BYTES = 16384
_cipher, _plain = buffers.cipher_view, buffers.plain_view
_IO_BYTES = buffers.IO_BYTES
_PARSE_ABOVE = _IO_BYTES - _RECORD_BYTES
_FIRST_ROOM = _cipher[:_RECORD_BYTES]
RECORDS_PER_TURN = 128
"""0.1 ms: of 16 KiB each there are 16 in what one call receives, of one byte 11,000."""
_LEAST_OF_RECORDS = RECORDS_PER_TURN * (22 + HEADER_BYTES)
"""Of a turn's records, with what TLS adds to each: less is not even a frame a record, and counts as a control frame."""
_RECORDS_PER_MESSAGE = 8
"""A KeyUpdate makes keys for both directions, and an answer."""
_NOTHING = memoryview(b"")


class Tunnel(Outflow):
    """One end of a tunnel; owns its socket."""

    __slots__ = (
        "_claim",
        "_handshakes",
        "_hello",
        "_late",
        "_recv_into",
        "_rest",
        "_room",
        "_source",
        "lost_streams",
        "owner",
        "peer",
        "server",
        "verified",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        end: End,
        server: bool,
        owner: Owner,
        handshakes: Deadlines,
        source: object = None,
        held: Held | None = None,
    ) -> None:
        """`source`: with whom it shares its place in the rota; `held`: on whose account its bytes wait, if not the node's."""
        super().__init__(loop, sock, end, held or loop.held)
        self.owner, self.server = owner, server
        self.http = Connection(server, self, loop.now, loop.sizes)
        self.peer: Identity | None = None
        self.lost_streams = 0
        """Streams that were open when the tunnel closed: each of them reports its own end."""
        self._source = source
        self._late = False  # waits in the rota
        self._rest = _NOTHING  # plaintext beyond the work of a turn
        self._room = _FIRST_ROOM
        self._handshakes: Deadlines | None = handshakes
        self._recv_into = sock.recv_into
        if sock.family != AF_UNIX:  # an inner tunnel's
            sock.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, HIGH_WATER)
            self.http.largest = payload_in_whole_packets(sock.getsockopt(IPPROTO_TCP, TCP_MAXSEG))
        self._hello = Hello() if server else None
        self.verified: Verified | None = None
        self._claim: Identity | None = None
        handshakes.add(self, loop.now, self._timed_out)
        loop.watch(self._fd, IN, self)
        if self._outgoing.pending:
            self._push()
        elif not server:
            self._handshake()  # and hear why there is no hello

    # --- receiving

    def on_event(self, events: int) -> None:
        """The socket is ready."""
        if events != IN:
            if events & OUT:
                self._send_waiting()
            if events == OUT:
                return
        if self.open and not self._late:
            if self.loop.crowded and self.loop.is_late():
                self._leave()
            else:
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
        self._use()
        if count >= _RECORD_BYTES:
            if count > BULKY_BYTES:
                self.loop.bulky = True
            if count == len(self._room) < _IO_BYTES and self.established and not self._late:
                self._room = _cipher[: 2 * count]

    def go_on(self) -> None:
        """See ztunnel.rota.Continued."""
        self._late = False
        if self._rest or self._incoming.pending:
            self._use()
        else:
            self._readable()

    def _use(self) -> None:
        """Do as much with what has come as one turn allows."""
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
        incoming, http = self._incoming, self.http
        filled, records = 0, RECORDS_PER_TURN
        came = left = incoming.pending
        while left and records > 0:
            try:
                count: int = self._read(_IO_BYTES, _plain[filled:] if filled else _plain)
            except ssl.SSLWantReadError:
                if not self._goes_on_after_message():
                    break
                records -= _RECORDS_PER_MESSAGE
                left = incoming.pending
                continue
            if not count:
                if filled and (used := http.receive(_plain[:filled], self.loop.now)) < filled:
                    self._keep(used, filled)  # and learn of the end again behind it
                else:
                    self._lost("connection closed by the peer")
                return
            filled += count
            records -= 1
            if filled > _PARSE_ABOVE:
                if (used := http.receive(_plain[:filled], self.loop.now)) < filled:
                    self._keep(used, filled)
                    return
                filled = 0
                if not self.open:
                    return
            left = incoming.pending
        if records <= 0:
            self._leave_records(came - left)
        if filled and (used := http.receive(_plain[:filled], self.loop.now)) < filled:
            self._keep(used, filled)

    def _leave_records(self, size: int) -> None:
        """A turn's records are decrypted, of `size` bytes: leave the others for another. Raises: ProtocolError."""
        if size < _LEAST_OF_RECORDS:
            self.http.charge("tiny records", self.loop.now)
        if self._incoming.pending:
            self._room = _FIRST_ROOM
            self._leave()

    def _goes_on_after_message(self) -> bool:
        """What was read is no data, or the beginning of a record: whether there is more. Raises: ProtocolError."""
        if self._outgoing.pending:
            self._push()  # our answer to a KeyUpdate
        if not self._incoming.pending or not self.open:
            return False
        self.http.charge("messages of TLS", self.loop.now)
        return True

    def _keep(self, used: int, filled: int) -> None:
        """Leave what was decrypted beyond the work of this turn for another."""
        if not self.open:
            return
        if self.held.refuses():
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, "more than a turn's work, and the buffers of its pod or node are full")
        self._rest = memoryview(bytes(_plain[used:filled]))
        self.held.add(filled - used)
        self._room = _FIRST_ROOM
        self._leave()

    def _use_rest(self) -> bool:
        """Whether nothing is left over any more."""
        rest, self._rest = self._rest, _NOTHING
        self.held.add(-len(rest))
        used = self.http.receive(rest, self.loop.now)
        if used < len(rest) and self.open:
            self._rest = rest[used:]
            self.held.add(len(self._rest))
            self._leave()
            return False
        if self.http.draining:
            self.loop.dirty[self] = None
        return self.open

    def _leave(self) -> None:
        self._late = True
        self.loop.rota.add(self._source, self, stranger=self.server and not self.established)

    def _after_reading(self) -> None:
        http = self.http
        self._reading = False
        if self._answered:
            answered, self._answered = self._answered, []
            self._send_answers(answered)
        if self._handshakes is not None and http.ready:
            self._handshakes.discard(self)
            self._handshakes = None
            if len(http.out) == len(SETTINGS_ACK):
                self._linger(0)
        if http.reopened:
            http.reopened = False
            self._resume()
        if http.out:
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
            self._tls.context.verifier.shake_hands(self._tls, self)  # type: ignore[attr-defined]
        except ssl.SSLWantReadError:
            self._push()
            return False
        except ssl.SSLError as error:
            self._push()  # the alert
            self.close("TLS_FAILURE", self._refusal(reason_of(error), isinstance(error, ssl.SSLCertVerificationError)))
            return False
        except PeerRefused as error:
            if error.alerted:
                self._push()
            else:
                reset_on_close(self._sock)
            self.close(error.flag, self._refusal(str(error), True))
            return False
        self.peer = self._claim
        self.established = True
        self.owner.established(self)
        return self.open

    def _refusal(self, reason: str, ours: bool) -> str:
        """Why there is no handshake; `ours`: we refuse the peer. In the words of Istio's ztunnel at either end."""
        if self.server or not ours:
            return f"tls handshake error: {reason}"
        return f"invalid peer certificate: {reason}"

    def judge(self, peer: Verified) -> None:
        """See ztunnel.verification.Asking."""
        self._claim = self.owner.check_peer(self, peer)

    def chain(self) -> list[bytes]:
        """See ztunnel.revocation.Connected."""
        return self.verified.chain if self.verified is not None else []

    def is_believed_by(self, authorities: Authorities) -> bool:
        """Whether its peer would be who it is by these roots; one that has yet to prove itself is not."""
        return self.peer is not None and authorities.still_believed(str(self.peer), self.chain())

    # --- sending

    def flush(self) -> None:
        """Write all small frames, and end when nothing is left to do, what has come and waits for its turn included."""
        self._write_small()
        if self.http.draining and self.http.finished and self.open and not self.queued and not self._late:
            self._finish()

    def _finish(self) -> None:
        """Say that this was all, and close when the peer has heard it, and closes.

        What it still says to a socket that is closed is answered with a reset, and what was on its way to it is lost.
        """
        if not self._peer_has_ended():
            with suppress(OSError):
                self._sock.shutdown(SHUT_WR)
                return
        self.close("-", "")

    def _peer_has_ended(self) -> bool:
        """Whether nothing more will come. A peer that parts with an idle tunnel closes it behind its GOAWAY."""
        try:
            return not self._sock.recv(1, MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

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

    def keep_alive(self, now: float) -> None:
        """Ask whether the peer is there, or give it up. Due every PING_INTERVAL_S."""
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
        self.loop.forget_closing(self._fd)
        self._sock.close()
        self.held.add(-self.queued)
        self.queued = 0
        self._waiting = None
        self.loop.dirty.pop(self, None)
        self.loop.hurry(self)
        if self._late:
            self.loop.rota.discard(self._source, self)
        self.held.add(-len(self._rest))
        self._rest = _NOTHING
        streams = self.http.abandon()
        self.lost_streams = len(streams)
        try:
            Wreck(self.loop, self._source, streams, flag, error).go_on()
        finally:  # a stream may fail
            self.owner.closed(self, flag, error)
            self.http.owner = NOBODY  # the two refer to each other, and OpenSSL's memory must not wait for a collector
