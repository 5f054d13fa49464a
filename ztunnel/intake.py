"""The receiving half of an HTTP/2 connection: plaintext in, DATA to its stream while it arrives, all else collected whole.

Theory of operation. `receive` walks over what TLS decrypted. A DATA frame is handed on while it arrives, in parts, to the
`take` of its stream, which says how many bytes left for the application at once; only those, and what is `delivered` later,
reopen windows. So a slow application stops its own stream, and many of them the connection, when the window is full, and
nothing else in here holds payload. All other frames are small: they are collected against a bound and handed to `dispatch`.

A peer with a valid certificate may still be hostile. Everything it can make us do that moves no bytes has an allowance;
the connection that overdraws one ends with ENHANCE_YOUR_CALM. Every violation raises ProtocolError, and costs the peer this
connection and nothing else.

What is allowed may still be much: a call of `receive` ends when the work of one turn is done, and says where it stopped. So
other connections never wait for more than that.
"""

from abc import ABC, abstractmethod

from ztunnel import frames
from ztunnel.allowance import Allowance
from ztunnel.budget import Budget
from ztunnel.fields import FieldReader
from ztunnel.flow import Stream
from ztunnel.frames import (
    BULK_FRAME_BYTES,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_BYTES,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Code,
    ProtocolError,
    Sizes,
)

_CONTROL_BOUNDS = {SETTINGS: 384, PING: 8, RST_STREAM: 4, WINDOW_UPDATE: 4, PRIORITY: 5, GOAWAY: 16 << 10}
"""Longest payload of each control frame; 64 settings are ten times what anybody sends."""
_LONGEST_PADDED_BYTES = 64 << 10
"""Frames with padding are collected whole, on nobody's account: 192 tunnels of one source could hold as many MiB else."""
_EXACT = {PING, RST_STREAM, WINDOW_UPDATE, PRIORITY}
_ON_CONNECTION = {SETTINGS, PING, GOAWAY}
_ON_STREAM = {HEADERS, PRIORITY, RST_STREAM, CONTINUATION}
_unpack = frames.header.unpack_from
_SHORT_BLOCK_BYTES = 4096
"""Either end takes more, in a frame and in a list."""
WORK_PER_TURN = 128
"""In DATA frames, which cost 5 us each with the application's send; a turn of the loop belongs to all tunnels."""
_WORK_OF_HEADERS, WORK_OF_RESET, _BLOCK_BYTES_PER_WORK, _STREAMS_PER_WORK = 64, 32, 64, 4
"""A new stream asks for a policy's verdict and a connection to an application; new settings walk over all streams."""
_LEAST_GRANT_BYTES = 2048
"""Of the connection's window: what peers get in smaller pieces they may take for an offence, as we do (ztunnel.budget)."""


