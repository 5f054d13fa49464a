"""HTTP/2 for HBONE without sockets: two ends in memory, and a peer that breaks every rule in turn."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hpack import Decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel import frames
from ztunnel.connection_record import Flag
from ztunnel.fields import Fields, FieldWriter, literal
from ztunnel.flow import Stream
from ztunnel.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITISED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Code,
    ProtocolError,
    frame,
    window_update,
)
from ztunnel.hbone import read_status, response_fields
from ztunnel.http2 import Connection

pytestmark = pytest.mark.unit

REQUEST: Fields = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]
OPENING = frames.CLIENT_OPENING
BLOCK = literal(b":method", b"CONNECT") + literal(b":authority", b"10.0.0.1:80")


class Recorder(Stream):
    """A stream that writes down what it hears, and takes `appetite` bytes at once."""

    def __init__(self, appetite: int = 1 << 30) -> None:
        super().__init__()
        self.appetite = appetite
        self.heard: list[str] = []
        self._data = bytearray()

    @property
    def data(self) -> bytes:
        return bytes(self._data)

    def take(self, data: memoryview) -> int:
        self._data += data
        return min(len(data), self.appetite)

    def peer_ended(self) -> None:
        self.heard.append("end")

    def peer_reset(self, code: int) -> None:
        self.heard.append(f"reset {code}")

    def peer_answered(self, fields: Fields) -> None:
        self.heard.append(f"answer {read_status(fields)}")

    def connection_lost(self, flag: Flag, error: str) -> None:
        self.heard.append("lost")

    def resume(self) -> None:
        self.heard.append("resume")


class End:
    """One end of a connection."""

    def __init__(self, server: bool, appetite: int = 1 << 30, sizes: frames.Sizes = frames.SIZES) -> None:
        self.http = Connection(server, self, 100.0, sizes)
        self.appetite = appetite
        self.streams: list[Recorder] = []
        self.retirements = 0

    def requested(self, sid: int, fields: Fields) -> Stream | None:
        stream = Recorder(self.appetite)
        self.http.adopt(stream, sid)
        self.streams.append(stream)
        return stream

    def retired(self) -> None:
        self.retirements += 1

    def says(self) -> bytes:
        said, self.http.out = bytes(self.http.out), bytearray()
        return said

    def hears(self, data: bytes, now: float = 100.0) -> None:
        view = memoryview(data)
        while view:  # each time as much as one turn of a loop allows
            view = view[self.http.receive(view, now) :]


def talk(*ends: End) -> None:
    """Carry bytes both ways until nobody has anything to say."""
    one, other = ends
    while (said := one.says()) or one.http.out or other.http.out:
        other.hears(said)
        one.hears(other.says())


def pair(appetite: int = 1 << 30, sizes: frames.Sizes = frames.SIZES) -> tuple[End, End]:
    client, server = End(False), End(True, appetite, sizes)
    talk(client, server)
    return client, server


def open_stream(client: End, server: End) -> tuple[Recorder, Recorder]:
    mine = Recorder()
    client.http.request(mine, REQUEST, b"")
    talk(client, server)
    theirs = server.streams[-1]
    server.http.answer(theirs, [(b":status", b"200")])
    talk(client, server)
    return mine, theirs


def test_settings_are_exchanged_and_acknowledged() -> None:
    client, server = End(False), End(True)
    server.hears(client.says())
    assert server.says() == frames.SERVER_OPENING + frames.SETTINGS_ACK
    assert server.http.ready and server.http.window == frames.SIZES.connection_window
    assert server.http.chunk == frames.SEND_FRAME_BYTES == 256 * 1024 - 9


@pytest.mark.parametrize(("accepted", "largest", "chunk"), [(1 << 20, 260_279, 260_279), (1 << 16, 260_279, 1 << 16)])
def test_a_frame_is_no_larger_than_its_peer_accepts_nor_than_fits_our_packets(accepted: int, largest: int, chunk: int) -> None:
    client, server = End(False, sizes=frames.Sizes(frame=accepted)), End(True)
    server.http.largest = largest
    server.hears(client.says())
    assert server.http.chunk == chunk


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("acknowledged", [b"", frames.SETTINGS_ACK])
def test_what_is_known_at_a_glance_is_what_comes_of_reading_it(server: bool, acknowledged: bytes) -> None:
    opening = (frames.CLIENT_OPENING if server else frames.SERVER_OPENING) + acknowledged
    found = []
    for size in (len(opening), 5, 1):
        end, stream = End(server), Recorder()
        if not server:
            end.http.request(stream, REQUEST, b"")
        for place in range(0, len(opening), size):
            end.hears(opening[place : place + size])
        http = end.http
        windows = http.window, http.granted, http._initial_window, stream.window
        found.append((windows, http.chunk, http.max_streams, http.ready, http.reopened, end.says()))
    assert found[0] == found[1] == found[2] and found[0][3]


def test_a_client_opens_as_many_streams_as_the_server_says_and_100_before_it_does() -> None:
    assert End(False).http.room == 100
    client, _ = pair()
    assert client.http.room == frames.SERVER_STREAMS == 200
    client.hears(frames.settings([(3, 1000)]))
    assert client.http.room == 1000


def test_a_request_leaves_in_the_first_flight() -> None:
    client = End(False)
    client.http.request(Recorder(), REQUEST, b"")
    said = client.says()
    assert said.startswith(OPENING) and said[len(OPENING) + 3 : len(OPENING) + 9].hex() == "010400000001"


def test_a_stream_from_request_to_both_ends() -> None:
    client, server = pair()
    mine, theirs = open_stream(client, server)
    assert mine.heard == ["answer 200"] and mine.answered and mine.window == frames.SIZES.stream_window
    server.hears(frame(DATA, 0, 1, b"to the server"))
    client.hears(frame(DATA, 0, 1, b"to the client"))
    assert (theirs.data, mine.data) == (b"to the server", b"to the client")
    client.http.end(mine)
    talk(client, server)
    assert theirs.heard == ["end"] and client.http.streams and server.http.streams and not server.http.idle
    server.http.end(theirs)
    talk(client, server)
    assert mine.heard[-1] == "end" and not client.http.streams and not server.http.streams and server.http.idle


@pytest.mark.parametrize("piece", [1 << 20, 1000])
def test_what_was_delivered_opens_windows_again_however_it_came_in(piece: int) -> None:
    sizes = frames.Sizes(stream_window=1 << 16, connection_window=1 << 17)
    client, server = pair(sizes=sizes)
    _, theirs = open_stream(client, server)
    sent = frame(DATA, 0, 1, bytes(16 << 10)) * 5
    for place in range(0, len(sent), piece):
        server.hears(sent[place : place + piece])
    granted = server.says()
    assert len(theirs.data) == 80 << 10
    assert granted_by(granted, 1) > 1 << 15 and granted_by(granted, 0) > 1 << 16


def granted_by(said: bytes, sid: int) -> int:
    """What the WINDOW_UPDATEs of a stream add up to; they are all that was said."""
    places = range(0, len(said), len(window_update(0, 1)))
    return sum(frames.read_u32(said, place + 9) for place in places if frames.header.unpack_from(said, place)[2] == sid)


def test_a_request_may_be_the_last_that_its_client_says() -> None:
    _, server = pair()
    server.hears(frame(HEADERS, END_HEADERS | END_STREAM, 1, BLOCK))
    assert server.streams[0].heard == ["end"] and server.streams[0].remote_closed


def test_a_connection_ends_before_its_stream_numbers_do() -> None:
    client, _ = pair()
    for last, room in ((frames.MAX_STREAM_ID >> 1, frames.SERVER_STREAMS), ((frames.MAX_STREAM_ID >> 1) + 2, 0)):
        client.http.next_sid = last
        assert client.http.room == room


def test_windows_reopen_only_for_delivered_bytes() -> None:
    client, server = pair(appetite=0)
    _, theirs = open_stream(client, server)
    for _ in range(4):
        server.hears(frame(DATA, 0, 1, bytes(1 << 20)))
    assert server.says() == b""
    server.http.delivered(theirs, (2 << 20) + 1)
    assert server.says() == window_update(1, (2 << 20) + 1)
    server.hears(frame(DATA, 0, 1, bytes(1 << 20)))
    with pytest.raises(ProtocolError, match="FLOW_CONTROL_ERROR"):
        server.hears(frame(DATA, 0, 1, bytes(1 << 20)) * 2)


def test_the_connections_window_bounds_all_streams_together() -> None:
    client, server = pair(appetite=0)
    for _ in range(5):
        open_stream(client, server)
    for sid in (1, 3, 5, 7):
        server.hears(frame(DATA, 0, sid, bytes(1 << 20)) * 4)
    with pytest.raises(ProtocolError, match="FLOW_CONTROL_ERROR: DATA overflows the connection"):
        server.hears(frame(DATA, 0, 9, b"x"))


@pytest.mark.parametrize(("left", "size"), [(1 << 16, 1 << 14), (5000, 100)], ids=["much", "little"])
@pytest.mark.parametrize("piece", [1 << 20, 1000])
def test_who_reads_goes_on_with_what_others_leave_of_the_connections_window(left: int, size: int, piece: int) -> None:
    """Applications that read nothing hold most of it: half of all can never have been read again while they do."""
    client, server = pair(sizes=frames.Sizes(stream_window=1 << 16, connection_window=1 << 18))
    for held in (1 << 16, 1 << 16, 1 << 16, (1 << 16) - left):
        _, deaf = open_stream(client, server)
        deaf.appetite = 0
        server.hears(frame(DATA, 0, deaf.sid, bytes(held)))
    _, theirs = open_stream(client, server)
    grants: list[int] = []
    for _ in range(1000):
        sent = frame(DATA, 0, theirs.sid, bytes(size))
        for place in range(0, len(sent), piece):
            server.hears(sent[place : place + piece])
        said = server.says()
        grants += [granted_by(said, 0)] if granted_by(said, 0) else []
        left += granted_by(said, 0) - size
        assert left >= size, "it is heard again before it has said all that it may"
    assert min(grants) > 2000, "and costs no peer its patience"
    assert server.http.widened == sum(grants)


def test_windows_and_frames_are_of_the_sizes_that_an_operator_sets() -> None:
    sizes = frames.Sizes(stream_window=1 << 17, connection_window=1 << 18, frame=1 << 16)
    client, server = pair(0, sizes)
    mine, theirs = open_stream(client, server)
    assert (mine.window, client.http.window, client.http.chunk) == (1 << 17, 1 << 18, 1 << 16)
    server.hears(frame(DATA, 0, 1, bytes(1 << 16)) * 2)
    server.http.delivered(theirs, (1 << 16) + 1)
    assert server.says() == window_update(1, (1 << 16) + 1)
    server.http.delivered(theirs, 1 << 16)
    assert server.says() == window_update(0, (1 << 17) + 1)
    with pytest.raises(ProtocolError, match="FRAME_SIZE_ERROR"):
        server.hears(frame(DATA, 0, 1, bytes((1 << 16) + 1)))
    client, server = pair(0, sizes)
    open_stream(client, server)
    with pytest.raises(ProtocolError, match="FLOW_CONTROL_ERROR: stream 1"):
        server.hears(frame(DATA, 0, 1, bytes(1 << 16)) * 3)


@pytest.mark.parametrize("appetite", [1 << 30, 60, 0], ids=["all of it", "a part", "nothing"])
def test_frames_that_come_together_are_accounted_for_as_those_that_come_in_pieces(appetite: int) -> None:
    """Enough for windows of both kinds to open again, something else in the middle, and more than one turn's work."""
    run = [frame(DATA, 0, sid, bytes([sid]) * 100) for sid in (1, 3, 5) for _ in range(50)]
    data = [*run, frame(PING, 0, 0, b"12345678"), frame(DATA, 0, 3, bytes(9000)), frame(DATA, 0, 1, b"x"), *run[:50]]
    data.append(frame(DATA, 0, 5, bytes(9000)))
    heads_apart = [part for one in data for part in (one[: frames.HEADER_BYTES], one[frames.HEADER_BYTES :])]
    seen = []
    for pieces in ([b"".join(data)], heads_apart):
        client, server = pair(appetite, frames.Sizes(stream_window=20_000, connection_window=70_000))
        for _ in range(3):
            open_stream(client, server)
        for piece in pieces:
            server.hears(piece)
        http = server.http
        seen.append(([(one.data, one.receive_window, one.credit) for one in server.streams], http.bulk_bytes))
        undelivered = sum(20_000 - one.receive_window - one.credit for one in server.streams)
        assert http.receive_window + http._credit == 70_000 - undelivered
        assert http._credit <= 35_000 and (http.receive_window > 35_000) == (appetite > 100)
    assert seen[0] == seen[1]


