"""What a peer may do beneath HTTP/2: messages of TLS that are no data, tiny records, endless handshakes. Real TLS."""

import _ssl
import ctypes
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.ztunnel.test_tunnel import Neighbours, Peer
from tests.ztunnel.test_verification import careless
from tests.ztunnel.world import CLIENT, Authority
from ztunnel import openssl
from ztunnel.channel import SetCertificate
from ztunnel.frames import DATA, PING, frame
from ztunnel.inflow import RECORDS_PER_TURN
from ztunnel.openssl import MOST_CHAIN_BYTES
from ztunnel.tls import Credentials
from ztunnel.tunnel import Tunnel

pytestmark = pytest.mark.unit

AUTHORITY = Authority()
_NOT_REQUESTED, _REQUESTED = 0, 1
_LIBRARY = ctypes.PyDLL(_ssl.__file__)
_UPDATE = _LIBRARY["SSL_key_update"]
_UPDATE.argtypes = (ctypes.c_void_p, ctypes.c_int)
_GO_ON = _LIBRARY["SSL_do_handshake"]
_GO_ON.argtypes = (ctypes.c_void_p,)


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Credentials(AUTHORITY.certificate_for(CLIENT))


@pytest.fixture
def neighbours(credentials: Credentials) -> Iterator[Neighbours]:
    made = Neighbours(credentials)
    made.loop.overtime_s = 0.0
    yield made
    for tunnel in list(made.host.tunnels):
        tunnel.close("-", "")
    for sock in made.sockets:
        sock.close()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """OpenSSL's own, of each end that has verified the other: a client's comes before its server's."""
    assert openssl.BOUND is not None
    found: list[int] = []
    connection = openssl.BOUND.connection

    def note(store: int) -> int:
        found.append(connection(store))
        return found[-1]

    monkeypatch.setattr(openssl.BOUND, "connection", note)
    return found


def spend_for_good(*tunnels: Tunnel) -> None:
    """What they use up does not come back: otherwise it would, faster than it is used where this process has little time."""
    for tunnel in tunnels:
        tunnel.http._budget.control.rate_per_s = 0.0


def update_keys(peer: Peer, connection: int, count: int, kind: int) -> None:
    for _ in range(count):
        assert _UPDATE(connection, kind) == 1 and _GO_ON(connection) == 1
    peer._sock.sendall(peer._outgoing.read())


@pytest.mark.parametrize("kind", [_NOT_REQUESTED, _REQUESTED])
def test_a_flood_of_key_updates_costs_its_sender_the_tunnel_and_nobody_a_long_turn(
    neighbours: Neighbours, connections: list[int], kind: int
) -> None:
    flooder, flood = neighbours.guest("flooder")
    _, good = neighbours.guest("good")
    spend_for_good(flooder)
    update_keys(flood, connections[0], 600, kind)
    turns = 0
    while flooder.open:
        good.say(frame(PING, 0, 0, b"how long"))
        neighbours.loop.turn(0)
        assert b"how long" in good.hear(), "served in the very next turn"
        assert flooder._outgoing.pending == 0, "what we have to answer leaves, and does not collect"
        turns += 1
    assert turns > 5 and flooder.offence == "ENHANCE_YOUR_CALM"
    assert "too many messages of TLS" in neighbours.host.errors[0]


def test_a_peer_that_updates_its_keys_now_and_then_is_answered_and_goes_on(
    neighbours: Neighbours, connections: list[int]
) -> None:
    tunnel, peer = neighbours.guest("peer")
    peer.hear()
    for _ in range(20):
        update_keys(peer, connections[0], 3, _REQUESTED)
        neighbours.loop.turn(0)
        assert not tunnel._outgoing.pending, "the answer leaves, though nothing else does"
        peer.say(frame(PING, 0, 0, b"new keys"))
        neighbours.loop.turn(0)
        assert b"new keys" in peer.hear()
    assert tunnel.open


