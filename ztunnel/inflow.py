"""The receiving half of a tunnel: what comes is decrypted and handed on, as much of it as one turn of the loop allows.

TLS runs on memory BIOs, so that one receive call brings up to 256 KiB and all records in it are decrypted before the frames in
them are parsed: the application gets one large send instead of one per record.

A turn of the loop belongs to all tunnels. Who sends more frames than the work of one turn (see ztunnel.intake), begins a
handshake when the turn has moved on enough of them, or comes when many others have used up the turn's time, goes on when its
source's turn comes (ztunnel.rota); meanwhile its socket is not read. A tunnel reads little at once until it has shown that it
moves bytes: what is left over stays small.
"""

import ssl
from abc import abstractmethod
from socket import socket

from ztunnel import buffers
from ztunnel.frames import HEADER_BYTES, SETTINGS_ACK, Code, ProtocolError
from ztunnel.hellos import End
from ztunnel.limits import Held
from ztunnel.loop import BULKY_BYTES, GREETINGS_PER_TURN, IN, OUT, Deadlines, Loop
from ztunnel.outflow import Outflow
from ztunnel.tls import reason_of

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


class Inflow(Outflow):
    """TLS records into frames, and those to the streams, turn by turn."""

    __slots__ = ("_handshakes", "_late", "_recv_into", "_rest", "_room", "_source", "server")

    def __init__(self, loop: Loop, sock: socket, end: End, server: bool, source: object, held: Held) -> None:
        """`source`: with whom it shares its place in the rota."""
        super().__init__(loop, sock, end, held)
        self.server = server
        self._handshakes: Deadlines | None = None
        """In which its time to begin runs, until the peer's settings have come."""
        self._source = source
        self._late = False  # waits in the rota
        self._rest = _NOTHING  # plaintext beyond the work of a turn
        self._room = _FIRST_ROOM
        self._recv_into = sock.recv_into

    @abstractmethod
    def _speaks_http2(self, data: memoryview) -> bool:
        """Look at what a client offers to speak; False: it is closed."""

    @abstractmethod
    def _handshake(self) -> bool:
        """Go on with it; whether it is done."""

    @abstractmethod
    def fail(self, error: ProtocolError) -> None:
        """The peer broke the protocol."""

    @abstractmethod
    def _lost(self, why: str) -> None:
        """The socket is gone."""

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

    def _forget_rest(self) -> None:
        if self._late:
            self.loop.rota.discard(self._source, self)
        self.held.add(-len(self._rest))
        self._rest = _NOTHING

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
