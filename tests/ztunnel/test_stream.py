"""The pump between an application's socket and a stream, where events of one turn of the loop meet."""

import socket

import pytest

from mesh.identity import Identity
from tests.ztunnel.world import CLIENT, Authority
from ztunnel.backlog import Backlog
from ztunnel.closing import reset_on_close
from ztunnel.connection_record import Flag
from ztunnel.dial import endpoint
from ztunnel.fields import Fields
from ztunnel.flow import Stream
from ztunnel.frames import Code
from ztunnel.handshakes import Handshakes
from ztunnel.hbone import repeating_fields, response_fields, single_fields
from ztunnel.hellos import end_of
from ztunnel.loop import Deadlines, Loop
from ztunnel.stream import EARLY_BYTES, TunnelStream
from ztunnel.tls import Credentials, check_client
from ztunnel.tunnel import Tunnel
from ztunnel.verification import Verified

pytestmark = pytest.mark.unit


class Reader(Stream):
    """The far end of a stream: counts what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.fate = ""

    def take(self, data: memoryview) -> int:
        self.count += len(data)
        return len(data)

    def peer_ended(self) -> None:
        self.fate = "end"

    def peer_reset(self, code: int) -> None:
        self.fate = "reset"

    def peer_answered(self, fields: Fields) -> None:
        pass

    def connection_lost(self, flag: Flag, error: str) -> None:
        self.fate = "lost"

    def resume(self) -> None:
        pass


class Door:
    """Owns both tunnels, and takes one stream."""

    def __init__(self) -> None:
        self.reader = Reader()

    def check_peer(self, tunnel: Tunnel, peer: Verified) -> Identity:
        return check_client(peer.names, "cluster.local")

    def established(self, tunnel: Tunnel) -> None:
        pass

    def settled(self, tunnel: Tunnel) -> None:
        pass

    def requested(self, tunnel: Tunnel, sid: int, fields: Fields) -> Stream | None:
        tunnel.http.adopt(self.reader, sid)
        return self.reader

    def retired(self, tunnel: Tunnel) -> None:
        pass

    def closed(self, tunnel: Tunnel, flag: Flag, error: str) -> None:
        pass


class Outcome:
    """What the owner of a connection hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def opened(self) -> None:
        self.heard.append("opened")

    def declined(self, stream: TunnelStream, untouched: bool) -> bool:
        return False

    def ended(self, flag: Flag, error: str) -> None:
        self.heard.append(f"ended {flag} {error}")


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.setblocking(False)
    return ours, theirs


class Carried:
    """A connection of an application whose peer has accepted it."""

    def __init__(self) -> None:
        self.near, self.far, self.outcome = Loop(), Loop(), Outcome()
        door, credentials = Door(), Credentials(Authority().certificate_for(CLIENT))
        ours, theirs = pair()
        server = Tunnel(self.far, theirs, end_of(credentials.server, True), True, door, Handshakes(8))
        client = Tunnel(self.near, ours, end_of(credentials.client, False), False, door, Deadlines(10.0))
        self.tunnels = (client, server)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.application = socket.socket()
            self.application.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.application.connect(listener.getsockname())
            mine, _ = listener.accept()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        mine.setblocking(False)
        reset_on_close(mine)
        while not (client.http.ready and server.http.ready):
            self.turn()
        self.stream = TunnelStream(client, self.outcome)
        once = single_fields(endpoint(("10.0.0.9", 5)), "", bytes(24), None)
        self.stream.request(mine, repeating_fields("10.0.0.1:80", b""), once)
        while not door.reader.sid:
            self.turn()
        server.http.answer(door.reader, response_fields(200))
        server.flush()
        while not self.outcome.heard:
            self.turn()

    def turn(self) -> None:
        self.near.turn(0)
        self.far.turn(0)

    def hear(self, size: int) -> bytes:
        """So much of what the application is sent."""
        self.application.setblocking(False)
        got = bytearray()
        while len(got) < size:
            self.near.turn(0)
            try:
                piece = self.application.recv(1 << 16)
            except BlockingIOError:
                continue
            assert piece, "an end before the end"
            got += piece
        self.application.setblocking(True)
        return bytes(got)

    def close(self) -> None:
        self.application.close()
        for tunnel in self.tunnels:
            tunnel.close("-", "")


@pytest.mark.parametrize("moved", ["", "sent", "received", "ended", "waits"])
@pytest.mark.parametrize("full", ["", "theirs", "theirs, and it would speak", "ours"])
def test_a_stream_is_stuck_in_a_full_tunnel_as_long_as_nothing_has_moved(full: str, moved: str) -> None:
    carried = Carried()
    stream, http = carried.stream, carried.tunnels[0].http
    if full.startswith("theirs"):
        http.window = 0
    elif full == "ours":
        http.receive_window = 0
    if "speak" in full:
        http.blocked[stream] = None
    if moved == "sent":
        stream.sent = 1
    elif moved == "received":
        stream.received = 1
    elif moved == "ended":
        stream.remote_closed = True
    elif moved == "waits":
        stream._backlog = Backlog(carried.tunnels[0].held)
    assert stream.is_stuck is (not moved and full not in ("", "theirs"))
    carried.close()


