"""The pump between an application's socket and a stream, where events of one turn of the loop meet."""

import socket

import pytest

from mesh.identity import Identity
from tests.ztunnel.world import CLIENT, Authority
from ztunnel.channel import Flag
from ztunnel.dial import endpoint
from ztunnel.fields import Fields
from ztunnel.flow import Stream
from ztunnel.handshakes import Handshakes
from ztunnel.hbone import repeating_fields, response_fields, single_fields
from ztunnel.hellos import end_of
from ztunnel.loop import Deadlines, Loop
from ztunnel.stream import EARLY_BYTES, TunnelStream
from ztunnel.tls import Credentials, check_client
from ztunnel.tunnel import Tunnel
from ztunnel.verification import Verified

pytestmark = [pytest.mark.unit, pytest.mark.timeout(20)]


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

    def ended(self, flag: Flag, error: str) -> None:
        self.heard.append(f"ended {flag} {error}")


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.setblocking(False)
    return ours, theirs


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