def test_a_window_that_overflows_in_the_middle_of_what_came_does_so_behind_what_fitted() -> None:
    client, server = pair(0, frames.Sizes(stream_window=1000, connection_window=70_000))
    _, theirs = open_stream(client, server)
    with pytest.raises(ProtocolError, match="FLOW_CONTROL_ERROR: stream 1"):
        server.hears(frame(DATA, 0, 1, b"a" * 600) + frame(DATA, 0, 1, b"b" * 400) + frame(DATA, 0, 1, b"cc"))
    assert theirs.data == b"a" * 600 + b"b" * 400


def test_a_frame_with_padding_is_small_enough_to_be_collected_however_large_others_may_be() -> None:
    client, server = pair(sizes=frames.Sizes(frame=frames.LARGEST_FRAME_BYTES))
    _, theirs = open_stream(client, server)
    server.hears(frame(DATA, 0, 1, bytes(2 << 20)) + frame(DATA, PADDED, 1, bytes(64 << 10)))
    assert len(theirs.data) == (2 << 20) + (64 << 10) - 1
    with pytest.raises(ProtocolError, match="FRAME_SIZE_ERROR"):
        server.hears(frame(DATA, PADDED, 1, bytes((64 << 10) + 1)))


def test_bytes_of_a_stream_that_we_reset_give_the_window_back() -> None:
    client, server = pair()
    _, theirs = open_stream(client, server)
    server.http.reset(theirs, Code.CANCEL)
    assert server.says() == frames.rst_stream(1, Code.CANCEL)
    server.hears(frame(DATA, 0, 1, bytes(1 << 20)) * 9)
    assert server.says() == window_update(0, 9 << 20)
    server.hears(frame(DATA, PADDED, 1, bytes(64 << 10)) * 129)
    assert server.says() == window_update(0, 129 << 16)


