"""Who is let in: wrong certificates of either side, each refused with its own reason, and nobody else disturbed."""

import ssl
from collections.abc import Callable, Iterator

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.identity import Identity
from tests.ztunnel.world import CLIENT, SERVER, VIP, Authority, World, assert_reset, world
from ztunnel.channel import SetCertificate
from ztunnel.frames import CLIENT_OPENING
from ztunnel.tls import Credentials, check_client, check_server
from ztunnel.verification import PeerRefused

pytestmark = pytest.mark.kernel

FOREIGN = "spiffe://other.domain/ns/shop/sa/client"


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world("identity") as made:
        made.start()
        yield made


@pytest.fixture
def mesh(shared: World) -> World:
    shared.settle()
    return shared


def dial(mesh: World, context: ssl.SSLContext) -> None:
    """Greet the server's 15008 as whoever the context says, until it ends the connection."""
    raw = mesh.client.connect(mesh.server.address, 15008, mark=0x539)
    with pytest.raises((ssl.SSLError, ConnectionResetError, BrokenPipeError)), context.wrap_socket(raw) as tls:
        tls.sendall(CLIENT_OPENING)
        while tls.recv(1000):
            pass
        raise ConnectionResetError
    raw.close()


def context_for(certificate: SetCertificate) -> ssl.SSLContext:
    return Credentials(certificate).client


def anonymous(mesh: World) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=mesh.authority.pem.decode())
    return context


def old_version(mesh: World) -> ssl.SSLContext:
    context = anonymous(mesh)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def signed(*uris: str, expired: bool = False, foreign: bool = False) -> Callable[[World], ssl.SSLContext]:
    def make(mesh: World) -> ssl.SSLContext:
        authority = Authority("foreign root") if foreign else mesh.authority
        return context_for(authority.certificate_for(CLIENT, *uris, expired=expired, roots=mesh.authority.pem))

    return make