def test_who_gets_its_connection_back_takes_it_as_it_is() -> None:
    """Its peer hears that nobody wants it any more, and its application hears nothing."""
    carried = Carried()
    taken: list[tuple[socket.socket, bytes]] = []

    class Elsewhere(Outcome):
        def declined(self, stream: TunnelStream, untouched: bool) -> bool:
            taken.append(stream.give_back())
            return untouched

    carried.stream.owner = Elsewhere()
    carried.stream.leave("never said")
    (mine, early), *others = taken
    assert not others and early == b"" and carried.stream.closed and not carried.tunnels[0].http.streams
    while carried.tunnels[1].http.streams:
        carried.turn()
    carried.application.sendall(b"as before")
    with mine:
        mine.settimeout(10)
        assert mine.recv(100) == b"as before"
    assert carried.outcome.heard == ["opened"]
    carried.close()


def test_who_gets_none_back_ends_with_its_error_if_it_would_speak() -> None:
    carried = Carried()
    carried.stream.leave("")
    carried.stream.leave("no room")
    assert carried.outcome.heard == ["opened"]
    carried.tunnels[0].http.blocked[carried.stream] = None
    carried.stream.leave("")
    assert carried.outcome.heard == ["opened"]
    carried.stream.leave("no room")
    assert carried.outcome.heard == ["opened", "ended - no room"]
    carried.close()


@pytest.mark.parametrize("size", [200_000, 8 << 20], ids=["all of it in the kernel", "some of it here"])
def test_what_a_peer_said_arrives_though_it_wants_to_hear_no_more(size: int) -> None:
    """The application speaks meanwhile: a socket that is closed with that unread would be reset, and lose what waits in it."""
    carried = Carried()
    carried.stream.take(memoryview(bytes(size)))
    carried.application.sendall(b"and another thing")
    carried.stream.peer_reset(Code.NO_ERROR)
    assert carried.outcome.heard == ["opened"]
    carried.application.sendall(b"and yet another")
    assert carried.hear(size) == bytes(size) and carried.application.recv(1) == b""
    carried.application.close()
    while len(carried.outcome.heard) < 2:
        carried.turn()
    assert carried.outcome.heard == ["opened", "ended - "] and carried.stream.received == size
    carried.close()


def test_who_has_all_and_speaks_on_is_not_listened_to_for_ever() -> None:
    carried = Carried()
    carried.stream.take(memoryview(bytes(200_000)))
    carried.stream.peer_reset(Code.NO_ERROR)
    carried.hear(200_000)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            carried.application.send(b"is anybody there?")
            carried.near.turn(0)
    assert carried.outcome.heard == ["opened", "ended - "]
    carried.close()


def test_who_has_all_already_hears_the_end_at_once() -> None:
    carried = Carried()
    carried.stream.take(memoryview(b"all"))
    carried.stream.peer_reset(Code.NO_ERROR)
    carried.turn()
    assert carried.hear(3) == b"all" and carried.application.recv(1) == b""
    carried.close()
    while len(carried.outcome.heard) < 2:
        carried.near.turn(0)
    assert carried.outcome.heard == ["opened", "ended - "]


def test_an_end_that_was_read_when_the_answer_came_is_no_reset_when_its_own_event_follows() -> None:
    """In one turn: the answer opens the window, so that the rest is read, with its end; then the socket was ready, too."""
    near, far, door, outcome = Loop(), Loop(), Door(), Outcome()
    credentials = Credentials(Authority().certificate_for(CLIENT))
    ours, theirs = pair()
    server = Tunnel(far, theirs, end_of(credentials.server, True), True, door, Handshakes(8))
    client = Tunnel(near, ours, end_of(credentials.client, False), False, door, Deadlines(10.0))
    while not (client.http.ready and server.http.ready):
        near.turn(0)
        far.turn(0)
    mine, application = pair()
    application.sendall(bytes(EARLY_BYTES))
    TunnelStream(client, outcome).request(
        mine, repeating_fields("10.0.0.1:80", b""), single_fields(endpoint(("10.0.0.9", 5)), "", bytes(24), None)
    )
    near.turn(0)
    while door.reader.count < EARLY_BYTES:
        far.turn(0)
        near.turn(0)
    server.http.answer(door.reader, response_fields(200))
    server.flush()
    application.sendall(bytes(EARLY_BYTES))
    application.shutdown(socket.SHUT_WR)
    near.turn(0)
    assert outcome.heard == ["opened"], outcome.heard
    while not door.reader.fate:
        far.turn(0)
        near.turn(0)
    assert (door.reader.count, door.reader.fate) == (2 * EARLY_BYTES, "end")
    server.http.end(door.reader)
    server.flush()
    while len(outcome.heard) < 2:
        near.turn(0)
    assert outcome.heard == ["opened", "ended - "]
    for tunnel in (client, server):
        tunnel.close("-", "")
    application.close()
