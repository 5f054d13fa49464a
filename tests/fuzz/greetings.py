"""Clients of a real tunnel, with certificates good and bad, whose handshake is damaged on its way; whoever gets in talks on."""

import socket
import ssl
from dataclasses import replace
from typing import NamedTuple

from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.identity import Identity
from tests.fuzz.target import Cursor, Target
from tests.ztunnel.test_http2 import CONVERSATION
from tests.ztunnel.test_tunnel import Host
from tests.ztunnel.world import CLIENT, SERVER, Authority
from ztunnel.handshakes import Handshakes
from ztunnel.hellos import end_of
from ztunnel.loop import Loop
from ztunnel.tls import Credentials
from ztunnel.tunnel import Tunnel
from ztunnel.verification import Verifications

_ROUNDS = 6
"""Both ends have said all that they have to say."""


class Client(NamedTuple):
    """A context, and who it proves to be; None: nobody who may come in."""

    context: ssl.SSLContext
    proves: Identity | None = None
    is_served: bool = True
    """Who offers another protocol is not; in many small pieces nobody looks, and it is served like one that offers none."""


class Damage(NamedTuple):
    """Done to one flight."""

    flight: int
    place: int
    taken: int
    put: bytes

    @classmethod
    def read(cls, cursor: Cursor) -> "Damage":
        """Five bytes, and those to put in."""
        flight, place, taken = cursor.byte() & 3, cursor.byte() << 8 | cursor.byte(), cursor.byte()
        return cls(flight, place, taken, cursor.take(cursor.byte() & 15))

    def to(self, flight: bytes) -> bytes:
        """What arrives of it."""
        place = self.place % (len(flight) + 1)
        return flight[:place] + self.put + flight[place + self.taken :]


def _clients(ca: Authority) -> list[Client]:
    def of(chain_and_key: tuple[bytes, bytes], proves: Identity | None = None) -> Client:
        chain, key = chain_and_key
        return Client(Credentials(replace(ca.certificate_for(CLIENT), chain_pem=chain, key_pem=key)).client, proves)

    name, other = str(CLIENT), "spiffe://elsewhere/ns/shop/sa/client"
    nameless, old, another = (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), of(ca.issue(name)).context, of(ca.issue(name)).context)
    nameless.check_hostname, nameless.verify_mode = False, ssl.CERT_NONE
    nameless.set_alpn_protocols(["h2"])
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    another.set_alpn_protocols(["http/1.1"])
    return [
        of(ca.issue(name), CLIENT),
        of(ca.issue("https://client", other, name), CLIENT),
        of(ca.issue(other)),
        of(ca.issue()),
        of(ca.issue(name, expired=True)),
        of(ca.issue(name, usages=[ExtendedKeyUsageOID.SERVER_AUTH])),
        of(Authority("another root").issue(name)),
        Client(nameless),
        Client(old),
        Client(another, CLIENT, is_served=False),
    ]


class _Door(Host):
    """Hears who came in."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[Identity | None] = []

    def established(self, tunnel: Tunnel) -> None:
        self.known.append(tunnel.peer)


class _Greeting:
    """One client, its tunnel, and the socket pair between the two."""

    def __init__(self, client: Client, damages: list[Damage], step: int) -> None:
        self.door, self._damages, self._step, self._flights = _Door(), damages, step, 0
        self._client = end_of(client.context, server=False)
        self.sock, mine = socket.socketpair()
        for one in (self.sock, mine):
            one.setblocking(False)
        self.tunnel = Tunnel(_loop, mine, end_of(_server.server, server=True), True, self.door, _flight, "it")
        self.door.tunnels[self.tunnel] = None

    def shake_hands(self) -> bool:
        """Whether the client thinks that they are done."""
        for _ in range(_ROUNDS):
            try:
                self._client.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._exchange()
            except ssl.SSLError:
                break
            else:
                return True
        self._exchange()  # its alert
        return False

    def say(self, data: bytes) -> None:
        """To whoever takes it."""
        for at in range(0, len(data), 1000):
            self._client.tls.write(data[at : at + 1000])
        self._exchange()

    def _exchange(self) -> None:
        said = self._client.outgoing.read()
        for damage in self._damages:
            if damage.flight == self._flights and said:
                said = damage.to(said)
        self._flights += 1
        step = self._step or len(said) or 1
        try:
            for at in range(0, len(said), step):
                self.sock.send(said[at : at + step])
                _loop.turn(0)
            for _ in range(2):
                _loop.turn(0)
            self._client.incoming.write(self.sock.recv(1 << 18))
        except OSError:  # nothing is said yet, or nobody is there any more
            return

    def end(self) -> str:
        """Go away, and hear how the tunnel ended."""
        self.sock.close()
        while self.tunnel.open or _loop.rota.waiting:
            _loop.turn(0)
        (error,) = self.door.errors
        return error


def _greet(data: bytes) -> None:
    """Only who proves a name of this mesh comes in, by that name; nobody leaves anything behind."""
    cursor = Cursor(data)
    client, step = _CLIENTS[cursor.byte() % len(_CLIENTS)], cursor.byte()
    damages = [Damage.read(cursor) for _ in range(cursor.byte() & 3)]
    greeting = _Greeting(client, damages, step * 8)
    if greeting.shake_hands():
        greeting.say(cursor.rest())
    known, error = greeting.door.known, greeting.end()
    assert known in ([], [client.proves]) and None not in known
    assert damages or known or client.proves is None or not client.is_served, error
    assert (known or error) and error.isprintable() and not error.startswith("internal error")
    assert not len(_flight) and not _loop.held.bytes and not _loop.dirty


_ca = Authority()
_server, _CLIENTS = Credentials(_ca.certificate_for(SERVER), known=Verifications(4)), _clients(_ca)  # who comes again is known
_loop, _flight = Loop(), Handshakes(512)
_UNDAMAGED, _CUT = b"\x00\x00", b"\x01\x00"
TARGETS = (
    Target(
        "greeting",
        _greet,
        [
            *(bytes((kind,)) + _UNDAMAGED + CONVERSATION for kind in range(len(_CLIENTS))),
            b"\x00" + _CUT + CONVERSATION,
            b"\x00\x00\x01\x00\x00\x05\x01\x02\x04\x04",  # in its hello
            b"\x00\x00\x01\x01\x00\x05\x00\x0f" + bytes(15) + CONVERSATION,  # before its certificate
            b"\x00\x00\x01\x02\x00\x05\x01\x01\xff" + CONVERSATION,  # behind its handshake
        ],
    ),
)