def test_tiny_records_have_a_bounded_part_of_a_turn_and_nothing_of_them_is_lost(neighbours: Neighbours) -> None:
    tunnel, peer = neighbours.guest("tiny")
    _, good = neighbours.guest("good")
    records = 10 * RECORDS_PER_TURN
    tunnel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    peer._tls.write(frame(DATA, 0, 1, bytes(records))[:9])
    for _ in range(records):
        peer._tls.write(b"x")
    peer._sock.sendall(peer._outgoing.read())
    read: list[int] = []
    original = tunnel._read

    def count(*arguments: Any) -> Any:
        read.append(1)
        return original(*arguments)

    tunnel._read = count
    turns = 0
    while len(read) <= records:
        before = len(read)
        good.say(frame(PING, 0, 0, b"how long"))
        neighbours.loop.turn(0)
        assert b"how long" in good.hear(), "served in the very next turn"
        assert 0 < len(read) - before <= 2 * RECORDS_PER_TURN, "when they came, and when its turn came again"
        turns += 1
    assert turns >= 5 and tunnel.open and not tunnel._incoming.pending and tunnel.http._left == 0


def test_who_says_everything_byte_by_byte_loses_the_tunnel_and_who_sends_a_frame_a_record_does_not(
    neighbours: Neighbours,
) -> None:
    tiny, bytewise = neighbours.guest("tiny")
    whole, honest = neighbours.guest("whole")
    spend_for_good(tiny, whole)
    for peer in (bytewise, honest):
        peer.say(frame(DATA, 0, 1, bytes(1 << 16))[:9])  # and then its bytes
    for _ in range(600):
        for _ in range(RECORDS_PER_TURN):
            bytewise._tls.write(b"x")
            honest._tls.write(b"x" * 10)
        if tiny.open:
            bytewise._sock.sendall(bytewise._outgoing.read())
        honest._sock.sendall(honest._outgoing.read())
        for _ in range(2):
            neighbours.loop.turn(0)
        if not tiny.open:
            break
        if neighbours.host.streams[tiny].parts and tiny.http._left < RECORDS_PER_TURN:
            bytewise.say(b"x" * tiny.http._left + frame(DATA, 0, 1, bytes(1 << 16))[:9])
        if whole.http._left < 10 * RECORDS_PER_TURN:
            honest.say(b"x" * whole.http._left + frame(DATA, 0, 1, bytes(1 << 16))[:9])
        neighbours.loop.turn(0)
    assert not tiny.open and tiny.offence == "ENHANCE_YOUR_CALM" and "tiny records" in neighbours.host.errors[0]
    assert whole.open


def test_a_stranger_is_read_little_of_in_each_turn_however_much_it_sends(neighbours: Neighbours) -> None:
    """A ClientHello may have 128 KiB, of which each byte may come in a record of its own."""
    tunnel, sock = neighbours.tunnel("stranger")
    received: list[int] = []
    original = tunnel._recv_into

    def count(room: memoryview) -> int:
        received.append(original(room))
        return received[-1]

    tunnel._recv_into = count
    hello = b"\x01" + (131_000).to_bytes(3, "big") + bytes(16_000)
    records = b"".join(b"\x16\x03\x01\0\1" + hello[place : place + 1] for place in range(len(hello)))
    sock.setblocking(False)
    size = len(records)
    while sum(received) < size:
        with suppress(BlockingIOError):
            records = records[sock.send(records) :]
        neighbours.loop.turn(0)
    assert tunnel.open and max(received) == 16 << 10 and len(received) >= 6


def test_a_chain_that_is_too_long_is_refused_unread(neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch) -> None:
    assert openssl.BOUND is not None

    def refuse(_: int) -> int:
        raise AssertionError("it was verified")

    monkeypatch.setattr(openssl.BOUND, "verify", refuse)
    shown = AUTHORITY.certificate_for(CLIENT)
    padding = Authority("nobody").pem * (MOST_CHAIN_BYTES // 300)
    long = SetCertificate(CLIENT, shown.chain_pem + padding, shown.key_pem, AUTHORITY.pem, 0)
    client = careless(long, ssl.PROTOCOL_TLS_CLIENT)
    tunnel, sock = neighbours.tunnel("stranger")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    sock.sendall(outgoing.read())
    neighbours.loop.turn(0)
    incoming.write(sock.recv(1 << 16))
    tls.do_handshake()
    sock.sendall(outgoing.read())
    for _ in range(4):
        neighbours.loop.turn(0)
    assert not tunnel.open and "excessive message size" in neighbours.host.errors[0]