def test_trailers_end_a_stream_as_an_empty_frame_does() -> None:
    client, server = pair()
    mine, theirs = open_stream(client, server)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(b"x", b"y"))
    for end in (client, server):
        end.hears(trailers)
        with pytest.raises(ProtocolError, match="PROTOCOL_ERROR: second HEADERS"):
            end.hears(trailers)
    assert (mine.heard, theirs.heard) == (["answer 200", "end"], ["end"])


def test_a_peer_that_keeps_no_table_can_read_what_it_is_sent() -> None:
    _, server = pair()
    server.hears(frames.settings([(1, 0)]))
    assert server.says() == frames.SETTINGS_ACK
    reader, fields = Decoder(), [(b":status", b"200"), (b"baggage", b"a=b")]
    reader.max_allowed_table_size = 0
    for sid in (1, 3):
        server.hears(frame(HEADERS, END_HEADERS, sid, BLOCK))
        server.http.answer(server.streams[-1], fields)
        assert [tuple(field) for field in reader.decode(server.says()[9:], raw=True)] == fields


def test_resets_reach_the_stream_and_free_its_place() -> None:
    client, server = pair()
    mine, theirs = open_stream(client, server)
    server.http.reset(theirs, Code.CANCEL)
    talk(client, server)
    assert mine.heard[-1] == "reset 8" and not client.http.streams
    server.hears(window_update(1, 5) + frame(DATA, 0, 1, b"late"))  # still on its way when we reset: no harm
    assert not theirs.data


def test_an_answer_that_crosses_our_reset_is_no_offence() -> None:
    client, server = pair()
    mine = Recorder()
    client.http.request(mine, REQUEST, b"")
    server.hears(client.says())
    server.http.answer(server.streams[0], [(b":status", b"200")])
    client.http.reset(mine, Code.CANCEL)
    talk(client, server)
    assert mine.heard == [] and open_stream(client, server)[0].heard == ["answer 200"]


@pytest.mark.parametrize("data", [frame(DATA, 0, 1, b"x"), frame(DATA, END_STREAM, 1)], ids=["bytes", "their end"])
def test_a_server_may_not_send_bytes_before_its_answer(data: bytes) -> None:
    client, _ = pair()
    client.http.request(Recorder(), REQUEST, b"")
    with pytest.raises(ProtocolError, match="before its response"):
        client.hears(data)


def test_a_rejected_request_leaves_the_connection_in_use() -> None:
    client, server = pair()
    mine = Recorder()
    client.http.request(mine, REQUEST, b"")
    talk(client, server)
    server.http.reject(1, [(b":status", b"401")])
    said = server.says()
    assert said.endswith(frames.rst_stream(1, Code.NO_ERROR)) and said[4] == END_STREAM | END_HEADERS
    client.hears(said)
    assert mine.heard == ["answer 401", "end", "reset 0"] and not client.http.streams and not server.http.streams
    assert open_stream(client, server)[0].heard == ["answer 200"]


@pytest.mark.parametrize("adopted", [True, False], ids=["a stream already", "none yet"])
@pytest.mark.parametrize("ended", [END_STREAM, 0], ids=["has spoken", "may speak"])
def test_a_rejected_request_is_reset_where_its_client_may_still_speak(adopted: bool, ended: int) -> None:
    """RFC 9113 section 8.1. A client whose end is not known for want of a stream may."""
    server = End(True)
    if not adopted:
        server.requested = lambda _sid, _fields: None  # type: ignore[assignment,method-assign]
    server.hears(OPENING + frame(HEADERS, END_HEADERS | ended, 1, BLOCK))
    server.says()
    server.http.reject(1, [(b":status", b"503")])
    said = server.says()
    assert said[3:9] == bytes((HEADERS, END_HEADERS | END_STREAM, 0, 0, 0, 1)) and not server.http.streams
    assert said.endswith(frames.rst_stream(1, Code.NO_ERROR)) == (not adopted or not ended)


def test_the_201st_stream_is_refused_and_the_others_live() -> None:
    client, server = pair()
    client.http.max_streams = 1000
    many = [Recorder() for _ in range(201)]
    for stream in many:
        client.http.request(stream, REQUEST, b"")
    talk(client, server)
    assert len(server.http.streams) == 200 and many[200].heard == ["reset 7"] and many[0].heard == []


@pytest.mark.parametrize("sizes", [(0, 0), (64, 64), (4096,), (0, 4096), (1000, 64, 4096), (64, 4000, 64), (0, 1 << 20)])
def test_whatever_table_sizes_a_peer_sets_it_can_read_the_next_block(sizes: tuple[int, ...]) -> None:
    writer, reader = FieldWriter(), Decoder()
    for _ in range(2):
        assert [tuple(field) for field in reader.decode(writer.encode(REQUEST), raw=True)] == REQUEST
    for size in sizes:
        writer.resize(size)
    reader.max_allowed_table_size = sizes[-1]  # by then all are acknowledged
    for _ in range(3):
        assert [tuple(field) for field in reader.decode(writer.encode(REQUEST), raw=True)] == REQUEST
    assert reader.header_table_size == min(sizes[-1], 4096)


def test_interim_answers_are_passed_over() -> None:
    """A client must be able to: RFC 9110 section 15.2."""
    client, server = pair()
    mine = Recorder()
    client.http.request(mine, REQUEST, b"")
    talk(client, server)
    for status in (b"100", b"103"):
        server.http.answer(server.streams[0], [(b":status", status)])
    talk(client, server)
    assert (mine.heard, mine.answered) == ([], False)
    server.http.answer(server.streams[0], [(b":status", b"200")])
    talk(client, server)
    assert (mine.heard, mine.answered) == (["answer 200"], True)
    with pytest.raises(ProtocolError, match="PROTOCOL_ERROR: second HEADERS"):
        client.hears(frame(HEADERS, END_HEADERS, 1, literal(b":status", b"103")))


def test_interim_answers_have_an_allowance() -> None:
    client, server = pair()
    client.http.request(Recorder(), REQUEST, b"")
    talk(client, server)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many interim answers"):
        client.hears(frame(HEADERS, END_HEADERS, 1, literal(b":status", b"103")) * 300)


def test_new_windows_apply_to_open_streams() -> None:
    client, server = pair()
    mine, _ = open_stream(client, server)
    client.hears(frames.settings([(4, 10)]))
    assert mine.window == 10 and client.http.reopened
    mine.window = -5
    client.hears(frames.settings([(4, 20)]))
    assert mine.window == 5


