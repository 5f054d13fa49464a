"""What is on its way when a tunnel has nothing more to do: it arrives, whatever the peer still says meanwhile."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest

from tests.ztunnel.test_tunnel import Answering, Peer
from tests.ztunnel.world import CLIENT, Authority
from ztunnel.channel import Configure, Shutdown
from ztunnel.fields import literal
from ztunnel.frames import (
    ACK,
    CLIENT_OPENING,
    DATA,
    DRAIN_PAYLOAD,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    frame,
    window_update,
)
from ztunnel.handshakes import Handshakes
from ztunnel.hellos import end_of
from ztunnel.loop import Loop
from ztunnel.stream import TunnelStream
from ztunnel.tls import Credentials
from ztunnel.tunnel import Tunnel
from ztunnel.worker import FAREWELL_S, Worker

pytestmark = pytest.mark.unit
BULK = 200_000
"""More than the peer's socket takes, and less than ours does."""


@contextmanager
def connected(receive_bytes: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection, the second of which takes few bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        theirs.connect(listener.getsockname())
        mine, _ = listener.accept()
        with mine:
            mine.setblocking(False)
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BULK)
            yield mine, theirs


@contextmanager
def paired() -> Iterator[tuple[socket.socket, socket.socket]]:
    """What an inner tunnel and its outer stream have between them."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        mine.setblocking(False)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BULK)
        yield mine, theirs


@pytest.mark.parametrize("connection", [partial(connected, 4096), paired], ids=["to the peer", "to an outer stream"])
def test_the_last_bytes_of_a_tunnel_that_drains_outlive_what_the_peer_says_behind_them(
    connection: Callable[[], AbstractContextManager[tuple[socket.socket, socket.socket]]],
) -> None:
    """The kernel answers what comes to a closed socket with a reset, and forgets what it had yet to deliver."""
    loop, door, credentials = Loop(), Answering(), Credentials(Authority().certificate_for(CLIENT))
    with connection() as (mine, theirs):
        tunnel = Tunnel(loop, mine, end_of(credentials.server, True), True, door, Handshakes(512), "")
        door.tunnels[tunnel] = None
        peer = Peer(loop, theirs, credentials)
        peer.say(CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, literal(b":method", b"CONNECT")) + frame(DATA, END_STREAM, 1))
        loop.turn(0)
        tunnel.drain()
        loop.turn(0)
        peer.say(frame(PING, ACK, 0, DRAIN_PAYLOAD))
        loop.turn(0.1)
        stream = tunnel.http.streams[1]
        assert isinstance(stream, TunnelStream)
        tunnel.send_large(memoryview(frame(DATA, 0, 1, bytes(BULK))))
        assert not tunnel.queued, "all of it is with the kernel"
        tunnel.end_stream(stream, patient=False)
        loop.turn(0)
        peer.say(window_update(0, BULK))
        said = b""
        while not said.endswith(frame(DATA, END_STREAM, 1)):
            loop.turn(0)
            said += peer.hear()
        assert theirs.recv(1) == b"", "and then the end"
        theirs.close()
        while tunnel.open:
            loop.turn(0.1)
        assert door.errors == [""]


class Sending:
    """A tunnel whose last stream has ended, and whose peer reads slowly."""

    queued = 1


def test_a_worker_that_drains_waits_for_who_is_at_the_door_for_last_bytes_and_for_farewells() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        loop = Loop()
        worker = Worker(loop, ours)
        worker._take(Configure("node", "", "Kubernetes", "cluster.local", 0), [])
        node = worker._node
        assert node is not None
        worker._take(Shutdown(20), [])
        node.last_accepts[listener := object()] = None
        loop.now += 10
        worker._end_when_done()
        assert loop.running
        del node.last_accepts[listener]
        node.lingering.add("gateway", loop.now, lambda: None)
        loop.now += 10
        worker._end_when_done()
        assert loop.running
        node.lingering.discard("gateway")
        tunnel = Sending()
        node.tunnels[tunnel] = None  # type: ignore[index]
        loop.now += 10
        worker._end_when_done()
        assert loop.running
        tunnel.queued = 0
        loop.now += FAREWELL_S / 2
        worker._end_when_done()
        assert loop.running, "it has its moment from then on"
        loop.now += FAREWELL_S
        worker._end_when_done()
        assert not loop.running
        node.tunnels.clear()
        worker.finish()
