"""Hellos that are made ahead: used once, few, and gone when nobody needs them or may use them."""

import socket
import ssl

import pytest

from mesh.identity import Identity
from tests.ztunnel.test_tunnel import Door
from tests.ztunnel.world import CLIENT, SERVER, Authority
from ztunnel import hellos
from ztunnel.channel import ForgetCertificate
from ztunnel.handshakes import Handshakes
from ztunnel.hellos import AHEAD, End, Hellos, end_of
from ztunnel.loop import Loop
from ztunnel.tls import Credentials
from ztunnel.tunnel import Tunnel
from ztunnel.vault import Vault
from ztunnel.verification import read_verified

pytestmark = pytest.mark.unit

AUTHORITY = Authority()


def credentials(identity: Identity = CLIENT) -> Credentials:
    return Credentials(AUTHORITY.certificate_for(identity))


def ahead(made: Hellos, whose: Credentials, takes: int = 2) -> list[End]:
    """Those that a client took, after which some were made ahead."""
    taken = [made.take(whose) for _ in range(takes)]
    made.prepare(whose)
    return taken


def shake_hands(client: End, server: End) -> None:
    for ends in ((client, server), (server, client)) * 2:
        ends[1].incoming.write(ends[0].outgoing.read())
        try:
            ends[1].tls.do_handshake()
        except ssl.SSLWantReadError:
            pass


def test_some_are_made_ahead_for_who_takes_again_and_again() -> None:
    made, whose = Hellos(), credentials()
    ahead(made, whose, takes=1)
    assert len(made) == 0
    ahead(made, whose, takes=1)
    assert len(made) == AHEAD
    made.prepare(whose)
    assert len(made) == AHEAD


def test_they_are_made_together_when_none_is_left() -> None:
    made, whose = Hellos(), credentials()
    ahead(made, whose)
    for left in range(AHEAD - 1, 0, -1):
        ahead(made, whose, takes=1)
        assert len(made) == left
    ahead(made, whose, takes=1)
    assert len(made) == AHEAD


def test_each_is_used_once_and_is_as_good_as_a_new_one() -> None:
    made, whose, serving = Hellos(), credentials(), credentials(SERVER)
    first, second = ahead(made, whose)
    third = made.take(whose)
    assert len(made) == AHEAD - 1 and len({end.outgoing.pending for end in (first, second, third)}) == 1
    for client in (first, third):
        server = end_of(serving.server, server=True)
        shake_hands(client, server)
        assert read_verified(client.tls).names == [str(SERVER)] and read_verified(server.tls).names == [str(CLIENT)]
    assert second.outgoing.read() != made.take(whose).outgoing.read()


def test_all_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hellos, "MOST", 3)
    made = Hellos()
    for _ in range(5):
        ahead(made, credentials())
    assert len(made) == 3


def test_none_outlives_its_certificate() -> None:
    made = Hellos()
    vault = Vault(Loop(), lambda _: None, made.forget)
    for end in (lambda: vault.set(AUTHORITY.certificate_for(CLIENT)), lambda: vault.forget(ForgetCertificate(CLIENT))):
        vault.set(AUTHORITY.certificate_for(CLIENT))
        held = vault.find(CLIENT)
        assert held is not None
        ahead(made, held)
        assert len(made) == AHEAD
        end()
        assert len(made) == 0


def test_who_takes_none_for_a_while_keeps_none() -> None:
    made, whose, other = Hellos(), credentials(), credentials()
    ahead(made, whose)
    ahead(made, other)
    made.release_idle()
    made.take(whose)
    assert len(made) == 2 * AHEAD - 1
    made.release_idle()
    assert len(made) == AHEAD - 1
    made.release_idle()
    assert len(made) == 0


def test_a_tunnel_that_cannot_begin_says_why() -> None:
    whose = credentials()
    whose.client.maximum_version = ssl.TLSVersion.TLSv1_2  # and 1.3 is the least
    door, (mine, theirs) = Door(), socket.socketpair()
    with theirs:
        tunnel = Tunnel.__new__(Tunnel)
        door.tunnels[tunnel] = None
        tunnel.__init__(Loop(), mine, end_of(whose.client, server=False), False, door, Handshakes(1))  # type: ignore[misc]
        assert not tunnel.open and door.errors == ["tls handshake error: no protocols available"]