@pytest.mark.parametrize("wide", [False, True], ids=["as wide as it may be", "wider"])
@pytest.mark.parametrize("of", ["the connection", "a stream", "all streams"])
def test_a_window_is_2_gib_at_most(of: str, wide: bool) -> None:
    """RFC 9113 section 6.9.1."""
    client, server = pair()
    mine, _ = open_stream(client, server)
    if of == "all streams":
        mine.window += 1
        change = frames.settings([(4, frames.MAX_WINDOW - 1 + wide)])
    elif of == "a stream":
        change = window_update(1, frames.MAX_WINDOW - mine.window + wide)
    else:
        change = window_update(0, frames.MAX_WINDOW - client.http.window + wide)
    if wide:
        with pytest.raises(ProtocolError, match="FLOW_CONTROL_ERROR"):
            client.hears(change)
    else:
        client.hears(change)
        assert frames.MAX_WINDOW in (client.http.window, mine.window)


def test_padding_is_taken_off_and_counted() -> None:
    client, server = pair()
    _, theirs = open_stream(client, server)
    server.hears(frame(DATA, PADDED | END_STREAM, 1, b"\x03abc" + bytes(3)))
    assert theirs.data == b"abc" and theirs.heard == ["end"] and theirs.credit == 7


def test_padded_bytes_of_a_stream_that_is_gone_are_given_back_to_the_others() -> None:
    client, server = pair()
    _, theirs = open_stream(client, server)
    server.http.reset(theirs, Code.CANCEL)
    heard = list(theirs.heard)
    window = server.http.receive_window
    for _ in range(2):
        server.hears(frame(DATA, PADDED | END_STREAM, 1, b"\x03abc" + bytes(3)))
    assert (theirs.data, theirs.heard) == (b"", heard)
    assert server.http.receive_window == window - 14
    server.http.receive_window = 0
    server.http.discarded(2048)
    assert server.http.receive_window == 2062, "as soon as it is worth saying"


def test_ping_is_answered_and_sent_and_its_silence_noticed() -> None:
    _, server = pair()
    server.hears(frame(PING, 0, 0, b"12345678"))
    assert server.says() == frame(PING, ACK, 0, b"12345678")
    assert server.http.tick(109.9) and server.says() == b""
    assert server.http.tick(110.0)
    assert server.says().hex() == "0000080600000000003b7cdb7a0b8716b4"
    assert server.http.tick(129.9) and not server.http.tick(130.0)
    server.hears(frame(PING, ACK, 0, frames.PING_PAYLOAD))
    assert server.http.tick(130.0) and server.says() == b""
    assert server.http.tick(139.9) and server.says() == frame(PING, 0, 0, frames.PING_PAYLOAD)
    server.hears(frame(PING, ACK, 0, frames.PING_PAYLOAD), 140.0)
    assert server.http.tick(141.0) and not server.says(), "not before it is due"


def test_who_says_anything_is_there_though_its_answer_is_late() -> None:
    """Bulk on a slow link: the PING, or its answer, waits behind it for longer than its time."""
    client, server = pair()
    open_stream(client, server)
    assert server.http.tick(110.0)
    server.hears(frame(DATA, 0, 1, b"bulk"), 125.0)
    assert server.http.tick(144.9) and not server.http.tick(145.0)


def test_shutdown_sends_two_goaways_around_a_ping() -> None:
    client, server = pair()
    assert not client.http.finished and not server.http.finished, "it is idle, and no more"
    mine, theirs = open_stream(client, server)
    server.http.drain()
    said = server.says()
    assert said.hex() == "0000080700000000007fffffff00000000" + "0000080600000000000b7ba2f08b9bfe54"
    client.hears(said)
    assert client.http.room == 0 and client.http.streams and client.retirements == 1, "its owner looks for another tunnel"
    assert not server.http.finished
    server.hears(client.says())
    assert server.says() == frames.goaway(1, Code.NO_ERROR)
    server.hears(frame(PING, ACK, 0, frames.DRAIN_PAYLOAD))
    assert server.says() == b"", "said once"
    server.hears(frame(HEADERS, END_HEADERS, 3, BLOCK))
    assert len(server.streams) == 1 and server.says() == b""  # too late: no answer
    server.hears(frame(DATA, 0, 1, b"goes on"))
    assert theirs.data == b"goes on"
    client.http.end(mine)
    server.http.end(theirs)
    talk(client, server)
    assert all(end.http.finished for end in (server, client))


def test_who_carries_nothing_goes_as_soon_as_nothing_can_be_on_its_way() -> None:
    """A request may be, to a server whose client has not heard yet. Nobody asks a client."""
    client, server = pair()
    server.http.drain()
    seen = [(client.http.finished, server.http.finished)]
    for speaks, hears in ((server, client), (client, server)):
        hears.hears(speaks.says())
        seen.append((client.http.finished, server.http.finished))
    assert seen == [(False, False), (True, False), (True, True)]
    client, server = pair()
    client.http.drain()
    assert client.http.finished
    server.hears(client.says())
    assert server.http.finished


@pytest.mark.parametrize("first", [b"", frame(GOAWAY, 0, 0, bytes(8))], ids=["deaf", "says that it goes itself"])
def test_who_does_not_say_that_it_heard_of_the_end_begins_nothing_all_the_same(first: bytes) -> None:
    """It may be a peer whose root is believed no more, and have a stream open for ever."""
    client, server = pair()
    _, theirs = open_stream(client, server)
    server.hears(first)
    server.http.drain()
    server.hears(frame(HEADERS, END_HEADERS, 3, BLOCK))  # it may have been on its way
    assert len(server.streams) == 2
    server.says()
    for now in (110.0, 120.0):
        assert server.http.tick(now)
        server.hears(frame(PING, ACK, 0, frames.PING_PAYLOAD), now)
    assert frames.goaway(3, Code.NO_ERROR) not in server.says()
    assert server.http.tick(130.0) and frames.goaway(3, Code.NO_ERROR) in server.says()
    server.hears(frame(HEADERS, END_HEADERS, 5, BLOCK) + frame(DATA, 0, 1, b"goes on"), 130.0)
    assert len(server.streams) == 2 and theirs.data == b"goes on"
    server.hears(frame(PING, ACK, 0, frames.DRAIN_PAYLOAD), 130.0)
    assert server.http.tick(140.0) and frames.goaway(3, Code.NO_ERROR) not in server.says(), "said once"
    for sid in (1, 3):
        server.hears(frames.rst_stream(sid, Code.NO_ERROR), 140.0)
    assert server.http.finished


def test_a_connection_that_is_gone_takes_no_stream() -> None:
    """Whose stream is lost with it may ask for another one at once."""
    client, server = pair()
    mine, _ = open_stream(client, server)
    assert client.http.abandon() == [mine]
    assert client.http.room == 0 and not client.http.idle


def test_goaway_refuses_the_streams_that_it_did_not_reach() -> None:
    client, _ = pair()
    first, second = Recorder(), Recorder()
    client.http.request(first, REQUEST, b"")
    client.http.request(second, REQUEST, b"")
    client.hears(frames.goaway(1, Code.NO_ERROR))
    assert second.heard == ["reset 7"] and first.heard == [] and client.http.room == 0
    assert list(client.http.streams) == [1]