class Intake(ABC):
    """Frames in, and the windows that we grant."""

    __slots__ = (
        "__weakref__",
        "_budget",
        "_credit",
        "_flags",
        "_half_stream",
        "_head",
        "_kind",
        "_left",
        "_max_frame",
        "_payload",
        "_preface",
        "_reader",
        "_sid",
        "_stream",
        "bulk_bytes",
        "last_sid",
        "next_sid",
        "now",
        "out",
        "ready",
        "receive_window",
        "server",
        "stream_window",
        "streams",
        "widened",
        "work",
    )

    def __init__(self, server: bool, now: float, sizes: Sizes) -> None:
        self.server = server
        self.now = now
        self.stream_window = sizes.stream_window
        """Of a stream that has carried nothing."""
        self.out = bytearray(frames.opening(server, sizes))
        """Small frames that wait for the owner to write them."""
        self.streams: dict[int, Stream] = {}
        self.ready = False
        """The peer's SETTINGS have come."""
        self.last_sid = 0
        self.next_sid = 1
        self._reader = FieldReader(frames.SERVER_HEADER_BYTES if server else frames.CLIENT_HEADER_BYTES)
        self._preface = frames.CLIENT_OPENING if server else frames.SERVER_OPENING
        """What has yet to come before all frames: at first all that a usual peer begins with, and else a client's preface."""
        self._head = b""
        self._left = self._kind = self._flags = self._sid = 0
        self._stream: Stream | None = None
        self._payload: bytearray | None = None
        self._credit = 0
        self.receive_window = sizes.connection_window
        """Bytes that the peer may send, of all streams together."""
        self.widened = 0
        """By how many bytes that was opened again."""
        self._max_frame = sizes.frame
        self._half_stream = sizes.stream_window // 2
        self.bulk_bytes = 0
        """What has come, and gone, in bulk: see BULK_FRAME_BYTES."""
        self.work = WORK_PER_TURN
        self._budget = Budget()

    def receive(self, view: memoryview, now: float) -> int:
        """Take plaintext in, up to the work of one turn; returns how many bytes were used: the rest is to be given again.

        Raises: ProtocolError when the connection must end.
        """
        self.now, self.work = now, WORK_PER_TURN
        end = len(view)
        position = self._take_preface(view) if self._preface else 0
        while True:
            position = self._take_plain(view, position, end)
            if position == end or not self.work:
                return position
            position = self._take_other(view, position, end)
            if position == end or self.work <= 0:
                return position

    def _take_other(self, view: memoryview, position: int, end: int) -> int:
        """Take a frame of any kind, or as much of it as there is; returns where that stops."""
        self.work -= 1
        if self._left:
            return self._take_part(view, position)
        if self._head or end - position < HEADER_BYTES:
            position += self._take_head(view[position:])
            if len(self._head) < HEADER_BYTES:
                return position
            word, flags, sid = _unpack(self._head)
            self._head = b""
        else:
            word, flags, sid = _unpack(view, position)
            position += HEADER_BYTES
        length: int = word >> 8
        kind = word & 0xFF
        sid &= MAX_WINDOW  # the reserved bit is ignored
        if kind == DATA:
            if not length and flags == END_STREAM and self._takes_end(sid):
                return position
            stream = self._begin_data(length, flags, sid)
        elif kind == HEADERS and flags == END_HEADERS and length <= end - position and self._takes_headers(length, sid):
            self.headers(sid, flags, bytes(view[position : position + length]))
            return position + length
        else:
            stream = None
        self._left, self._kind, self._flags, self._sid, self._stream = length, kind, flags, sid, stream
        self._begin_parts(length)
        return self._take_part(view, position) if self._left and position < end else position

    def _take_plain(self, view: memoryview, position: int, end: int) -> int:
        """Take DATA frames that are all here, with which nothing is wrong; returns where something else begins.

        Nearly all frames are such, and with many connections this is most of what the interpreter does: so what all frames
        have in common is looked at and reckoned once.
        """
        if self._left or self._head or self._reader.stream_id or end > self._max_frame or end > self.receive_window:
            return position
        streams, half = self.streams, self._half_stream
        work = before = self.work
        begun = position
        undelivered = 0
        while True:
            begin = position + HEADER_BYTES
            if begin >= end:
                break
            word, flags, sid = _unpack(view, position)
            length = word >> 8
            after = begin + length
            if word & 0xFF or flags or after > end or length < 2:
                break
            stream = streams.get(sid)
            if stream is None or stream.remote_closed or not (stream.answered or self.server) or length > stream.receive_window:
                break
            stream.receive_window -= length
            if length >= BULK_FRAME_BYTES:
                self.bulk_bytes += length
            taken = stream.take(view[begin:after])
            if taken != length:
                undelivered += length - taken
            stream.credit = credit = stream.credit + taken
            if credit > half:
                self._reopen(stream)
            position = after
            work -= 1
            if after == end or not work:
                break
        if position > begun:
            self.work = work
            count = position - begun - HEADER_BYTES * (before - work)
            self.receive_window -= count
            self._credit = credit = self._credit + count - undelivered
            if credit > self.receive_window:
                self._widen()
        return position

    def _takes_end(self, sid: int) -> bool:
        """An empty DATA frame that ends its stream, where nothing is wrong with it."""
        stream = self.streams.get(sid)
        if stream is None or stream.remote_closed or self._reader.stream_id or not (self.server or stream.answered):
            return False
        self.end_of_peer(stream)
        return True

    def _takes_headers(self, length: int, sid: int) -> bool:
        """Whether nothing is wrong with a header block that is all here, nor much about it; then its work is counted."""
        if not sid or not self.ready or self._reader.stream_id or not 0 < length <= _SHORT_BLOCK_BYTES:
            return False
        self.work -= _WORK_OF_HEADERS + length // _BLOCK_BYTES_PER_WORK
        return True

    def _take_part(self, view: memoryview, position: int) -> int:
        """Take as much of a frame as there is; returns where it stopped."""
        part = view[position : position + self._left]
        self._left = left = self._left - len(part)
        stream = self._stream
        if stream is not None:
            taken = stream.take(part)
            if taken:
                self.delivered(stream, taken)
            if not left and self._flags & END_STREAM and self._stream is stream:
                self.end_of_peer(stream)
        else:
            self._keep(part, left)
        return position + len(part)

    def _keep(self, part: memoryview, left: int) -> None:
        if self._payload is not None:
            self._payload += part
            if not left:
                self._hand_on()
        elif self._kind == DATA:
            self.discarded(len(part))

    def _take_preface(self, view: memoryview) -> int:
        if self._preface is frames.CLIENT_OPENING or self._preface is frames.SERVER_OPENING:
            if view[: len(self._preface)] == self._preface:
                return self._take_opening(view)
            self._preface = frames.PREFACE if self.server else b""
        got = bytes(view[: len(self._preface)])
        if not self._preface.startswith(got):
            raise ProtocolError(Code.PROTOCOL_ERROR, "not an HTTP/2 preface")
        self._preface = self._preface[len(got) :]
        return len(got)

    def _take_opening(self, view: memoryview) -> int:
        count, self._preface = len(self._preface), b""
        self.opened_as_usual()
        acknowledged = view[count : count + len(frames.SETTINGS_ACK)] == frames.SETTINGS_ACK
        return count + len(frames.SETTINGS_ACK) if acknowledged else count

    def _take_head(self, view: memoryview) -> int:
        part = bytes(view[: HEADER_BYTES - len(self._head)])
        self._head += part
        return len(part)

    def _begin_data(self, length: int, flags: int, sid: int) -> Stream | None:
        """Take a DATA frame off the windows."""
        stream = self.streams.get(sid)
        if flags or length < 2 or stream is None or stream.remote_closed or self._reader.stream_id or length > self._max_frame:
            self._check_data(length, flags, sid, stream)
        self.receive_window = room = self.receive_window - length
        if length >= BULK_FRAME_BYTES:
            self.bulk_bytes += length
        if stream is not None:
            if not self.server and not stream.answered:
                raise ProtocolError(Code.PROTOCOL_ERROR, f"DATA on stream {sid} before its response")
            stream.receive_window = own = stream.receive_window - length
            if own < 0:
                raise ProtocolError(Code.FLOW_CONTROL_ERROR, f"stream {sid} overflows its window")
        if room < 0:
            raise ProtocolError(Code.FLOW_CONTROL_ERROR, "DATA overflows the connection's window")
        return stream

    def _begin_parts(self, length: int) -> None:
        """Go on with what is not plain DATA, or not all here."""
        stream, self._payload = self._stream, None
        if self._kind != DATA:
            self._begin_other(length, self._kind, self._sid)
        elif self._flags & PADDED:
            self._stream, self._payload = None, bytearray()
        elif not length and self._flags & END_STREAM and stream is not None:
            self._stream = None
            self.end_of_peer(stream)

    def _check_data(self, length: int, flags: int, sid: int, stream: Stream | None) -> None:
        """Whatever may be wrong with a DATA frame that is not of the common kind."""
        if self._reader.stream_id or not self.ready or not sid:
            raise ProtocolError(Code.PROTOCOL_ERROR, "DATA out of place")
        if length > self._max_frame or (flags & PADDED and not 0 < length <= _LONGEST_PADDED_BYTES):
            raise ProtocolError(Code.FRAME_SIZE_ERROR, f"DATA of {length} bytes")
        if stream is not None and stream.remote_closed:
            raise ProtocolError(Code.STREAM_CLOSED, f"DATA after the end of stream {sid}")
        if stream is None:
            if self._is_idle(sid):
                raise ProtocolError(Code.PROTOCOL_ERROR, f"DATA on idle stream {sid}")
            # A stream that we have reset: the peer may not know yet, for a while.
            self._spend(self._budget.control, "DATA on closed streams", 0.01)
        if length < 2 and not flags & END_STREAM and (not length or flags & PADDED):
            self._spend(self._budget.empty, "empty DATA")

    def _begin_other(self, length: int, kind: int, sid: int) -> None:
        self._payload = bytearray()
        if self._reader.stream_id and kind != CONTINUATION:
            raise ProtocolError(Code.PROTOCOL_ERROR, "header block interrupted")
        if not self.ready and kind != SETTINGS:
            raise ProtocolError(Code.PROTOCOL_ERROR, "first frame is not SETTINGS")
        if length > self._max_frame:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, f"frame of {length} bytes")
        if (kind in _ON_CONNECTION and sid) or (kind in _ON_STREAM and not sid) or kind == PUSH_PROMISE:
            raise ProtocolError(Code.PROTOCOL_ERROR, f"frame type {kind} on stream {sid}")
        if kind in (HEADERS, CONTINUATION):
            if length > self._reader.max_list_bytes:
                raise ProtocolError(Code.ENHANCE_YOUR_CALM, f"header block of {length} bytes")
            self.work -= _WORK_OF_HEADERS + length // _BLOCK_BYTES_PER_WORK
        elif kind in _CONTROL_BOUNDS:
            self._check_control(length, kind)
        else:
            self._payload = None
            self._spend(self._budget.control, "unknown frames", 1 + length / 4096)
        if not length and self._payload is not None:
            self._hand_on()

    def _check_control(self, length: int, kind: int) -> None:
        bound = _CONTROL_BOUNDS[kind]
        if kind in _EXACT and length != bound:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, f"frame type {kind} of {length} bytes")
        if length > bound:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, f"frame type {kind} of {length} bytes")
        if kind == SETTINGS:
            self.work -= len(self.streams) // _STREAMS_PER_WORK
        if kind not in (RST_STREAM, WINDOW_UPDATE):
            self._spend(self._budget.control, f"control frames (type {kind})")

    def _hand_on(self) -> None:
        payload = bytes(self._payload or b"")
        self._payload = None
        self.dispatch(self._kind, self._sid, payload)

    def _spend(self, allowance: Allowance, what: str, cost: float = 1.0) -> None:
        if not allowance.spend(self.now, cost):
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, f"too many {what}")

    def charge(self, what: str, now: float) -> None:
        """Count what came beneath frames: as much as a control frame. Raises: ProtocolError."""
        self.now = now
        self._spend(self._budget.control, what)

    def _is_idle(self, sid: int) -> bool:
        """A stream id that nobody has used yet."""
        if self.server:
            return sid > self.last_sid or not sid & 1
        return sid >= self.next_sid or not sid & 1

    @abstractmethod
    def dispatch(self, kind: int, sid: int, payload: bytes) -> None:
        """Take a whole frame that is not plain DATA. Raises: ProtocolError."""

    @abstractmethod
    def headers(self, sid: int, flags: int, payload: bytes) -> None:
        """Take a whole HEADERS frame. Raises: ProtocolError."""

    @abstractmethod
    def opened_as_usual(self) -> None:
        """Take frames.CLIENT_OPENING, or SERVER_OPENING, at a glance: most peers are of our own kind."""

    @abstractmethod
    def end_of_peer(self, stream: Stream) -> None:
        """Take the peer's END_STREAM."""

    def delivered(self, stream: Stream, count: int) -> None:
        """Bytes of a stream have left for the application."""
        stream.credit += count
        if stream.credit > self._half_stream:
            self._reopen(stream)
        self.discarded(count)

    def _reopen(self, stream: Stream) -> None:
        if not stream.remote_closed:
            self.out += frames.window_update(stream.sid, stream.credit)
            stream.receive_window += stream.credit
            stream.credit = 0

    def discarded(self, count: int) -> None:
        """The connection's window gets bytes back: those of a stream that is gone, which will never be delivered, too."""
        self._credit += count
        if self._credit > self.receive_window:
            self._widen()

    def _widen(self) -> None:
        """More may come than is left of the window: of all of it that is half, less while applications do not read."""
        if self._credit < _LEAST_GRANT_BYTES:
            return
        self.out += frames.window_update(0, self._credit)
        self.receive_window += self._credit
        self.widened += self._credit
        self._credit = 0
