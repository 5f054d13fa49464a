"""One HTTP/2 connection of HBONE, without I/O: plaintext bytes in, calls on streams out, frames to send in `out`.

The receiving half is ztunnel.intake; here is what frames mean, and what the owner and its streams can do. What we send goes
into `out` (small frames) and is written by the owner once per turn of its loop. A stream that sends DATA does so itself
(see ztunnel.stream): it takes the room from both windows and writes its header in front of its payload.

Source: RFC 9113; facts of Istio's ztunnel for sizes, timing and the shutdown sequence.
"""

from ztunnel import frames
from ztunnel.fields import Fields, FieldWriter, Repeating, strip_padding
from ztunnel.flow import Owner, Stream
from ztunnel.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_STREAM_ID,
    MAX_WINDOW,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Code,
    ProtocolError,
    Setting,
    Sizes,
)
from ztunnel.hbone import read_status, response_fields
from ztunnel.intake import WORK_OF_RESET, Intake
from ztunnel.keep_alive import PING_TIMEOUT_S, KeepAlive

HEARD_LATELY_S = 2.0
_USUAL_LIST_BYTES = 4096
"""Longer header lists cost allowance: a few bytes of HPACK may stand for 64 KiB."""


class Connection(Intake):
    """Both roles of one connection."""

    __slots__ = (
        "_excused",
        "_final_at",
        "_goaway_sid",
        "_initial_window",
        "_keep_alive",
        "_overdrawn",
        "_parting",
        "_peer_left",
        "_peer_streams",
        "blocked",
        "chunk",
        "draining",
        "granted",
        "largest",
        "max_streams",
        "owner",
        "reopened",
        "window",
        "writer",
    )

    def __init__(self, server: bool, owner: Owner, now: float, sizes: Sizes = frames.SIZES) -> None:
        super().__init__(server, now, sizes)
        self.owner = owner
        self.window = self._initial_window = frames.DEFAULT_WINDOW
        self.chunk = frames.MIN_MAX_FRAME_BYTES
        """Largest DATA payload that the peer accepts from us, and that we send."""
        self.largest = frames.SEND_FRAME_BYTES
        """Largest that we send, whatever it accepts."""
        self.blocked: dict[Stream, None] = {}
        """Streams that wait for a window, in order."""
        self.reopened = False
        """A window opened: the owner lets `blocked` streams go on when it has finished reading."""
        self.max_streams = frames.CLIENT_STREAMS
        self._peer_streams = frames.SERVER_STREAMS
        self._excused = 0
        """Streams too many that are no offence: they may have left before the peer knew how few it may have."""
        self.draining = False
        """No new streams, by either side's GOAWAY."""
        self.writer = FieldWriter()
        self.granted = frames.DEFAULT_WINDOW
        """Bytes that the peer has let us send by now, of all streams together."""
        self._goaway_sid = MAX_STREAM_ID
        self._final_at = 0.0
        """When we take no new streams any more, whatever the peer has heard; 0: not known yet."""
        self._peer_left = False
        self._keep_alive = KeepAlive(now)
        self._parting = frames.SERVER_STREAMS
        """Requests that may have left before the peer heard that it shall go."""
        self._overdrawn = False

    def dispatch(self, kind: int, sid: int, payload: bytes) -> None:
        """Take a whole frame that is not plain DATA. Raises: ProtocolError."""
        if kind == DATA:
            self._padded_data(payload)
        elif kind == HEADERS:
            self.headers(sid, self._flags, payload)
        elif kind == CONTINUATION:
            fields = self._reader.go_on(sid, self._flags, payload)
            if fields is not None:
                self._headers(sid, fields)
        elif kind == WINDOW_UPDATE:
            self._window_update(sid, frames.read_u32(payload))
        elif kind == SETTINGS:
            self._settings(payload)
        elif kind == PING:
            self._ping(payload)
        elif kind == RST_STREAM:
            self._rst_stream(sid, frames.read_code(payload))
        elif kind == GOAWAY:
            self._goaway(payload)

    def _padded_data(self, payload: bytes) -> None:
        data = strip_padding(payload)
        stream = self.streams.get(self._sid)
        if stream is None:
            self.discarded(len(payload))
            return
        self._stream = stream
        padding = len(payload) - len(data)
        self.delivered(stream, padding + (stream.take(memoryview(data)) if data else 0))
        if self._flags & END_STREAM and self._stream is stream:
            self.end_of_peer(stream)
        self._stream = None

    def headers(self, sid: int, flags: int, payload: bytes) -> None:
        """See Intake."""
        fields = self._reader.begin(sid, flags, payload)
        if fields is not None:
            self._headers(sid, fields)

    def _headers(self, sid: int, fields: Fields) -> None:
        ended = self._reader.ends_stream
        size = self._reader.list_bytes
        if size > _USUAL_LIST_BYTES:
            self._spend(self._budget.control, "long header lists", size / _USUAL_LIST_BYTES)
        stream = self.streams.get(sid)
        if stream is not None and (self.server or stream.answered):
            if not ended or stream.remote_closed:
                raise ProtocolError(Code.PROTOCOL_ERROR, f"second HEADERS on stream {sid}")
            self.end_of_peer(stream)  # trailers: nothing in them for us
        elif stream is not None:
            if not ended and 100 <= read_status(fields) < 200:
                self._spend(self._budget.control, "interim answers")
                return
            stream.answered = True
            stream.peer_answered(fields)
            if ended and self.streams.get(sid) is stream:
                self.end_of_peer(stream)
        elif not self._is_idle(sid):
            if self.server and not ended:
                raise ProtocolError(Code.STREAM_CLOSED, f"HEADERS on closed stream {sid}")
            self._spend(self._budget.control, "HEADERS on closed streams", 0.1)  # trailers, or an answer that crossed our reset
        elif not self.server or not sid & 1:
            raise ProtocolError(Code.PROTOCOL_ERROR, f"HEADERS on stream {sid}")
        else:
            self._request(sid, fields, size, ended)

    def _request(self, sid: int, fields: Fields, size: int, ended: bool) -> None:
        self.last_sid = sid
        if self._overdrawn:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, "too many refused requests")
        if sid > self._goaway_sid:  # sent after our final GOAWAY: the peer knows that nobody answers
            self._came_late()
            return
        if len(self.streams) >= self._peer_streams and self._excused:
            self._excused -= 1
            self._send_reset(sid, Code.REFUSED_STREAM)
        elif len(self.streams) >= self._peer_streams:
            self.refuse(sid, Code.REFUSED_STREAM)
        elif size > self._reader.max_list_bytes:
            self.reject(sid, response_fields(431))
        else:
            stream = self.owner.requested(sid, fields)
            if stream is not None and ended and self.streams.get(sid) is stream:
                self.end_of_peer(stream)

    def end_of_peer(self, stream: Stream) -> None:
        """Take the peer's END_STREAM."""
        stream.remote_closed = True
        if stream.local_closed:
            self._drop(stream)
        stream.peer_ended()

    def _settings(self, payload: bytes) -> None:
        if self._flags & ACK:
            if payload:
                raise ProtocolError(Code.FRAME_SIZE_ERROR, "SETTINGS ack with a payload")
            return
        for number, value in frames.read_settings(payload):
            if number == Setting.INITIAL_WINDOW_SIZE:
                self._move_windows(value - self._initial_window)
                self._initial_window = value
            elif number == Setting.MAX_FRAME_SIZE:
                self.chunk = min(value, self.largest)
            elif number == Setting.MAX_CONCURRENT_STREAMS:
                self.max_streams = value
            elif number == Setting.HEADER_TABLE_SIZE:
                self.writer.resize(value)
            elif number == Setting.ENABLE_PUSH and value and not self.server:
                raise ProtocolError(Code.PROTOCOL_ERROR, "a server enables push")
        self.ready = True
        self.out += frames.SETTINGS_ACK

    def opened_as_usual(self) -> None:
        """See Intake. What `_settings` and `_window_update` would make of it."""
        usual = frames.SIZES
        self._move_windows(usual.stream_window - self._initial_window)
        self._initial_window = usual.stream_window
        self.chunk = min(usual.frame, self.largest)
        if not self.server:
            self.max_streams = frames.SERVER_STREAMS
        self.window += usual.connection_window - frames.DEFAULT_WINDOW
        self.granted += usual.connection_window - frames.DEFAULT_WINDOW
        self.ready = True
        self.out += frames.SETTINGS_ACK

    def _move_windows(self, change: int) -> None:
        for stream in self.streams.values():
            stream.window += change
            if stream.window > MAX_WINDOW:
                raise ProtocolError(Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE overflows a stream")
        self.reopened = True

    def _window_update(self, sid: int, increment: int) -> None:
        self._budget.sent(self.granted - self.window)
        self._spend(self._budget.windows, "WINDOW_UPDATEs")
        if not increment:
            raise ProtocolError(Code.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if not sid:
            self.window += increment
            self.granted += increment
            overflows = self.window > MAX_WINDOW
        else:
            stream = self.streams.get(sid)
            if stream is None:
                if self._is_idle(sid):
                    raise ProtocolError(Code.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {sid}")
                return
            stream.window += increment
            overflows = stream.window > MAX_WINDOW
        if overflows:
            raise ProtocolError(Code.FLOW_CONTROL_ERROR, f"WINDOW_UPDATE overflows the window of stream {sid}")
        self.reopened = True

    def _ping(self, payload: bytes) -> None:
        if not self._flags & ACK:
            self.out += frames.frame(PING, ACK, 0, payload)
        elif payload == frames.PING_PAYLOAD:
            self._keep_alive.answered()
        elif payload == frames.DRAIN_PAYLOAD and self._is_parting:
            self._take_no_more()

    def _rst_stream(self, sid: int, code: int) -> None:
        stream = self.streams.get(sid)
        if stream is None:
            if self._is_idle(sid):
                raise ProtocolError(Code.PROTOCOL_ERROR, f"RST_STREAM on idle stream {sid}")
            self._spend(self._budget.resets, "resets")
            return
        if self.server and stream.receive_window == self.stream_window and stream.window >= self._initial_window:
            self._spend(self._budget.resets, "resets of streams that carried nothing")
        self.work -= WORK_OF_RESET
        self._drop(stream)
        stream.peer_reset(code)

    def _goaway(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, "GOAWAY too short")
        self.draining = self._peer_left = True
        last = frames.read_u32(payload)
        if not self.server:
            for stream in [one for one in self.streams.values() if one.sid > last]:
                self._drop(stream)
                stream.peer_reset(Code.REFUSED_STREAM)
        self.owner.retired()

    # --- what the owner and its streams do

    def restrain(self, share: float) -> None:
        """Leave a peer that is known to offend a part of its allowances and of its streams, and tell it how many those are."""
        self._budget.shrink(share)
        self._peer_streams, self._excused = int(frames.SERVER_STREAMS * share), frames.CLIENT_STREAMS
        self.out += frames.settings([(Setting.MAX_CONCURRENT_STREAMS, self._peer_streams)])

    @property
    def room(self) -> int:
        """How many more requests the connection takes now."""
        if self.draining or self.next_sid > MAX_STREAM_ID >> 1:
            return 0
        return max(0, self.max_streams - len(self.streams))

    def request(self, stream: Stream, repeating: Fields | Repeating, once: bytes) -> None:
        """Open a stream: `repeating` goes through the HPACK table, `once` is encoded already and follows it."""
        stream.sid = self.next_sid
        self.next_sid += 2
        stream.window, stream.receive_window = self._initial_window, self.stream_window
        self.streams[stream.sid] = stream
        self.out += frames.frame(HEADERS, END_HEADERS, stream.sid, self.writer.encode(repeating) + once)

    def adopt(self, stream: Stream, sid: int) -> None:
        """Give a requested stream its place."""
        stream.sid = sid
        stream.window, stream.receive_window = self._initial_window, self.stream_window
        self.streams[sid] = stream

    def answer(self, stream: Stream, fields: Fields | Repeating) -> None:
        """Accept a request."""
        stream.answered = True
        self.out += frames.frame(HEADERS, END_HEADERS, stream.sid, self.writer.encode(fields))

    def reject(self, sid: int, fields: Fields | Repeating) -> None:
        """Answer a request with a final status and no stream: HEADERS that end it, then RST_STREAM as its own side is open.

        Who has many is drained: its streams go on, and a client that does not know better asks by another tunnel.
        """
        if not self._budget.answers.spend(self.now):
            self.drain()  # told before the answer, so that the peer has no room for more requests until it knows
            self._came_late()
        stream = self.streams.get(sid)
        self.out += frames.frame(HEADERS, END_HEADERS | END_STREAM, sid, self.writer.encode(fields))
        if stream is None or not stream.remote_closed:
            self._send_reset(sid, Code.NO_ERROR)
        if stream is not None:
            self._drop(stream)

    def _came_late(self) -> None:
        self._parting -= 1
        self._overdrawn = self._parting < 0  # said to the peer's next request

    def refuse(self, sid: int, code: Code) -> None:
        """Reset a request that never became a stream."""
        self._spend(self._budget.refusals, "refused streams")
        self.out += frames.rst_stream(sid, code)

    def end(self, stream: Stream) -> None:
        """No more bytes from us."""
        self.out += frames.frame(DATA, END_STREAM, stream.sid)
        stream.local_closed = True
        if stream.remote_closed:
            self._drop(stream)

    def reset(self, stream: Stream, code: Code) -> None:
        """Give a stream up."""
        if self.streams.get(stream.sid) is stream:
            self._send_reset(stream.sid, code)
            self._budget.excuse_crossing(stream.receive_window)
            self._drop(stream)

    def _send_reset(self, sid: int, code: Code) -> None:
        self._budget.resets.earn(1)  # one of the peer's may cross it; behind a refusal both ends send one
        self.out += frames.rst_stream(sid, code)

    def _drop(self, stream: Stream) -> None:
        self.streams.pop(stream.sid, None)  # none are there of a connection that is gone, whose streams are still being told
        self.blocked.pop(stream, None)
        if self._stream is stream:
            self._stream = None
        self.owner.retired()

    @property
    def _is_parting(self) -> bool:
        """No new streams are wanted, and still they would be taken."""
        return self.draining and self._goaway_sid == MAX_STREAM_ID

    def _take_no_more(self) -> None:
        self._goaway_sid = self.last_sid
        self.out += frames.goaway(self.last_sid, Code.NO_ERROR)

    def tick(self, now: float) -> bool:
        """Send a keep-alive PING when it is due; False when the peer is lost.

        A peer that was told to go and does not say that it heard may be one that is not believed any more: it has a while.
        """
        if self.server and self._is_parting:
            self._final_at = self._final_at or now + PING_TIMEOUT_S
            if now >= self._final_at:
                self._take_no_more()
        if self._keep_alive.is_lost(now, self.now):
            return False
        if self._keep_alive.asks(now):
            self.out += frames.frame(PING, 0, 0, frames.PING_PAYLOAD)
        return True

    def heard_lately(self, now: float) -> bool:
        """Whether the peer has said anything of late: its address is hardly another's yet."""
        return now < self.now + HEARD_LATELY_S

    def drain(self) -> None:
        """Say that no new streams are wanted, and ask how far the peer had got: the second GOAWAY follows its answer."""
        if not self.draining:
            self.draining = True
            self.out += frames.goaway(MAX_STREAM_ID, Code.NO_ERROR)
            self.out += frames.frame(PING, 0, 0, frames.DRAIN_PAYLOAD)

    @property
    def idle(self) -> bool:
        """It could carry streams, and does not."""
        return self.ready and not self.streams and not self.draining

    @property
    def finished(self) -> bool:
        """Nothing is open, and nothing new will be: the owner closes."""
        if not self.draining or self.streams:
            return False
        return not self.server or self._peer_left or self._goaway_sid != MAX_STREAM_ID

    def abandon(self) -> list[Stream]:
        """The connection is gone: forget its streams, which the owner tells."""
        streams = list(self.streams.values())
        self.streams.clear()
        self.blocked.clear()
        self._stream = None
        self.draining = True
        return streams

    def fail(self, code: Code) -> None:
        """Queue the GOAWAY of a connection that ends now."""
        self.draining = True
        self.out += frames.goaway(self.last_sid, code)
