"""What a tunnel leaves behind: nothing, at once. The worker's cyclic collector is off, and OpenSSL holds 45 KiB for each."""

import gc
import select
import socket
import ssl
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import pytest

from mesh.identity import Identity
from tests.ztunnel.world import CLIENT, Authority
from ztunnel.connection_record import Flag
from ztunnel.fields import Fields, literal
from ztunnel.flow import Stream
from ztunnel.frames import (
    BULK_FRAME_BYTES,
    CLIENT_OPENING,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    SERVER_OPENING,
    SETTINGS_ACK,
    Code,
    ProtocolError,
    frame,
    goaway,
    payload_in_whole_packets,
)
from ztunnel.handshakes import Handshakes
from ztunnel.hbone import response_fields
from ztunnel.hellos import end_of
from ztunnel.loop import Loop
from ztunnel.stream import TunnelStream
from ztunnel.stream_owner import NOBODY
from ztunnel.tls import Credentials, check_client
from ztunnel.tunnel import Tunnel
from ztunnel.verification import Verified
from ztunnel.wreck import STREAMS_PER_TURN

pytestmark = pytest.mark.unit


class Door:
    """Owns tunnels as a pod does: until they close."""

    def __init__(self) -> None:
        self.tunnels: dict[Tunnel, None] = {}
        self.errors: list[str] = []

    def check_peer(self, tunnel: Tunnel, peer: Verified) -> Identity:
        return check_client(peer.names, "cluster.local")

    def established(self, tunnel: Tunnel) -> None:
        pass

    def requested(self, tunnel: Tunnel, sid: int, fields: Fields) -> Stream | None:
        return None

    def retired(self, tunnel: Tunnel) -> None:
        pass

    def closed(self, tunnel: Tunnel, flag: Flag, error: str) -> None:
        del self.tunnels[tunnel]
        self.errors.append(error)


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Credentials(Authority().certificate_for(CLIENT))


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Deaf(Stream):
    """Takes everything, and counts how often; holds its tunnel as streams do."""

    def __init__(self, tunnel: Tunnel) -> None:
        super().__init__()
        self.tunnel = tunnel
        self.parts = 0

    def take(self, data: memoryview) -> int:
        self.parts += 1
        return len(data)

    def peer_ended(self) -> None:
        pass

    def peer_reset(self, code: int) -> None:
        pass

    def peer_answered(self, fields: Fields) -> None:
        pass

    def connection_lost(self, flag: Flag, error: str) -> None:
        pass

    def resume(self) -> None:
        pass


