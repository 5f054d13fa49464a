"""Workload TLS, end to end over memory: versions, suites, and which alert a wrong client reads.

The table is that of Istio's ztunnel.
"""

import ssl
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.descriptors import open_descriptors
from tests.ztunnel.world import CLIENT, SERVER, Authority
from ztunnel.channel import SetCertificate
from ztunnel.key_engine import read_keys_fast
from ztunnel.tls import Credentials, check_client, reason_of
from ztunnel.verification import PeerRefused, Verified, read_verified

pytestmark = pytest.mark.unit

read_keys_fast()  # as workers do
AUTHORITY = Authority()
SERVING = Credentials(AUTHORITY.certificate_for(SERVER))


class Judge:
    """Lets in whoever it is told to, and remembers whom."""

    def __init__(self, check: Callable[[list[str]], object] = lambda _: None) -> None:
        """`check` may raise PeerRefused."""
        self.verified: Verified | None = None
        self._check = check

    def judge(self, peer: Verified) -> None:
        self._check(peer.names)


class Pair:
    """A client and a server that talk through memory."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(down, up)
        self.server = server.wrap_bio(up, down, server_side=True)

    def shake_hands(self, clients: Judge | None = None) -> None:
        """`clients`: asked by the server.

        Raises: ssl.SSLError, or PeerRefused, of the server, or of the client when it reads what the server had to say.
        """
        refusal: Exception | None = None
        for _ in range(4):
            for end in (self.client, self.server):
                try:
                    if end is self.server and clients is not None:
                        end.context.verifier.shake_hands(end, clients)  # type: ignore[attr-defined]
                    else:
                        end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLError, PeerRefused) as error:
                    if end is self.client:
                        raise
                    refusal = error
        if refusal:
            self.client.read(1)
            raise refusal


def alert_to(context: ssl.SSLContext, server: ssl.SSLContext = SERVING.server) -> str:
    """What a client reads in the place of an answer."""
    with pytest.raises(ssl.SSLError) as told:
        Pair(context, server).shake_hands(Judge(lambda names: check_client(names, "cluster.local")))
    return told.value.reason


def damaged() -> SetCertificate:
    """A certificate whose signature is not its issuer's."""
    honest = AUTHORITY.certificate_for(CLIENT)
    der = bytearray(x509.load_pem_x509_certificate(honest.chain_pem).public_bytes(Encoding.DER))
    der[-1] ^= 1
    chain = ssl.DER_cert_to_PEM_cert(bytes(der)).encode()
    return SetCertificate(CLIENT, chain, honest.key_pem, honest.roots_pem, 0)


def server_only() -> SetCertificate:
    chain, key = AUTHORITY.issue(str(CLIENT), usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    return SetCertificate(CLIENT, chain, key, AUTHORITY.pem, 0)


def anonymous() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=AUTHORITY.pem.decode())
    return context


def old_version() -> ssl.SSLContext:
    context = Credentials(AUTHORITY.certificate_for(CLIENT), tls12=True).client
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def shown(make: Callable[[], SetCertificate]) -> Callable[[], ssl.SSLContext]:
    return lambda: Credentials(make()).client


ALERTS: list[tuple[str, Callable[[], ssl.SSLContext], str]] = [
    ("no certificate: 116", anonymous, "TLSV13_ALERT_CERTIFICATE_REQUIRED"),
    (
        "untrusted issuer: 48",
        shown(lambda: Authority("foreign").certificate_for(CLIENT, roots=AUTHORITY.pem)),
        "TLSV1_ALERT_UNKNOWN_CA",
    ),
    ("bad signature: 51", shown(damaged), "TLSV1_ALERT_DECRYPT_ERROR"),
    ("no client usage: 43", shown(server_only), "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
    ("expired: 45", shown(lambda: AUTHORITY.certificate_for(CLIENT, expired=True)), "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
    (
        "another trust domain: 46",
        shown(lambda: AUTHORITY.certificate_for(CLIENT, "spiffe://other.domain/ns/shop/sa/client")),
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    ),
    (
        "no workload's name: 46",
        shown(lambda: AUTHORITY.certificate_for(CLIENT, "https://example.com/")),
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    ),
    ("TLS 1.2: 70", old_version, "TLSV1_ALERT_PROTOCOL_VERSION"),
]


@pytest.mark.parametrize(("context", "reason"), [row[1:] for row in ALERTS], ids=[row[0] for row in ALERTS])
def test_which_alert_a_wrong_client_reads(context: Callable[[], ssl.SSLContext], reason: str) -> None:
    assert alert_to(context()) == reason


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "certificate not valid yet"),
        (10, "certificate expired"),
        *((untrusted, "untrusted issuer: why") for untrusted in (2, 18, 19, 20, 21)),
        (26, "certificate is not meant for this role (extended key usage)"),
        (7, "why"),
    ],
)
def test_why_a_certificate_is_not_accepted_is_said_in_one_line(code: int, words: str) -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = code, "why"
    assert reason_of(error) == words


