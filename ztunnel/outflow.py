"""The sending half of a tunnel: what leaves when, and what waits.

Small frames of all streams collect in `http.out` for one TLS write and one send at the end of the loop's turn. What nobody
waits for lingers: a moment later it leaves by itself, and before that with whatever is in a hurry. So a short connection's end
travels with the next one's request or answer, and costs neither end of the tunnel a wake-up.

A large payload goes out at once, its frame header in front of it in the same buffer, so that both fill whole TLS records, and
those whole packets. What the socket does not take waits in a queue; above HIGH_WATER streams stop reading from their
applications, and a peer that makes us queue far beyond that (by asking for answers that it does not read) is dropped.
"""

from abc import ABC, abstractmethod
from collections import deque
from socket import socket

from ztunnel.connection_record import Flag
from ztunnel.flow import Stream
from ztunnel.hellos import End
from ztunnel.http2 import Connection
from ztunnel.limits import Held
from ztunnel.loop import BULKY_BYTES, IN, OUT, Loop

HIGH_WATER = 256 << 10
"""What may be ahead of a small message, here and again in the kernel: at 1 GB/s a quarter of a millisecond each."""
_LOW_WATER = HIGH_WATER // 2
_DROP_ABOVE = 8 << 20
_SMALL_BYTES = 60_000
_MUCH_BYTES = 16 << 10
"""Behind a request; a client has 64 KiB to send before it has seen our windows."""


class Outflow(ABC):
    """Frames into TLS records, and those into the socket as it takes them."""

    __slots__ = (
        "__weakref__",
        "_answered",
        "_fd",
        "_incoming",
        "_outgoing",
        "_patient_bytes",
        "_read",
        "_reading",
        "_send",
        "_sends_small",
        "_sock",
        "_tls",
        "_waiting",
        "_write",
        "_written",
        "established",
        "held",
        "http",
        "loop",
        "offence",
        "open",
        "queued",
    )

    http: Connection

    def __init__(self, loop: Loop, sock: socket, end: End, held: Held) -> None:
        """`held`: on whose account bytes wait."""
        self.loop = loop
        self.held = held
        self.established = False
        self.open = True
        self.queued = 0
        self.offence = ""
        """By what the peer lost the connection; empty when it behaved."""
        self._sock = sock
        self._fd = sock.fileno()
        self._send = sock.send
        self._tls, self._incoming, self._outgoing = end
        tls = self._tls._sslobj  # type: ignore[attr-defined]  # without the class in Python around it: four calls a round trip
        self._read, self._write, self._written = tls.read, tls.write, self._outgoing.read
        self._waiting: deque[memoryview] | None = None
        """None until something has had to wait."""
        self._sends_small = False
        """The last frame of data was a small one. Two in a row are no remains of bulk."""
        self._reading = False
        self._answered: list[Stream] = []
        self._patient_bytes = 0
        """How much of `http.out` is in no hurry; what comes behind it is."""

    @abstractmethod
    def flush(self) -> None:
        """See ztunnel.loop.Flushable."""

    @abstractmethod
    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""

    @abstractmethod
    def close(self, flag: Flag, error: str) -> None:
        """End the tunnel."""

    def _resume(self) -> None:
        """Let streams go on that wait for a window, or for the socket, while little waits for that."""
        http = self.http
        if http.blocked and self.queued <= HIGH_WATER:
            blocked, http.blocked = http.blocked, {}
            for stream in blocked:
                stream.resume()

    def _write_small(self) -> None:
        out = self.http.out
        if out and self.established and self.open:
            self._write(out)
            self._taken_out()
            self._push()

    def _taken_out(self) -> None:
        self.http.out = bytearray()
        if self._patient_bytes:
            self._patient_bytes = 0
            self.loop.hurry(self)

    def end_stream(self, stream: Stream, patient: bool) -> None:
        """No more bytes from us. A `patient` end waits a moment for something else to travel with."""
        before = len(self.http.out)
        self.http.end(stream)
        if patient:
            self._linger(before)
        else:
            self.loop.dirty[self] = None

    def _linger(self, before: int) -> None:
        """What `http.out` has beyond `before` bytes is in no hurry."""
        if before > self._patient_bytes:
            self.send_urgent()
            return
        if not before:
            self.loop.linger(self)
        self._patient_bytes = len(self.http.out)

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
        # On a new tunnel our opening waits along with it, unless the client sent so much that it may soon wait for windows.
        untouched = self.http.stream_window
        for stream in answered:
            if stream.remote_closed or not 0 < untouched - stream.receive_window < _MUCH_BYTES:
                self.loop.dirty[self] = None
                return
        self.loop.linger(self)
        self._patient_bytes = len(self.http.out)

    def send_small(self, data: memoryview) -> None:
        """Add a small DATA frame to this turn's write; where nothing else can come in this turn, write it now."""
        out, loop = self.http.out, self.loop
        if self._sends_small:
            loop.small_at = loop.now
        self._sends_small = True
        if not out and loop.alone:
            self._write(data)
            self._push()
            return
        out += data
        loop.dirty[self] = None
        if len(out) > _SMALL_BYTES:
            self._write_small()

    def send_large(self, data: memoryview) -> None:
        """Write a DATA frame now, behind what is there."""
        http, count = self.http, len(data)
        if http.out:
            self._write(http.out)
            self._taken_out()
        self._write(data)
        self._push()  # before what follows: the other node may work meanwhile
        http.bulk_bytes += count
        self._sends_small = False
        if count > BULKY_BYTES:
            self.loop.bulky = True

    def _push(self) -> None:
        data = self._written()
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
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(rest)
        self.queued += len(rest)
        self.held.add(len(rest))
        if len(self._waiting) == 1:
            self.loop.modify(self._fd, IN | OUT)
        if self.queued > _DROP_ABOVE:
            self.offence = "UNREAD"
            self.close("-", "h2 failed: peer does not read what it asks for")

    def _send_waiting(self) -> None:
        before, waiting = self.queued, self._waiting
        while waiting:
            rest = waiting[0]
            try:
                sent = self._send(rest)
            except BlockingIOError:
                break
            except OSError:
                sent = len(rest)  # the read side tells
            self.queued -= sent
            if sent < len(rest):
                waiting[0] = rest[sent:]
                break
            waiting.popleft()
        self.held.add(self.queued - before)
        if not waiting:
            self.loop.modify(self._fd, IN)
            if self.http.draining:
                self.loop.dirty[self] = None
        if self.queued < _LOW_WATER:
            self._resume()