class Host(Door):
    """Accepts every stream."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[Tunnel, Deaf] = {}

    def closed(self, tunnel: Tunnel, flag: Flag, error: str) -> None:
        super().closed(tunnel, flag, error)
        self.streams.pop(tunnel, None)

    def requested(self, tunnel: Tunnel, sid: int, fields: Fields) -> Stream | None:
        stream = self.streams[tunnel] = Deaf(tunnel)
        tunnel.http.adopt(stream, sid)
        return stream


def silent(_: Loop, __: socket.socket, ___: Credentials) -> None:
    pass


def garbage(loop: Loop, sock: socket.socket, _: Credentials) -> None:
    sock.send(b"GET / HTTP/1.1\r\n\r\n")


def half(loop: Loop, sock: socket.socket, credentials: Credentials) -> None:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        credentials.client.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    sock.send(outgoing.read())


def whole(loop: Loop, sock: socket.socket, credentials: Credentials) -> None:
    Peer(loop, sock, credentials).say(CLIENT_OPENING)


class Peer:
    """A client of a tunnel, after its handshake."""

    def __init__(self, loop: Loop, sock: socket.socket, credentials: Credentials) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = credentials.client.wrap_bio(self._incoming, self._outgoing)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.send(self._outgoing.read())
                while not select.select([sock], [], [], 0)[0]:  # by TCP it comes when the kernel has the time
                    loop.turn(0.01)
                self._incoming.write(sock.recv(1 << 16))

    def say(self, data: bytes) -> None:
        self._tls.write(data)
        self._sock.sendall(self._outgoing.read())

    def hear(self) -> bytes:
        """What has come until now."""
        said = b""
        with suppress(BlockingIOError):
            self._incoming.write(self._sock.recv(1 << 18, socket.MSG_DONTWAIT))
        while self._incoming.pending:
            with suppress(ssl.SSLWantReadError):  # a record in part, or a message that is no data
                said += self._tls.read(1 << 18)
        return said


def busy(loop: Loop, sock: socket.socket, credentials: Credentials) -> None:
    peer = Peer(loop, sock, credentials)
    peer.say(CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, literal(b":method", b"CONNECT")) + frame(DATA, 0, 1, b"x"))


@pytest.mark.parametrize("peer", [silent, garbage, half, whole, busy])
@pytest.mark.parametrize("ours", [True, False], ids=["closed by us", "closed by the peer"])
def test_a_closed_tunnel_is_gone(
    no_collector: None, credentials: Credentials, peer: Callable[[Loop, socket.socket, Credentials], None], ours: bool
) -> None:
    loop, flight, door = Loop(), Handshakes(512), Host()
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    tunnel: Tunnel | None = Tunnel(loop, mine, end_of(credentials.server, True), True, door, flight)
    del mine
    assert tunnel is not None
    door.tunnels[tunnel] = None
    gone = weakref.ref(tunnel)
    http = weakref.ref(cast(object, tunnel.http))
    with theirs:
        peer(loop, theirs, credentials)
        loop.turn(0)
        if ours and tunnel.open:
            tunnel.close("-", "enough")
        tunnel = None
    loop.turn(0)
    assert gone() is None and http() is None and len(door.errors) == 1 and not len(flight)


def test_a_tunnel_whose_peer_parted_with_it_and_closed_is_closed_in_that_turn(credentials: Credentials) -> None:
    """Idle ones go for new ones: to shut one down first, and to wait for another event, would be in the way of those."""
    loop, door = Loop(), Host()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        mine, _ = listening.accept()
    mine.setblocking(False)
    ready = select.poll()
    ready.register(mine, select.POLLRDHUP)
    tunnel = Tunnel(loop, mine, end_of(credentials.server, True), True, door, Handshakes(512))
    door.tunnels[tunnel] = None
    with theirs:
        peer = Peer(loop, theirs, credentials)
        peer.say(CLIENT_OPENING)
        while not tunnel.http.ready or tunnel.http.out:
            loop.turn(1.0)
        peer.say(goaway(0, Code.NO_ERROR))
        theirs.shutdown(socket.SHUT_WR)
        assert ready.poll(10_000)
        loop.turn(0)
    assert not tunnel.open and door.errors == [""]


class Neighbours:
    """Tunnels of one loop, each with its peer at the other end of a socket pair."""

    def __init__(self, credentials: Credentials) -> None:
        self.loop, self.host, self._flight, self._credentials = Loop(), Host(), Handshakes(512), credentials
        self.sockets: list[socket.socket] = []

    def tunnel(self, source: str) -> tuple[Tunnel, socket.socket]:
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        self.sockets.append(theirs)
        tunnel = Tunnel(self.loop, mine, end_of(self._credentials.server, True), True, self.host, self._flight, source)
        self.host.tunnels[tunnel] = None
        return tunnel, theirs

    def guest(self, source: str) -> tuple[Tunnel, Peer]:
        """With one stream open."""
        tunnel, sock = self.tunnel(source)
        peer = Peer(self.loop, sock, self._credentials)
        peer.say(CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, literal(b":method", b"CONNECT")))
        self.loop.turn(0)
        return tunnel, peer


@pytest.fixture
def neighbours(credentials: Credentials) -> Iterator[Neighbours]:
    made = Neighbours(credentials)
    yield made
    for tunnel in list(made.host.tunnels):
        tunnel.close("-", "")
    for sock in made.sockets:
        sock.close()
    assert not made.loop.rota.waiting and not made.loop.held.bytes


def test_a_flooder_gets_a_bounded_part_of_a_turn_and_loses_nothing(neighbours: Neighbours) -> None:
    flooder, flood = neighbours.guest("flooder")
    _, good = neighbours.guest("good")
    stream, loop = neighbours.host.streams[flooder], neighbours.loop
    flood.say(frame(DATA, 0, 1, b"xy") * 1400)
    loop.overtime_s, turns = 0.0, 0
    while stream.parts < 1400:
        before = stream.parts
        good.say(frame(PING, 0, 0, b"how long"))
        loop.turn(0)
        assert b"how long" in good.hear(), "served in the very next turn"
        assert stream.parts > before, "and so is the flooder"
        turns += 1
    assert turns > 5 and stream.parts == 1400 and flooder.open


def test_a_flood_on_many_tunnels_has_one_place_in_a_turn(neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each within its own bounds, all of them together would keep everybody waiting."""
    monkeypatch.setattr("ztunnel.loop.LATE_S", 0.0)
    floods = [neighbours.guest("flooder")[1] for _ in range(30)]
    _, good = neighbours.guest("good")
    loop, host = neighbours.loop, neighbours.host
    loop.overtime_s = 0.0
    for flood in floods:
        flood.say(frame(DATA, 0, 1, b"xy") * 100)
    for _ in range(3):
        good.say(frame(PING, 0, 0, b"how long"))
        before = sum(stream.parts for stream in host.streams.values())
        for _ in range(2):
            loop.turn(0)
        assert b"how long" in good.hear()
        assert 0 < sum(stream.parts for stream in host.streams.values()) - before <= 200
    while loop.rota.waiting:
        loop.turn(0)
    assert sum(stream.parts for stream in host.streams.values()) == 3000


