"""Revoked certificates against real workers: who is refused, who is cut off, and who hears why."""

import socket
import ssl
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.ztunnel.revocation_lists import revocation_list
from tests.ztunnel.test_tls import Judge
from tests.ztunnel.world import CLIENT, SERVER, VIP, Authority, World, assert_reset
from ztunnel.channel import EarlyFailure, Revocation, SetCertificate, SetRevoked
from ztunnel.connection_record import Direction, Flag
from ztunnel.crl_file import read_lists
from ztunnel.hellos import end_of
from ztunnel.loop import Loop
from ztunnel.revocation import PeerRevoked, Revocations
from ztunnel.tls import Credentials
from ztunnel.walk import ENDINGS_PER_TURN

pytestmark = pytest.mark.kernel


class Revocable(World):
    """A world whose certificates are known, with other lists at any time."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.papers: dict[str, SetCertificate] = {
            one.service_account: self.authority.certificate_for(one) for one in (CLIENT, SERVER)
        }

    def begin(self) -> None:
        self.start(self.papers["client"], self.papers["server"])

    def revoke(self, *names: str) -> None:
        lists = read_lists(revocation_list(self.authority, *(self.papers[name].chain_pem for name in names)))
        for pod in (self.client, self.server):
            pod.worker.tell(SetRevoked(lists))
            pod.worker.catch_up()


@pytest.fixture
def mesh() -> Iterator[Revocable]:
    made = Revocable("crl")
    try:
        made.begin()
        yield made
    finally:
        made.close()


def connect(mesh: World, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = mesh.client.connect(VIP, 80)
    server, _ = listener.accept()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    return client, server


def test_crl_blocks_a_new_connection_of_a_revoked_client(mesh: Revocable) -> None:
    mesh.revoke("client")
    assert_reset(lambda: mesh.client.connect(VIP, 80))
    failure = mesh.server.worker.wait_for(EarlyFailure)
    assert failure.flag == "CERT_REVOKED" and "peer certificate revoked: serial number " in failure.error
    assert mesh.server.worker.wait_for(Revocation) == Revocation("inbound", known=True)


def test_crl_blocks_a_new_connection_to_a_revoked_server(mesh: Revocable) -> None:
    mesh.revoke("server")
    assert_reset(lambda: mesh.client.connect(VIP, 80))
    record = mesh.client.worker.closed()
    assert record.flag == "CERT_REVOKED" and "peer certificate revoked" in record.error
    assert mesh.client.worker.wait_for(Revocation) == Revocation("outbound", known=True)


@pytest.mark.parametrize("revoked", ["client", "server"])
def test_crl_drops_live_connections_with_the_reason_at_the_end_that_knows(mesh: Revocable, revoked: str) -> None:
    judge = mesh.server if revoked == "client" else mesh.client
    with mesh.server.listen(8080) as listener:
        client, server = connect(mesh, listener)
        mesh.revoke(revoked)
        for end in (client, server):
            with pytest.raises(ConnectionResetError):
                assert end.recv(1)
                raise AssertionError("the connection goes on")
            end.close()
    record = judge.worker.closed(lambda one: one.flag == "CERT_REVOKED")
    assert record.error.startswith("connection closed: peer certificate revoked: serial number ")


def test_who_keeps_back_the_last_byte_of_its_handshake_until_it_is_revoked_is_not_let_in(mesh: Revocable) -> None:
    """Its certificate was looked up when it came, before the list did."""
    client = Credentials(mesh.papers["client"])
    end, judge = end_of(client.client, server=False), Judge()
    with mesh.client.connect(mesh.server.address, 15008, mark=0x539) as sock:
        sock.sendall(end.outgoing.read())
        while judge.verified is None:
            end.incoming.write(sock.recv(65536))
            try:
                client.client.verifier.shake_hands(end.tls, judge)
            except ssl.SSLWantReadError:
                continue
        sock.sendall(end.outgoing.read()[:-1])
        mesh.server.worker.catch_up()
        mesh.revoke("client")
        failure = mesh.server.worker.wait_for(EarlyFailure)
        assert failure.flag == "CERT_REVOKED" and "peer certificate revoked: serial number " in failure.error


def test_crl_reload_lets_in_whom_the_new_lists_do_not_name(mesh: Revocable) -> None:
    with mesh.server.listen(8080) as listener:
        mesh.revoke("client")
        assert_reset(lambda: mesh.client.connect(VIP, 80))
        mesh.revoke()
        for end in connect(mesh, listener):
            end.close()


def test_crl_of_others_disturbs_nobody(mesh: Revocable) -> None:
    with mesh.server.listen(8080) as listener:
        ends = connect(mesh, listener)
        foreign = Authority("foreign root")
        stranger = mesh.authority.issue("spiffe://cluster.local/ns/shop/sa/stranger")[0]
        data = revocation_list(foreign, mesh.papers["client"].chain_pem) + revocation_list(mesh.authority, stranger)
        for pod in (mesh.client, mesh.server):
            pod.worker.tell(SetRevoked(read_lists(data)))
        for one, other in (ends, ends[::-1]):
            one.sendall(b"y")
            assert other.recv(1) == b"y"
        for end in ends:
            end.close()


class Peer:
    """A connection that says what its chain is."""

    server = open = established = True

    def __init__(self, *chain: bytes) -> None:
        self._chain = chain
        self.ended: list[tuple[str, str]] = []

    def chain(self) -> list[bytes]:
        return [*self._chain]

    def end(self, error: str, flag: Flag = "-") -> None:
        self.ended.append((flag, error))


def test_a_revoked_intermediate_a_chain_that_cannot_be_read_and_a_large_crowd() -> None:
    authority = Authority()
    leaf, above = (x509.load_pem_x509_certificate(authority.issue("x://y")[0]).public_bytes(Encoding.DER) for _ in "12")
    lists = read_lists(revocation_list(authority, x509.load_der_x509_certificate(above).public_bytes(Encoding.PEM)))
    told: list[Revocation] = []
    crowd = [Peer(leaf), Peer(leaf, above), *(Peer(leaf) for _ in range(200)), Peer(leaf, above)]
    loop = Loop()
    revocations = Revocations(loop, told.append, crowd)
    revocations.check(True, [leaf, above])
    direction: Direction = "inbound"
    revocations.set(lists)
    for _ in crowd[64::64]:
        loop.turn(1)
    assert [bool(one.ended) for one in crowd] == [False, True, *[False] * 200, True]
    with pytest.raises(PeerRevoked, match="intermediate certificate revoked"):
        revocations.check(True, [leaf, above])
    with pytest.raises(PeerRevoked, match="cannot be looked up"):
        revocations.check(True, [leaf, b"\x30\x03x"])
    with pytest.raises(PeerRevoked, match="cannot be looked up in the revocation lists: it is empty"):
        revocations.check(True, [])
    assert told == [Revocation(direction, known=True)] * 3 + [Revocation(direction, known=False)] * 2


def test_lists_that_change_faster_than_all_are_looked_at_end_everybody_all_the_same() -> None:
    authority = Authority()
    leaf = x509.load_pem_x509_certificate(authority.issue("x://y")[0]).public_bytes(Encoding.DER)
    lists = read_lists(revocation_list(authority, x509.load_der_x509_certificate(leaf).public_bytes(Encoding.PEM)))
    crowd, loop = [Peer(leaf) for _ in range(300)], Loop()
    revocations = Revocations(loop, lambda _: None, crowd)
    while not all(one.ended for one in crowd):
        before = sum(len(one.ended) for one in crowd)
        revocations.set(lists)
        loop.turn(1)
        assert 0 < sum(len(one.ended) for one in crowd) - before <= 2 * ENDINGS_PER_TURN, (
            "one piece each, and there is always somebody"
        )
