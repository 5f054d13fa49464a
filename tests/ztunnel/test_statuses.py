"""What a server answers to each kind of request: the table recorded from Istio's ztunnel, asked frame by frame."""

import ssl
from collections.abc import Iterator

import pytest
from hpack import Decoder

from mesh.identity import Identity
from tests.ztunnel.world import CLIENT, VIP, World, world
from ztunnel.fields import literal
from ztunnel.frames import CLIENT_OPENING, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Code, frame
from ztunnel.tls import Credentials

pytestmark = pytest.mark.kernel

HOSTNAME = "web.shop.svc.cluster.local"
CONNECT = (":method", "CONNECT")


class Asker:
    """A client of the server's proxy that says exactly what it is told to."""

    def __init__(self, mesh: World, identity: Identity = CLIENT) -> None:
        sock = mesh.client.connect(mesh.server.address, 15008, mark=0x539)
        credentials = Credentials(mesh.authority.certificate_for(identity))
        self._tls = credentials.client.wrap_socket(sock)
        self._tls.sendall(CLIENT_OPENING)
        self._decoder = Decoder()
        self._next = 1

    def say(self, *fields: tuple[str, str]) -> int:
        """Make a request; its stream."""
        sid, self._next = self._next, self._next + 2
        block = b"".join(literal(name.encode(), value.encode()) for name, value in fields)
        self._tls.sendall(frame(HEADERS, END_HEADERS, sid, block))
        return sid

    def ask(self, *fields: tuple[str, str]) -> tuple[str, int]:
        """The status, or nothing, and the code of the reset that follows a rejection; -1: none, the stream is open."""
        sid, status = self.say(*fields), ""
        while True:
            kind, flags, stream, payload = self._frame()
            if stream != sid:
                continue
            if kind == HEADERS:
                answer = [(name.decode(), value.decode()) for name, value in self._decoder.decode(payload, raw=True)]
                status = dict(answer)[":status"]
                if status == "200":
                    assert not flags & END_STREAM
                    return status, -1
                assert answer == [(":status", status)] and flags & END_STREAM
            elif kind == RST_STREAM:
                return status, int.from_bytes(payload, "big")

    def _frame(self) -> tuple[int, int, int, bytes]:
        head = self._read(9)
        return head[3], head[4], int.from_bytes(head[5:9], "big"), self._read(int.from_bytes(head[:3], "big"))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._tls.recv(size - len(data))
            assert part, "the connection ended"
            data += part
        return data

    def close(self) -> None:
        self._tls.close()


@pytest.fixture(scope="module")
def asker() -> Iterator[Asker]:
    with world("statuses") as mesh:
        mesh.start()
        with mesh.server.listen(8080):
            made = Asker(mesh)
            assert isinstance(made._tls, ssl.SSLSocket)
            yield made
            made.close()


@pytest.mark.parametrize("authority", ["10.198.0.2:8080", f"{HOSTNAME}:80"])
def test_200(asker: Asker, authority: str) -> None:
    assert asker.ask(CONNECT, (":authority", authority)) == ("200", -1)


@pytest.mark.parametrize(
    "authority",
    [
        "10.198.0.2:9999",
        "10.198.0.2:0",
        "10.198.0.2:15001",
        "10.198.0.2:15006",
        "10.198.0.2:15008",
        f"{HOSTNAME}:12345",
        f"{HOSTNAME.replace('web', 'WEB')}:80",
        f"{HOSTNAME.replace('web', 'nope')}:80",
    ],
)
def test_503(asker: Asker, authority: str) -> None:
    assert asker.ask(CONNECT, (":authority", authority)) == ("503", Code.NO_ERROR)


@pytest.mark.parametrize(
    "authority",
    ["10.198.0.1:8080", "9.9.9.9:80", "127.0.0.1:8080", f"{VIP}:80", "[fd00::1]:80", "10.198.0.2", "10.198.0.2:99999"],
)
def test_400(asker: Asker, authority: str) -> None:
    assert asker.ask(CONNECT, (":authority", authority)) == ("400", Code.NO_ERROR)


def test_400_for_other_methods(asker: Asker) -> None:
    get = (":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "10.198.0.2:8080")
    assert asker.ask(*get) == ("400", Code.NO_ERROR)


@pytest.mark.parametrize("authority", ["", "::::", "a b:80", "http://x/"])
def test_no_authority_at_all_resets_the_stream(asker: Asker, authority: str) -> None:
    assert asker.ask(CONNECT, (":authority", authority)) == ("", Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("field", [(":scheme", "http"), (":path", "/"), (":protocol", "websocket")])
def test_fields_that_no_connect_has_reset_the_stream(asker: Asker, field: tuple[str, str]) -> None:
    assert asker.ask(CONNECT, (":authority", "10.198.0.2:8080"), field) == ("", Code.PROTOCOL_ERROR)


def test_the_connection_outlives_them_all(asker: Asker) -> None:
    assert asker.ask(CONNECT, (":authority", "10.198.0.2:8080")) == ("200", -1)