def server_only(mesh: World) -> ssl.SSLContext:
    chain, key = mesh.authority.issue(str(CLIENT), usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    return context_for(SetCertificate(CLIENT, chain, key, mesh.authority.pem, 0))


def other_protocol(mesh: World) -> ssl.SSLContext:
    context = context_for(mesh.authority.certificate_for(CLIENT))
    context.set_alpn_protocols(["http/1.1", "spdy/3"])
    return context


CLIENTS: list[tuple[str, Callable[[World], ssl.SSLContext], str]] = [
    ("no certificate", anonymous, "no client certificate presented"),
    ("untrusted issuer", signed(foreign=True), "untrusted issuer"),
    ("expired", signed(expired=True), "certificate expired"),
    ("wrong trust domain", signed(FOREIGN), f"wrong trust domain: peer is {FOREIGN}, this mesh is cluster.local"),
    ("no SPIFFE id", signed("https://example.com/"), "wrong SAN: peer has no workload identity"),
    ("wrong key usage", server_only, "certificate is not meant for this role"),
    ("old TLS", old_version, "unsupported protocol"),
    ("other protocol", other_protocol, "no common protocol: peer offers 'http/1.1', 'spdy/3'"),
]


@pytest.mark.parametrize(("context", "reason"), [case[1:] for case in CLIENTS], ids=[case[0] for case in CLIENTS])
def test_a_wrong_client_is_refused_with_its_reason(
    mesh: World, context: Callable[[World], ssl.SSLContext], reason: str
) -> None:
    dial(mesh, context(mesh))
    failure = mesh.server.worker.early("")
    assert failure.error.startswith("tls handshake error: ") and reason in failure.error
    assert failure.direction == "inbound" and str(failure.source[0]) == mesh.client.address
    assert failure.flag in ("TLS_FAILURE", "IDENTITY_ERROR")


def test_a_client_of_another_trust_domain_reads_why(mesh: World) -> None:
    raw = mesh.client.connect(mesh.server.address, 15008, mark=0x539)
    with signed(FOREIGN)(mesh).wrap_socket(raw) as tls, pytest.raises(ssl.SSLError, match="ALERT_CERTIFICATE_UNKNOWN"):
        tls.recv(1)
    assert mesh.server.worker.early("").flag == "IDENTITY_ERROR"


def test_garbage_instead_of_a_handshake(mesh: World) -> None:
    with mesh.client.connect(mesh.server.address, 15008, mark=0x539) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            while raw.recv(1000):
                pass
        except ConnectionResetError:
            pass
    assert "tls handshake error" in mesh.server.worker.early("").error


def test_honest_clients_are_served_all_the_while(mesh: World) -> None:
    with mesh.server.listen(8080) as listener:
        client = mesh.client.connect(VIP, 80)
        server, _ = listener.accept()
        for make in (signed(expired=True), anonymous, signed(FOREIGN)):
            dial(mesh, make(mesh))
            client.sendall(b"x")
            assert server.recv(1) == b"x"
        client.close()
        server.close()


def refused_server(make: Callable[[Authority], SetCertificate], reason: str, flag: str) -> None:
    """The client's worker meets a server with a wrong certificate."""
    with world("server") as mesh:
        mesh.start(server=make(mesh.authority))
        assert_reset(lambda: mesh.client.connect(VIP, 80))
        record = mesh.client.worker.closed()
        assert reason in record.error and record.flag == flag and record.bytes_sent == 0


def test_a_server_with_another_identity_is_refused() -> None:
    other = "spiffe://cluster.local/ns/shop/sa/other"
    refused_server(
        lambda authority: authority.certificate_for(SERVER, other),
        f"io error: invalid peer certificate: wrong SAN: peer did not present the expected SAN ({SERVER})",
        "IDENTITY_ERROR",
    )


def test_trust_domain_mismatch_rejected() -> None:
    foreign = "spiffe://other.domain/ns/shop/sa/server"
    refused_server(lambda authority: authority.certificate_for(SERVER, foreign), foreign, "IDENTITY_ERROR")


def test_an_expired_server_is_refused() -> None:
    words = "io error: invalid peer certificate: certificate expired"
    refused_server(lambda authority: authority.certificate_for(SERVER, expired=True), words, "TLS_FAILURE")


def test_a_server_of_a_foreign_issuer_is_refused() -> None:
    refused_server(
        lambda authority: Authority("foreign root").certificate_for(SERVER, roots=authority.pem),
        "io error: invalid peer certificate: untrusted issuer",
        "TLS_FAILURE",
    )


def test_our_own_wrong_certificate_is_told_to_our_own_application() -> None:
    with world("own") as mesh:
        mesh.start(client=mesh.authority.certificate_for(CLIENT, expired=True))
        assert_reset(lambda: mesh.client.connect(VIP, 80))
        record = mesh.client.worker.closed()
        assert record.flag == "TLS_FAILURE" and "the peer finds our certificate expired" in record.error
        assert "certificate expired" in mesh.server.worker.early("expired").error


def test_which_name_of_several_counts() -> None:
    ours, theirs = str(CLIENT), FOREIGN
    assert check_client([theirs, "spiffe://cluster.local/odd", ours], "cluster.local") == CLIENT
    assert check_server(["https://x", str(SERVER)], frozenset({str(SERVER)})) == SERVER
    with pytest.raises(PeerRefused, match="nobody"):
        check_server([str(SERVER)], frozenset())
    with pytest.raises(PeerRefused, match="no workload identity"):
        check_server(["https://x"], frozenset({"https://x"}))
    with pytest.raises(PeerRefused, match="wrong trust domain"):
        check_client([theirs], "cluster.local")
    assert Identity.parse(theirs).trust_domain == "other.domain"


def test_which_name_counts_in_a_mesh_with_aliases() -> None:
    aliases = frozenset({"other.domain"})
    assert str(check_client([FOREIGN], "cluster.local", aliases)) == FOREIGN
    assert check_client([FOREIGN, str(CLIENT)], "cluster.local", aliases) == CLIENT, "our own first"
    with pytest.raises(PeerRefused, match="wrong trust domain"):
        check_client(["spiffe://third.domain/ns/shop/sa/client"], "cluster.local", aliases)
    domains, expected = aliases | {"cluster.local"}, frozenset({str(SERVER), "spiffe://partner/ns/a/sa/b"})
    theirs = SERVER._replace(trust_domain="other.domain")
    assert check_server([str(theirs)], expected, domains) == theirs
    for name in (
        theirs._replace(service_account="x"),
        SERVER._replace(trust_domain="third"),
        Identity("other.domain", "a", "b"),
    ):
        with pytest.raises(PeerRefused, match="did not present the expected SAN"):
            check_server([str(name)], expected, domains)


def test_tls_1_2_where_it_is_asked_for() -> None:
    with world("tls12") as mesh:
        mesh.server.configuration["tls12"] = True
        mesh.start()
        context = Credentials(mesh.authority.certificate_for(CLIENT), tls12=True).client
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        raw = mesh.client.connect(mesh.server.address, 15008, mark=0x539)
        with context.wrap_socket(raw) as tls:
            assert tls.version() == "TLSv1.2" and tls.cipher()[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
            tls.sendall(CLIENT_OPENING)
            assert tls.recv(9), "the server speaks HTTP/2"


def test_peers_of_an_alias_are_peers_of_the_mesh() -> None:
    with world("alias") as mesh:
        for pod in (mesh.client, mesh.server):
            pod.configuration["trust_domain_aliases"] = frozenset({"other.domain"})
        mesh.start(
            mesh.authority.certificate_for(CLIENT, FOREIGN),
            mesh.authority.certificate_for(SERVER, "spiffe://other.domain/ns/shop/sa/server"),
        )
        with mesh.server.listen(8080) as listener, mesh.client.connect(VIP, 80) as client:
            server, _ = listener.accept()
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            server.close()
        record = mesh.server.worker.closed()
        assert str(record.source_identity) == FOREIGN
