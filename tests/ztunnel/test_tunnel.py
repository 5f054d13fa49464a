"""What a tunnel leaves behind: nothing, at once. The worker's cyclic collector is off, and OpenSSL holds 45 KiB for each."""

import gc
import socket
import ssl
import weakref
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from mesh.identity import Identity
from tests.ztunnel.world import CLIENT, Authority
from ztunnel.channel import Flag
from ztunnel.fields import Fields
from ztunnel.flow import Stream
from ztunnel.frames import CLIENT_OPENING
from ztunnel.handshakes import Handshakes
from ztunnel.loop import Loop
from ztunnel.tls import Credentials, check_client
from ztunnel.tunnel import Tunnel

pytestmark = pytest.mark.unit


class Door:
    """Owns tunnels as a pod does: until they close."""

    def __init__(self) -> None:
        self.tunnels: dict[Tunnel, None] = {}
        self.errors: list[str] = []

    def check_peer(self, tunnel: Tunnel, names: list[str]) -> Identity:
        return check_client(names, "cluster.local")

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
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = credentials.client.wrap_bio(incoming, outgoing)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.send(outgoing.read())
            loop.turn(0)
            incoming.write(sock.recv(1 << 16))
    tls.write(CLIENT_OPENING)
    sock.send(outgoing.read())


@pytest.mark.parametrize("peer", [silent, garbage, half, whole])
@pytest.mark.parametrize("ours", [True, False], ids=["closed by us", "closed by the peer"])
def test_a_closed_tunnel_is_gone(
    no_collector: None, credentials: Credentials, peer: Callable[[Loop, socket.socket, Credentials], None], ours: bool
) -> None:
    loop, flight, door = Loop(), Handshakes(), Door()
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    tunnel: Tunnel | None = Tunnel(loop, mine, credentials.server, True, door, flight)
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