def test_where_turns_are_too_short_for_all_each_source_has_as_much_as_the_next(
    neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztunnel.loop.LATE_S", 0.0)
    guests = [neighbours.guest(f"source {number}") for number in range(10)]
    loop = neighbours.loop
    loop.overtime_s = 0.0
    for _ in range(100):
        for tunnel, peer in guests:
            if not tunnel._late:
                peer.say(frame(DATA, 0, 1, b"xy"))
        loop.turn(0)
    parts = [neighbours.host.streams[tunnel].parts for tunnel, _ in guests]
    assert min(parts) >= 9 and max(parts) - min(parts) <= 1


def test_strangers_of_many_sources_keep_nobody_waiting_who_is_here(
    neighbours: Neighbours, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all peers of a service come back at once, beside one that never went."""
    monkeypatch.setattr("ztunnel.loop.LATE_S", 0.0)
    _, good = neighbours.guest("good")
    strangers = [neighbours.tunnel(f"stranger {number}") for number in range(40)]
    for _, sock in strangers:
        sock.sendall(end_of(credentials.client, server=False).outgoing.read())
    loop = neighbours.loop
    loop.overtime_s = 0.0
    for _ in range(12):
        good.say(frame(PING, 0, 0, b"how long"))
        for _ in range(2):
            loop.turn(0)
        assert b"how long" in good.hear()
    while loop.rota.waiting:
        loop.turn(0)
    assert all(sock.recv(100) for _, sock in strangers), "all were greeted"


def test_the_streams_of_a_lost_tunnel_are_told_in_parts(neighbours: Neighbours) -> None:
    told: list[Stream] = []

    class Heard(Deaf):
        def connection_lost(self, flag: Flag, error: str) -> None:
            told.append(self)

    flooder, _ = neighbours.guest("flooder")
    streams = [Heard(flooder) for _ in range(100)]
    for place, stream in enumerate(streams):
        flooder.http.adopt(stream, 2 * place + 3)
    neighbours.loop.overtime_s = 0.0
    flooder.close("-", "gone")
    assert not flooder.open and 0 < len(told) <= STREAMS_PER_TURN and flooder.lost_streams == 101
    flooder.http.end(streams[-1])  # its application ends before it is told
    while neighbours.loop.rota.waiting:
        before = len(told)
        neighbours.loop.turn(0)
        assert len(told) - before <= STREAMS_PER_TURN
    assert told == streams, "each once, in order"


def test_a_stream_that_fails_when_its_tunnel_is_lost_costs_nobody_else_the_news(neighbours: Neighbours) -> None:
    told: list[Stream] = []

    class Failing(Deaf):
        def connection_lost(self, flag: Flag, error: str) -> None:
            told.append(self)
            raise RuntimeError("a test")

    loop, (flooder, _) = neighbours.loop, neighbours.guest("flooder")
    streams = [Failing(flooder) for _ in range(9)]
    for place, stream in enumerate(streams):
        flooder.http.adopt(stream, 2 * place + 3)
    with pytest.raises(RuntimeError):
        flooder.close("-", "gone")
    assert neighbours.host.errors == ["gone"], "its owner knows all the same"
    while loop.rota.waiting:
        loop.turn(0)
    assert told == streams


def test_nothing_is_left_over_where_buffers_are_full(neighbours: Neighbours) -> None:
    flooder, flood = neighbours.guest("flooder")
    stream = neighbours.host.streams[flooder]
    flooder.held.limit = -1
    flood.say(frame(DATA, 0, 1, b"xy") * 500)
    neighbours.loop.turn(0)
    assert not flooder.open and flooder.offence == "ENHANCE_YOUR_CALM" and stream.parts < 500


def test_what_is_left_over_is_judged_too(neighbours: Neighbours) -> None:
    flooder, flood = neighbours.guest("flooder")
    stream = neighbours.host.streams[flooder]
    flood.say(frame(DATA, 0, 1, b"xy") * 500 + frame(PING, 0, 0, b"short"))
    while flooder.open:
        neighbours.loop.turn(0)
    assert "FRAME_SIZE_ERROR" in neighbours.host.errors[0] and flooder.offence == "FRAME_SIZE_ERROR"
    assert stream.parts == 500


def test_an_end_behind_a_flood_is_heard_after_it(neighbours: Neighbours) -> None:
    flooder, flood = neighbours.guest("flooder")
    stream = neighbours.host.streams[flooder]
    flood.say(frame(DATA, 0, 1, b"xy") * 500)
    neighbours.sockets[0].shutdown(socket.SHUT_WR)
    while flooder.open:
        neighbours.loop.turn(0)
    assert stream.parts == 500 and not flooder.offence


def test_a_crowd_of_handshakes_does_not_hold_up_who_comes_from_elsewhere(
    neighbours: Neighbours, credentials: Credentials
) -> None:
    loop = neighbours.loop

    def greet(source: str) -> socket.socket:
        _, theirs = neighbours.tunnel(source)
        half(loop, theirs, credentials)
        return theirs

    crowd = [greet("flooder") for _ in range(30)]
    late = greet("good")
    loop.overtime_s = 0.0
    for _ in range(2):
        loop.turn(0)

    def answered(sock: socket.socket) -> bool:
        try:
            return bool(sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        except BlockingIOError:
            return False

    assert answered(late), "the second of the round"
    assert sum(map(answered, crowd)) <= 6
    while not all(map(answered, crowd)):
        loop.turn(0)


def test_a_peer_learns_why_it_lost_its_connection(neighbours: Neighbours) -> None:
    flooder, flood = neighbours.guest("flooder")
    flood.hear()
    flooder.fail(ProtocolError(Code.ENHANCE_YOUR_CALM, "a test"))
    said = flood.hear()
    assert said[-14] == GOAWAY and said[-1] == Code.ENHANCE_YOUR_CALM and flooder.offence == "ENHANCE_YOUR_CALM"


class Answering(Door):
    """Accepts every request at once, as a pod does whose application is on the same node."""

    def requested(self, tunnel: Tunnel, sid: int, fields: Fields) -> Stream | None:
        stream = TunnelStream(tunnel, NOBODY)
        tunnel.http.adopt(stream, sid)
        stream.answer(response_fields(200))
        return stream


@contextmanager
def answering(credentials: Credentials) -> Iterator[tuple[Loop, Tunnel, Peer]]:
    """A tunnel that answers each request, and its peer."""
    loop, door = Loop(), Answering()
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    tunnel = Tunnel(loop, mine, end_of(credentials.server, True), True, door, Handshakes(512), "")
    door.tunnels[tunnel] = None
    with theirs:
        yield loop, tunnel, Peer(loop, theirs, credentials)


def overhear(tunnel: Tunnel, send: Callable[[Any], int]) -> list[int]:
    """What leaves it from now on by `send`, call by call, in bytes."""
    sent: list[int] = []

    def overheard(data: Any, _flags: int = 0, /) -> int:
        sent.append(len(data))
        return send(data)

    tunnel._send = overheard
    return sent


@pytest.mark.parametrize("early", [b"", b"hello"], ids=["request alone", "bytes behind it"])
def test_an_answer_waits_a_moment_for_the_applications_own_where_bytes_came_with_the_request(
    credentials: Credentials, early: bytes
) -> None:
    with answering(credentials) as (loop, tunnel, peer):
        peer.say(CLIENT_OPENING)
        loop.turn(0)
        sent = overhear(tunnel, len)
        request = frame(HEADERS, END_HEADERS, 1, literal(b":method", b"CONNECT"))
        peer.say(request + (frame(DATA, 0, 1, early) if early else b""))
        loop.turn(0)
        assert len(sent) == (0 if early else 1), "the answer to a request alone leaves at once"
        if early:
            loop.turn(1)  # the timer
            loop.turn(0)
            assert len(sent) == 1
        tunnel.close("-", "")


@pytest.mark.parametrize(
    ("early", "at_once"), [(b"", True), (b"hello", False), (bytes(16 << 10), True)], ids=["request alone", "few bytes", "many"]
)
def test_the_opening_of_a_new_tunnel_waits_with_the_answer_unless_windows_may_be_waited_for(
    credentials: Credentials, early: bytes, at_once: bool
) -> None:
    with answering(credentials) as (loop, tunnel, peer):
        request = frame(HEADERS, END_HEADERS, 1, literal(b":method", b"CONNECT"))
        peer.say(CLIENT_OPENING + request + (frame(DATA, 0, 1, early) if early else b""))
        loop.turn(0)
        said = peer.hear()
        if at_once:
            assert said.startswith(SERVER_OPENING)
        else:
            assert not said
            loop.turn(1)  # the timer
            loop.turn(0)
            said = peer.hear()
            assert said.startswith(SERVER_OPENING) and len(said) > len(SERVER_OPENING + SETTINGS_ACK), "all of it"
        tunnel.close("-", "")


@pytest.mark.parametrize("last", ["application", "peer"])
def test_an_applications_end_waits_a_moment_where_the_peer_had_the_last_word(credentials: Credentials, last: str) -> None:
    loop, door = Loop(), Answering()
    mine, theirs = socket.socketpair()
    inside, application = socket.socketpair()
    for sock in (mine, inside):
        sock.setblocking(False)
    tunnel = Tunnel(loop, mine, end_of(credentials.server, True), True, door, Handshakes(512), "")
    door.tunnels[tunnel] = None
    with theirs, application:
        peer = Peer(loop, theirs, credentials)
        peer.say(CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, literal(b":method", b"CONNECT")))
        loop.turn(0)
        stream = tunnel.http.streams[1]
        assert isinstance(stream, TunnelStream)
        stream.attach(inside, speaks_first=False)
        peer.say(frame(DATA, 0, 1, b"a word"))
        loop.turn(0)
        if last == "application":
            application.send(b"its own")
            loop.turn(0)
        peer.hear()
        application.shutdown(socket.SHUT_WR)
        loop.turn(0)
        at_once = peer.hear()
        loop.turn(1)  # until it has lingered
        loop.turn(0)
        end = frame(DATA, END_STREAM, 1)
        assert (at_once, peer.hear()) == ((b"", end) if last == "peer" else (end, b""))
        tunnel.close("-", "")


@pytest.mark.parametrize("many", [1, 3])
def test_what_applications_say_in_one_turn_leaves_in_one_send(credentials: Credentials, many: int) -> None:
    with answering(credentials) as (loop, tunnel, peer), ExitStack() as stack:
        peer.say(CLIENT_OPENING)
        applications = []
        for sid in range(1, 2 * many, 2):
            peer.say(frame(HEADERS, END_HEADERS, sid, literal(b":method", b"CONNECT")))
            loop.turn(0)
            inside, application = socket.socketpair()
            inside.setblocking(False)
            stream = tunnel.http.streams[sid]
            assert isinstance(stream, TunnelStream)
            stream.attach(inside, speaks_first=False)
            loop.turn(0)
            applications.append(stack.enter_context(application))
        peer.hear()
        for application in applications:
            application.send(b"a word")
        sent = overhear(tunnel, tunnel._send)
        loop.turn(0)
        said = b"".join(frame(DATA, 0, sid, b"a word") for sid in range(1, 2 * many, 2))
        assert peer.hear() == said and len(sent) == 1
        tunnel.close("-", "")


def test_a_frame_of_bulk_leaves_in_whole_packets(credentials: Credentials) -> None:
    with answering(credentials) as (loop, tunnel, peer):
        tunnel.http.largest = payload_in_whole_packets(1448)  # an MTU of 1,500, and timestamps
        peer.say(CLIENT_OPENING)
        loop.turn(0)
        sent = overhear(tunnel, len)
        tunnel.send_large(memoryview(frame(DATA, 0, 1, bytes(tunnel.http.chunk))))
        assert sent == [4 * 45 * 1448]
        tunnel.close("-", "")


def test_a_tunnel_asks_how_long_the_segments_of_its_way_are(credentials: Credentials) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        with socket.create_connection(listener.getsockname()):
            mine, _ = listener.accept()
            mine.setblocking(False)
            door = Answering()
            tunnel = Tunnel(Loop(), mine, end_of(credentials.server, True), True, door, Handshakes(512), "")
            door.tunnels[tunnel] = None
            segment_bytes = mine.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
            assert segment_bytes <= 1400 and tunnel.http.largest == payload_in_whole_packets(segment_bytes)
            tunnel.close("-", "")


@pytest.mark.parametrize(
    ("sizes", "gives"),
    [([10, 10, 100_000], True), ([10, 100_000, 10, 100_000], False), ([10, 10, 20_000], False)],
    ids=["small messages", "remains of bulk", "no bulk"],
)
def test_bulk_gives_the_cpu_away_where_small_messages_come_too(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch, sizes: list[int], gives: bool
) -> None:
    given: list[str] = []
    monkeypatch.setattr("ztunnel.loop.sched_yield", lambda: given.append("away"))
    monkeypatch.setattr("ztunnel.loop._COMPANY_S", 10.0)  # however long a busy machine takes from one to the next
    with answering(credentials) as (loop, tunnel, peer):
        peer.say(CLIENT_OPENING)
        loop.turn(0)
        for size in sizes:
            assert not given
            data = memoryview(frame(DATA, 0, 1, bytes(size)))
            (tunnel.send_large if size > BULK_FRAME_BYTES else tunnel.send_small)(data)
            loop.turn(0)
            peer.hear()
        assert given == ["away"] * gives
        tunnel.close("-", "")


def test_bulk_that_comes_gives_the_cpu_away_too(credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr("ztunnel.loop.sched_yield", lambda: given.append("away"))
    monkeypatch.setattr("ztunnel.loop._COMPANY_S", 10.0)
    with answering(credentials) as (loop, tunnel, peer):
        peer.say(CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, literal(b":method", b"CONNECT")))
        loop.turn(0)
        for _ in range(2):
            tunnel.send_small(memoryview(frame(DATA, 0, 1, b"a word")))
        for size in (20_000, 40_000, 80_000, 100_000):  # a tunnel reads more at once the more it brings
            peer.say(frame(DATA, 0, 1, bytes(size)))
            for _ in range(6):
                loop.turn(0)
        assert given
        tunnel.close("-", "")