# --- a hostile peer

HostileCase = tuple[str, bytes, Code]
EMPTY_FRAGMENT = frame(CONTINUATION, 0, 1)


def hostile(block: bytes, times: int = 1) -> list[HostileCase]:
    """Attacks by name, with the code that ends them; `block` is a request that the server accepts.

    Floods are a little more than what is allowed at once, `times` over: more comes to be allowed while a busy machine reads.
    """
    start, flood = frame(HEADERS, END_HEADERS, 1, block), 300 * times
    return [
        ("oversized DATA", start + frame(DATA, 0, 1, bytes((1 << 20) + 1)), Code.FRAME_SIZE_ERROR),
        ("oversized unknown frame", frame(0xBB, 0, 0, bytes((1 << 20) + 1)), Code.FRAME_SIZE_ERROR),
        ("oversized HEADERS", frame(HEADERS, END_HEADERS, 1, bytes((64 << 10) + 1)), Code.ENHANCE_YOUR_CALM),
        ("CONTINUATION flood", frame(HEADERS, 0, 1, block) + EMPTY_FRAGMENT * 20, Code.ENHANCE_YOUR_CALM),
        ("CONTINUATION bytes", frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, bytes(40000)) * 2, Code.ENHANCE_YOUR_CALM),
        (
            "header bomb",
            frame(HEADERS, END_HEADERS, 1, b"\x40\x01x\x7f\xa0\x1e" + b"y" * 3999 + b"\xbe" * 9000),
            Code.ENHANCE_YOUR_CALM,
        ),
        (
            "header bomb of few fields",
            frame(HEADERS, END_HEADERS, 1, b"\x40\x01x\x7f\xa0\x1e" + b"y" * 3999 + b"\xbe" * 60),
            Code.ENHANCE_YOUR_CALM,
        ),
        (
            "stream that depends on itself",
            frame(HEADERS, END_HEADERS | PRIORITISED, 1, b"\x80\0\0\1\x10" + block),
            Code.PROTOCOL_ERROR,
        ),
        ("bad HPACK", frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"), Code.COMPRESSION_ERROR),
        ("window overflow", window_update(0, 2**31 - 1), Code.FLOW_CONTROL_ERROR),
        ("stream window overflow", start + window_update(1, 2**31 - 1), Code.FLOW_CONTROL_ERROR),
        ("window update of 0", window_update(0, 0), Code.PROTOCOL_ERROR),
        ("stream overflow", start + frame(DATA, 0, 1, bytes(1 << 20)) * 5, Code.FLOW_CONTROL_ERROR),
        (
            "settings overflow",
            start + window_update(1, 2**31 - 1 - (4 << 20)) + frames.settings([(4, 2**31 - 1)]),
            Code.FLOW_CONTROL_ERROR,
        ),
        ("SETTINGS flood", frames.settings([(3, 1)]) * flood, Code.ENHANCE_YOUR_CALM),
        ("PING flood", frame(PING, 0, 0, bytes(8)) * flood, Code.ENHANCE_YOUR_CALM),
        ("PING ack flood", frame(PING, ACK, 0, bytes(8)) * flood, Code.ENHANCE_YOUR_CALM),
        ("PRIORITY flood", frame(PRIORITY, 0, 1, bytes(5)) * flood, Code.ENHANCE_YOUR_CALM),
        ("unknown flood", frame(0xBB, 0, 0) * flood, Code.ENHANCE_YOUR_CALM),
        ("GOAWAY flood", frame(GOAWAY, 0, 0, bytes(8)) * flood, Code.ENHANCE_YOUR_CALM),
        ("RST_STREAM flood", start + frames.rst_stream(1, 8) * flood, Code.ENHANCE_YOUR_CALM),
        ("empty DATA flood", start + frame(DATA, 0, 1) * 200 * times, Code.ENHANCE_YOUR_CALM),
        ("padding-only DATA flood", start + frame(DATA, PADDED, 1, b"\0") * 200 * times, Code.ENHANCE_YOUR_CALM),
        ("WINDOW_UPDATE flood", window_update(0, 1) * 5000 * times, Code.ENHANCE_YOUR_CALM),
        ("stream id 0", frame(HEADERS, END_HEADERS, 0, block), Code.PROTOCOL_ERROR),
        ("even stream id", frame(HEADERS, END_HEADERS, 2, block), Code.PROTOCOL_ERROR),
        (
            "stream id going back",
            frame(HEADERS, END_HEADERS, 5, block) + frame(HEADERS, END_HEADERS, 3, block),
            Code.STREAM_CLOSED,
        ),
        ("DATA on idle stream", frame(DATA, 0, 1, b"x"), Code.PROTOCOL_ERROR),
        ("DATA on stream 0", frame(DATA, 0, 0, b"x"), Code.PROTOCOL_ERROR),
        ("RST_STREAM on idle stream", frames.rst_stream(7, 0), Code.PROTOCOL_ERROR),
        ("WINDOW_UPDATE on idle stream", window_update(7, 1), Code.PROTOCOL_ERROR),
        ("DATA after END_STREAM", start + frame(DATA, END_STREAM, 1) + frame(DATA, 0, 1, b"x"), Code.STREAM_CLOSED),
        ("END_STREAM twice", start + frame(DATA, END_STREAM, 1) * 2, Code.STREAM_CLOSED),
        ("END_STREAM on idle stream", frame(DATA, END_STREAM, 1), Code.PROTOCOL_ERROR),
        (
            "headers interrupted by END_STREAM",
            start + frame(HEADERS, 0, 3, block) + frame(DATA, END_STREAM, 1),
            Code.PROTOCOL_ERROR,
        ),
        (
            "headers interrupted by others",
            frame(HEADERS, 0, 1, block) + frame(HEADERS, END_HEADERS, 3, block),
            Code.PROTOCOL_ERROR,
        ),
        ("second HEADERS", start + start, Code.PROTOCOL_ERROR),
        ("interrupted headers", frame(HEADERS, 0, 1, block) + frame(PING, 0, 0, bytes(8)), Code.PROTOCOL_ERROR),
        ("CONTINUATION alone", frame(CONTINUATION, END_HEADERS, 1, block), Code.PROTOCOL_ERROR),
        ("PUSH_PROMISE", frame(PUSH_PROMISE, 0, 1, bytes(4)), Code.PROTOCOL_ERROR),
        ("short PING", frame(PING, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR),
        ("short RST_STREAM", start + frame(RST_STREAM, 0, 1, bytes(3)), Code.FRAME_SIZE_ERROR),
        ("long WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, bytes(5)), Code.FRAME_SIZE_ERROR),
        ("short GOAWAY", frame(GOAWAY, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR),
        ("huge SETTINGS", frame(SETTINGS, 0, 0, bytes(6 * 100)), Code.ENHANCE_YOUR_CALM),
        ("SETTINGS ack with payload", frame(SETTINGS, ACK, 0, bytes(6)), Code.FRAME_SIZE_ERROR),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1), Code.PROTOCOL_ERROR),
        ("padding too long", start + frame(DATA, PADDED, 1, b"\x09abc"), Code.PROTOCOL_ERROR),
        ("padded without length", start + frame(DATA, PADDED, 1), Code.FRAME_SIZE_ERROR),
        ("bytes after END_STREAM", start + frame(DATA, END_STREAM, 1) + frame(DATA, 0, 1, b"more"), Code.STREAM_CLOSED),
        ("headers interrupted by bytes", start + frame(HEADERS, 0, 3, block) + frame(DATA, 0, 1, b"more"), Code.PROTOCOL_ERROR),
        (
            "RST_STREAM on a server's stream",
            frame(HEADERS, END_HEADERS, 5, block) + frames.rst_stream(2, 0),
            Code.PROTOCOL_ERROR,
        ),
        ("head of oversized HEADERS", frame(HEADERS, END_HEADERS, 1, bytes((64 << 10) + 1))[:9], Code.ENHANCE_YOUR_CALM),
    ]


HOSTILE = hostile(BLOCK)


@pytest.mark.parametrize(("attack", "code"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_hostile_peer_loses_its_connection_with_the_right_code(attack: bytes, code: Code) -> None:
    server = End(True, appetite=0)
    server.hears(OPENING)
    with pytest.raises(ProtocolError) as failure:
        server.hears(attack)
    assert failure.value.code is code


def test_rapid_resets_end_the_connection() -> None:
    server = End(True)
    server.hears(OPENING)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many resets"):
        for sid in range(1, 1001, 2):
            server.hears(frame(HEADERS, END_HEADERS, sid, BLOCK) + frames.rst_stream(sid, Code.CANCEL))
    assert len(server.streams) < 250


@pytest.mark.parametrize("first", ["application", "client"])
def test_resets_of_streams_that_carried_anything_are_none_of_them(first: str) -> None:
    """Whoever looks whether a database is there, and closes without reading its greeting, resets."""
    server = End(True)
    server.hears(OPENING)
    for sid in range(1, 1001, 2):
        server.hears(frame(HEADERS, END_HEADERS, sid, BLOCK))
        server.http.answer(server.streams[-1], [(b":status", b"200")])
        if first == "client":
            server.hears(frame(DATA, 0, sid, b"x"))
        else:
            server.streams[-1].window -= 10  # as the pump does with what it sends
        server.hears(frames.rst_stream(sid, Code.CANCEL))
    assert not server.http.streams


def test_stream_floods_end_the_connection() -> None:
    server = End(True)
    server.hears(OPENING)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many refused streams"):
        for sid in range(1, 2001, 2):
            server.hears(frame(HEADERS, END_HEADERS, sid, BLOCK))
    assert len(server.http.streams) == 200


def test_a_peer_that_is_known_to_offend_has_a_part_of_streams_and_allowances() -> None:
    client, server = End(False), End(True)
    server.http.restrain(1 / 16)
    talk(client, server)
    assert client.http.max_streams == 12
    sids = iter(range(1, 1000, 2))
    for _ in range(12 + 100 + 8):  # taken; refused, as they might have left before it knew; refused
        server.hears(frame(HEADERS, END_HEADERS, next(sids), BLOCK))
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many refused streams"):
        server.hears(frame(HEADERS, END_HEADERS, next(sids), BLOCK))
    assert len(server.http.streams) == 12


def test_a_client_that_comes_back_with_all_its_streams_does_not_offend_again_by_that() -> None:
    """It takes its usual ones for granted until it hears: else it would lose each tunnel for as long as it is busy."""
    client, server = End(False), End(True)
    server.http.restrain(1 / 16)
    many = [Recorder() for _ in range(client.http.room)]
    for stream in many:
        client.http.request(stream, REQUEST, b"")
    talk(client, server)
    assert [stream.heard for stream in many] == [[]] * 12 + [["reset 7"]] * 88 and client.http.room == 0


def ask_in_vain(client: End, server: End, times: int) -> int:
    """A client whose requests are all refused, at once, and who goes when it is told: how many it had."""
    for done in range(times):
        if not client.http.room:
            return done
        mine = Recorder()
        client.http.request(mine, REQUEST, b"")
        server.hears(client.says())
        server.http.reject(mine.sid, [(b":status", b"503")])
        client.hears(server.says())
        assert mine.heard[0] == "answer 503"
    return times


def test_who_is_refused_again_and_again_is_drained_and_its_streams_go_on() -> None:
    """A policy refuses, or an application is gone: not the client's fault, nor that of its other connections."""
    client, server = pair()
    mine, theirs = open_stream(client, server)
    assert ask_in_vain(client, server, 2000) == 1281
    talk(client, server)
    assert client.http.draining and server.http.draining and not server.http.finished
    server.hears(frame(DATA, 0, mine.sid, b"goes on"))
    assert theirs.data == b"goes on" and mine.heard == ["answer 200"]
    client.http.end(mine)
    server.http.end(theirs)
    talk(client, server)
    assert server.http.finished


def test_requests_on_their_way_when_a_client_is_drained_are_no_offence() -> None:
    """As many as it may have open at a time; they are refused long after they came, as by an application that is gone."""
    client, server = pair()
    assert ask_in_vain(client, server, 1280) == 1280
    many = [Recorder() for _ in range(200)]
    for stream in many:
        client.http.request(stream, REQUEST, b"")
    server.hears(client.says())
    for stream in many:
        server.http.reject(stream.sid, [(b":status", b"503")])
    client.hears(server.says())
    assert all(stream.heard[0] == "answer 503" for stream in many) and client.http.room == 0
    server.hears(frame(HEADERS, END_HEADERS, client.http.next_sid, BLOCK))  # one that nobody should send any more, and no error


@pytest.mark.parametrize("acknowledges", [True, False])
def test_who_asks_on_when_it_is_drained_for_what_it_was_refused_offends(acknowledges: bool) -> None:
    client, server = pair()
    ask_in_vain(client, server, 1281)
    if acknowledges:
        server.hears(frame(PING, ACK, 0, frames.DRAIN_PAYLOAD))  # from now on nobody answers
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many refused requests"):
        for sid in range(2601, 2601 + 2 * 201, 2):
            server.hears(frame(HEADERS, END_HEADERS, sid, BLOCK))
            if not acknowledges:
                server.http.reject(sid, [(b":status", b"503")])
    assert 190 <= (server.http.last_sid - 2599) // 2 <= 201


def test_refusals_within_their_allowance_cost_neither_end_the_connection() -> None:
    """An application is gone, and a client tries again and again: each refusal is reset by both ends, and streams live on."""

    class Refused(Recorder):
        def peer_answered(self, fields: Fields) -> None:
            super().peer_answered(fields)
            client.http.reset(self, Code.CANCEL)

    client, server = pair()
    mine, theirs = open_stream(client, server)
    for second in range(100):
        for _ in range(100):
            stream = Refused()
            client.http.request(stream, REQUEST, b"")
            server.hears(client.says(), 100.0 + second)
            server.http.reject(stream.sid, [(b":status", b"503")])
            client.hears(server.says(), 100.0 + second)
            server.hears(client.says(), 100.0 + second)
            assert stream.heard == ["answer 503"]
    client.http.end(mine)
    talk(client, server)
    assert theirs.heard == ["end"]


@pytest.mark.parametrize("ours", [True, False], ids=["the client's reset", "the server's reset"])
def test_what_crosses_a_reset_is_no_offence(ours: bool) -> None:
    """Clients that give up by the hundred, as others are late to answer."""
    client, server = pair()
    for _ in range(1500):
        mine = Recorder()
        client.http.request(mine, REQUEST, b"")
        talk(client, server)
        theirs = server.streams.pop()
        if ours:
            server.http.answer(theirs, [(b":status", b"200")])
            server.http.out += frame(DATA, 0, theirs.sid, b"late") * 20
            theirs.window -= 80
            client.http.reset(mine, Code.CANCEL)
            client.hears(server.says())
        else:
            client.http.out += frame(DATA, 0, mine.sid, b"late") * 20
            server.http.reset(theirs, Code.CANCEL)
            server.hears(client.says())
        talk(client, server)
    assert not client.http.streams and not server.http.streams


def test_long_header_lists_have_an_allowance() -> None:
    """A few bytes of each stand for 64 KiB."""
    server = End(True)
    server.hears(OPENING)
    bomb = frame(HEADERS, END_HEADERS, 1, BLOCK + b"\x40\x01x\x7f\xa0\x1e" + b"y" * 3999 + b"\xbe" * 10)
    server.hears(bomb)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many long header lists"):
        for sid in range(3, 99, 2):
            server.hears(frame(HEADERS, END_HEADERS, sid, BLOCK + b"\xbe" * 12))


@pytest.mark.parametrize(
    ("flood", "most"),
    [
        ([frame(HEADERS, END_HEADERS, sid, BLOCK) for sid in range(1, 399, 2)], 2),
        ([one for sid in range(1, 399, 2) for one in (frame(HEADERS, END_HEADERS, sid, BLOCK), frames.rst_stream(sid, 8))], 3),
        ([frame(HEADERS, END_HEADERS, 1, BLOCK), *[frame(DATA, 0, 1, b"xx")] * 1000], 128),
        ([window_update(0, 1)] * 1000, 128),
        ([frames.settings([(4, 1)])] * 250, 128),
        ([frame(HEADERS, END_HEADERS | END_STREAM, sid, BLOCK) for sid in range(1, 399, 2)], 2),
        ([frame(HEADERS, END_HEADERS, sid, BLOCK + literal(b"x", b"y" * 8000)) for sid in (1, 3, 5)], 1),
    ],
    ids=["streams", "rapid resets", "small frames", "WINDOW_UPDATEs", "SETTINGS", "short streams", "long headers"],
)
def test_one_turn_does_a_bounded_amount_of_work(flood: list[bytes], most: int) -> None:
    """However much has come: others are served before the rest is."""
    server, data = End(True), b"".join(flood)
    server.hears(OPENING)
    used = server.http.receive(memoryview(data), 100.0)
    assert 0 < used <= sum(map(len, flood[:most]))
    assert 0 < server.http.receive(memoryview(data[used:]), 100.0) <= sum(map(len, flood[:most]))


def test_a_large_frame_is_no_more_work_than_a_small_one() -> None:
    server = End(True)
    server.hears(OPENING + frame(HEADERS, END_HEADERS, 1, BLOCK))
    bulk = frame(DATA, 0, 1, bytes(200_000)) * 2
    assert server.http.receive(memoryview(bulk), 100.0) == len(bulk)
    assert server.http.bulk_bytes == 400_000


def test_new_settings_are_more_work_the_more_streams_there_are() -> None:
    server, change = End(True), frames.settings([(4, 1)])
    server.hears(OPENING + b"".join(frame(HEADERS, END_HEADERS, sid, BLOCK) for sid in range(1, 401, 2)))
    assert server.http.receive(memoryview(change * 100), 100.0) == 3 * len(change)


def test_single_bytes_and_an_end_with_flags_that_nobody_knows_are_no_offence() -> None:
    client, server = pair()
    mine, theirs = open_stream(client, server)
    server.hears(frame(DATA, 0, 1, b"x") * 1000 + frame(DATA, END_STREAM | 0x40, 1))
    assert len(theirs.data) == 1000 and theirs.heard == ["end"]
    client.hears(frame(DATA, 0x40, 1, b"abc") + frame(DATA, END_STREAM | 0x40, 1))
    assert mine.data == b"abc" and mine.heard == ["answer 200", "end"]


@pytest.mark.parametrize("flags", [END_STREAM, END_STREAM | PADDED])
def test_a_stream_that_is_given_up_while_its_last_bytes_come_hears_no_end(flags: int) -> None:
    client, server = pair()
    _, theirs = open_stream(client, server)

    def give_up(data: memoryview) -> int:
        server.http.reset(theirs, Code.CANCEL)
        return 0

    theirs.take = give_up  # type: ignore[method-assign]
    server.hears(frame(DATA, flags, 1, b"\0last"))
    assert theirs.heard == [] and not server.http.streams


def test_a_reset_of_ours_excuses_what_may_cross_it_and_no_more() -> None:
    client, server = pair()
    _, theirs = open_stream(client, server)
    server.hears(frame(PING, 0, 0, bytes(8)) * 250)
    server.http.reset(theirs, Code.CANCEL)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many control frames"):
        server.hears(frame(PING, 0, 0, bytes(8)) * 20)


@pytest.mark.parametrize("of", ["answers", "trailers"])
def test_headers_for_a_stream_that_is_gone_have_an_allowance(of: str) -> None:
    """They may cross our reset."""
    client, server = pair()
    mine, theirs = open_stream(client, server)
    client.http.reset(mine, Code.CANCEL)
    server.http.reset(theirs, Code.CANCEL)
    end, late = (
        (client, frame(HEADERS, END_HEADERS, 1, literal(b":status", b"200")))
        if of == "answers"
        else (server, frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(b"x", b"y")))
    )
    end.hears(late * 1000)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many HEADERS on closed streams"):
        end.hears(late * 4000)


def test_bytes_for_a_stream_that_is_gone_have_an_allowance() -> None:
    client, server = pair()
    _, theirs = open_stream(client, server)
    server.http.reset(theirs, Code.CANCEL)
    late = frame(DATA, 0, 1, b"xx")
    server.hears(late * 20_000)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many DATA on closed streams"):
        server.hears(late * 10_000)


@pytest.mark.parametrize("offence", [frames.rst_stream(2, 0), window_update(2, 1), frame(DATA, 0, 2, b"xx")])
def test_a_server_has_no_streams_of_its_own(offence: bytes) -> None:
    client, server = pair()
    open_stream(client, server)
    with pytest.raises(ProtocolError, match=r"PROTOCOL_ERROR: .* on idle stream 2"):
        client.hears(offence)


@pytest.mark.parametrize("late", [frames.rst_stream(1, 0), window_update(1, 1), frame(DATA, 0, 1, b"xx")])
def test_a_stream_that_is_over_is_not_idle_the_next_one_is(late: bytes) -> None:
    client, server = pair()
    mine, _ = open_stream(client, server)
    client.http.reset(mine, Code.CANCEL)
    client.hears(late)
    with pytest.raises(ProtocolError, match=r"PROTOCOL_ERROR: .* on idle stream 3"):
        client.hears(late[:5] + bytes((0, 0, 0, 3)) + late[9:])


@pytest.mark.parametrize(
    ("most", "more"),
    [
        (frames.settings([(3, 1)] * 64), frames.settings([(3, 1)] * 65)),
        (frame(GOAWAY, 0, 0, bytes(16 << 10)), frame(GOAWAY, 0, 0, bytes((16 << 10) + 1))),
        (frame(0xBB, 0, 0, bytes(255 << 12)), frame(0xBB, 0, 0, bytes(256 << 12))),
        (frame(0xBB, 0, 0, bytes(31 << 12)) * 8, frame(0xBB, 0, 0, bytes(31 << 12)) * 9),
    ],
    ids=["SETTINGS", "GOAWAY", "one unknown frame", "unknown frames"],
)
def test_what_is_as_long_as_it_may_be_is_taken_and_nothing_longer(most: bytes, more: bytes) -> None:
    server = End(True)
    server.hears(OPENING)
    server.hears(most)
    server = End(True)
    server.hears(OPENING)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM"):
        server.hears(more)


def test_of_a_stream_that_its_peer_has_ended_no_window_is_reopened() -> None:
    client, server = pair(appetite=0)
    _, theirs = open_stream(client, server)
    server.hears(frame(DATA, 0, 1, bytes(1 << 20)) * 3 + frame(DATA, END_STREAM, 1))
    server.http.delivered(theirs, 3 << 20)
    assert server.says() == b""


def test_a_client_takes_shorter_headers_than_a_server() -> None:
    client, _ = pair()
    client.http.request(Recorder(), REQUEST, b"")
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM"):
        client.hears(frame(HEADERS, END_HEADERS, 1, bytes((16 << 10) + 1))[:9])


def test_what_comes_beneath_frames_has_an_allowance_that_time_fills() -> None:
    server = End(True)
    server.hears(OPENING)
    for second in range(100):
        for _ in range(30):
            server.http.charge("key updates", 100.0 + second)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many key updates"):
        for _ in range(300):
            server.http.charge("key updates", 200.0)


def test_a_peer_within_its_allowance_goes_on_for_ever() -> None:
    server = End(True)
    server.hears(OPENING)
    for second in range(1000):
        server.hears(frame(PING, 0, 0, bytes(8)) * 10, 100.0 + second)
        server.says()


def test_window_updates_are_earned_by_what_is_sent_and_only_once() -> None:
    """Who acknowledges every few bytes may do so for ever; the same bytes are no excuse for a second flood."""
    server = End(True)
    server.hears(OPENING + frame(HEADERS, END_HEADERS, 1, BLOCK))
    server.hears(window_update(0, 1) * 4096)  # all that it may say before it was sent anything
    for _ in range(3):
        server.http.window -= 2560  # as the pump does with what it sends
        server.hears((window_update(0, 512) + window_update(1, 512)) * 5)
    with pytest.raises(ProtocolError, match="ENHANCE_YOUR_CALM: too many WINDOW_UPDATEs"):
        server.hears(window_update(0, 1))


@pytest.mark.parametrize("opening", [b"GET / HTTP/1.1\r\n", OPENING[:24] + frame(PING, 0, 0, bytes(8)), OPENING[:20] + b"xxxx"])
def test_a_server_wants_preface_and_settings_first(opening: bytes) -> None:
    server = End(True)
    with pytest.raises(ProtocolError, match="PROTOCOL_ERROR"):
        server.hears(opening)


def test_a_server_may_not_open_streams_or_push() -> None:
    for attack in (frame(HEADERS, END_HEADERS, 2, BLOCK), frame(HEADERS, END_HEADERS, 1, BLOCK), frames.settings([(2, 1)])):
        client = End(False)
        client.hears(frames.SERVER_OPENING)
        with pytest.raises(ProtocolError, match="PROTOCOL_ERROR"):
            client.hears(attack)


def test_a_long_header_list_costs_the_stream_only() -> None:
    server = End(True)
    server.hears(OPENING)
    server.says()
    bomb = b"\x40\x01x\x7f\xa0\x1e" + b"y" * 3999 + b"\xbe" * 20
    server.hears(frame(HEADERS, END_HEADERS, 1, BLOCK + bomb))
    answer = frame(HEADERS, END_HEADERS | END_STREAM, 1, FieldWriter().encode(response_fields(431)))
    assert server.says() == answer + frames.rst_stream(1, Code.NO_ERROR) and not server.streams


CONVERSATION = (
    OPENING
    + frame(HEADERS, 0, 1, BLOCK[:7])
    + frame(CONTINUATION, END_HEADERS, 1, BLOCK[7:])
    + frame(DATA, 0, 1, b"first")
    + frame(PING, 0, 0, b"12345678")
    + frame(0xBB, 0, 0, b"unknown")
    + frame(DATA, PADDED, 1, b"\x02second..")
    + frame(HEADERS, END_HEADERS | END_STREAM, 3, BLOCK)
    + frame(DATA, END_STREAM, 1, b"third")
    + frame(HEADERS, END_HEADERS, 5, BLOCK)
    + frame(DATA, 0, 5, b"fourth")
    + frame(DATA, END_STREAM, 5)
)


@given(st.lists(st.integers(1, len(CONVERSATION)), max_size=12))
def test_how_bytes_are_cut_does_not_matter(cuts: list[int]) -> None:
    whole, parts = End(True), End(True)
    whole.hears(CONVERSATION)
    places = [0, *sorted(cuts), len(CONVERSATION)]
    for start, end in pairwise(places):
        parts.hears(CONVERSATION[start:end])
    assert parts.says() == whole.says()
    assert [(one.data, one.heard) for one in parts.streams] == [(one.data, one.heard) for one in whole.streams]
    assert whole.streams[0].data == b"firstsecondthird" and [one.heard for one in whole.streams] == [["end"]] * 3


def random_frames() -> st.SearchStrategy[bytes]:
    kinds = st.one_of(st.sampled_from(range(10)), st.integers(0, 255))
    payloads = st.one_of(st.binary(max_size=40), st.just(BLOCK), st.just(bytes(4)), st.just(bytes(8)))
    return st.builds(frame, kinds, st.integers(0, 255), st.integers(0, 9), payloads)


@given(st.booleans(), st.lists(st.one_of(random_frames(), st.binary(max_size=30)), max_size=30))
@settings(max_examples=300)
def test_whatever_comes_is_served_or_refused(server: bool, attack: list[bytes]) -> None:
    end = End(server)
    end.hears(OPENING if server else frames.SERVER_OPENING)
    if not server:
        for _ in range(3):
            end.http.request(Recorder(), REQUEST, b"")
    act: Callable[[bytes], None] = end.hears
    try:
        for part in attack:
            act(part)
    except ProtocolError:
        return
    assert len(end.http.streams) <= 200