def test_no_descriptor_is_left_of_a_certificate_and_its_key() -> None:
    Credentials(AUTHORITY.certificate_for(CLIENT), tls12=True)
    assert not [name for _, name in open_descriptors() if "identity" in name]


def test_neither_tickets_nor_renegotiation_and_http_2_alone() -> None:
    for tls12 in (False, True):
        serving = Credentials(AUTHORITY.certificate_for(SERVER), tls12)
        pair = Pair(SERVING.client, serving.server)
        pair.shake_hands()
        pair.server.write(b"x")
        assert pair.client.read(1) == b"x"
        assert pair.client.session is None or not pair.client.session.has_ticket
        assert pair.client.selected_alpn_protocol() == pair.server.selected_alpn_protocol() == "h2"
    for context in (serving.server, serving.client):
        assert context.options & ssl.OP_NO_TICKET and context.options & ssl.OP_NO_RENEGOTIATION


def test_only_tls_1_3_unless_1_2_is_asked_for_and_then_with_forward_secret_gcm_alone() -> None:
    both = Credentials(AUTHORITY.certificate_for(SERVER), tls12=True).server
    pair = Pair(SERVING.client, both)
    pair.shake_hands()
    assert pair.client.version() == "TLSv1.3"
    pair = Pair(old_version(), both)
    pair.shake_hands()
    assert pair.client.version() == "TLSv1.2" and pair.client.cipher()[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
    assert check_client(read_verified(pair.server).names, "cluster.local") == CLIENT
    old = old_version()
    old.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305")
    assert alert_to(old, both) == "SSLV3_ALERT_HANDSHAKE_FAILURE"
    offered = {one["name"] for one in both.get_ciphers() if one["protocol"] == "TLSv1.2"}
    assert offered == {
        f"ECDHE-{kind}-AES{bits}-GCM-SHA{sha}" for kind in ("ECDSA", "RSA") for bits, sha in ((256, 384), (128, 256))
    }


def test_a_resumed_session_of_tls_1_2_is_refused_and_contexts_remember_few() -> None:
    serving = Credentials(AUTHORITY.certificate_for(SERVER), tls12=True)
    context, client = serving.server, old_version()
    first = Pair(client, context)
    first.shake_hands()
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    again = Pair(client, context)
    again.client = client.wrap_bio(down, up, session=first.client.session)
    again.server = context.wrap_bio(up, down, server_side=True)
    again.shake_hands()
    assert again.server.session_reused and read_verified(again.server).chain == []
    with pytest.raises(PeerRefused, match="the peer resumed a session"):
        context.verifier.shake_hands(again.server, Judge())
    assert len({id(one) for one in [context, *(serving.server for _ in range(512))]}) == 2


def test_the_chain_of_a_peer_goes_from_its_leaf_to_our_root() -> None:
    pair = Pair(Credentials(AUTHORITY.certificate_for(CLIENT)).client, SERVING.server)
    pair.shake_hands()
    leaf, root = map(x509.load_der_x509_certificate, read_verified(pair.server).chain)
    leaf.verify_directly_issued_by(root)
    assert root == AUTHORITY.certificate


def test_multi_root_accepted() -> None:
    """Each end trusts every root of its own bundle: what holds a mesh together while its root is replaced."""
    other = Authority("the next root")
    bundle = AUTHORITY.pem + other.pem
    for issuer in (AUTHORITY, other):
        Pair(
            Credentials(issuer.certificate_for(CLIENT, roots=bundle)).client,
            Credentials(AUTHORITY.certificate_for(SERVER, roots=bundle)).server,
        ).shake_hands()


def test_a_peer_is_sent_the_chain_that_was_issued_and_no_root() -> None:
    pair = Pair(Credentials(AUTHORITY.certificate_for(CLIENT)).client, SERVING.server)
    pair.shake_hands()
    for end, identity in ((pair.client, SERVER), (pair.server, CLIENT)):
        sent = end._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        assert len(sent) == 1 and read_verified(end).names == [str(identity)]
        assert len(read_verified(end).chain) == 2, "verified with the root that the receiver has"
