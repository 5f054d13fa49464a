"""Peers' certificates that come again: never accepted where OpenSSL, asked once more, would refuse them. Real handshakes."""

import contextlib
import ctypes
import gc
import ssl
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity import Identity
from tests.ztunnel.revocation_lists import revocation_list
from tests.ztunnel.test_tls import Judge
from tests.ztunnel.world import CLIENT, SERVER, Authority
from ztunnel import openssl, tls, verification
from ztunnel.authorities import Authorities, Federated
from ztunnel.channel import SetCertificate
from ztunnel.crl_file import read_lists
from ztunnel.key_engine import read_keys_fast
from ztunnel.loop import Loop
from ztunnel.revocation import PeerRevoked, Revocations
from ztunnel.tls import Credentials, reason_of
from ztunnel.verification import PeerRefused, Verifications, Verified

pytestmark = pytest.mark.unit

read_keys_fast()  # as workers do
AUTHORITY = Authority()
HONEST = AUTHORITY.certificate_for(CLIENT)
SERVING = AUTHORITY.certificate_for(SERVER)
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class Mesh:
    """One worker's memory; two ends, of which each may be asked to prove itself to the other."""

    def __init__(self, version: ssl.TLSVersion, peer_is_client: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        assert openssl.BOUND is not None
        self.known = Verifications(8)
        self.verified = 0
        """How often OpenSSL verified a chain."""
        self._version, self._peer_is_client = version, peer_is_client
        verify = openssl.BOUND.verify

        def count(store: int) -> Any:
            self.verified += 1
            return verify(store)

        monkeypatch.setattr(openssl.BOUND, "verify", count)

    def meets(
        self, peer: SetCertificate, judge: Judge | None = None, roots: bytes = b"", federated: Federated = ()
    ) -> Verified | None:
        """Greet a peer who shows this, as one with these roots. Raises: what refuses it."""
        own = SetCertificate(SERVER, SERVING.chain_pem, SERVING.key_pem, roots or AUTHORITY.pem, 0, federated)
        us, judge = Credentials(own, True, self.known), judge or Judge()
        ours = us.server if self._peer_is_client else us.client
        theirs = careless(peer, ssl.PROTOCOL_TLS_CLIENT if self._peer_is_client else ssl.PROTOCOL_TLS_SERVER)
        ours.maximum_version = self._version
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.end = ours.wrap_bio(up, down, server_side=self._peer_is_client)
        self.other = theirs.wrap_bio(down, up, server_side=not self._peer_is_client)
        for _ in range(4):
            for shake_hands in (self.other.do_handshake, lambda: ours.verifier.shake_hands(self.end, judge)):
                try:
                    shake_hands()
                except ssl.SSLWantReadError:
                    pass
        return judge.verified

    def refuses(self, peer: SetCertificate, judge: Judge | None = None, roots: bytes = b"", federated: Federated = ()) -> str:
        """Why it does."""
        judge = judge or Judge()
        with pytest.raises((ssl.SSLError, PeerRefused)) as refused:
            self.meets(peer, judge, roots, federated)
        assert judge.verified is None
        return reason_of(refused.value) if isinstance(refused.value, ssl.SSLError) else str(refused.value)

    def alert(self) -> str:
        """What the peer was told."""
        with pytest.raises(ssl.SSLError) as told:
            self.other.read(1)
        return told.value.reason


@pytest.fixture(params=[(V1_3, True), (V1_3, False), (V1_2, True), (V1_2, False)], ids=["1.3in", "1.3out", "1.2in", "1.2out"])
def mesh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    yield Mesh(*request.param, monkeypatch)


def careless(shown: SetCertificate, protocol: int) -> ssl.SSLContext:
    """A peer that shows this and asks for nothing."""
    context = ssl.SSLContext(protocol)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tempfile.NamedTemporaryFile() as file:
        file.write(shown.chain_pem + b"\n" + shown.key_pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def der(certificate: SetCertificate) -> bytes:
    return x509.load_pem_x509_certificate(certificate.chain_pem).public_bytes(DER)


def pem(certificate: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


def signed(
    subject: str, key: Any, issuer: Authority, ca: bool = False, usages: list[Any] | None = None, serial: int = 0
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer.name)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(CLIENT))]), critical=True)
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def secret(key: Any) -> bytes:
    return bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def test_who_comes_again_is_verified_once_and_is_the_same(mesh: Mesh) -> None:
    first, second = mesh.meets(HONEST), mesh.meets(HONEST)
    assert mesh.verified == 1 and first is not None and first is second
    assert first.names == [str(CLIENT)]
    assert first.chain == [der(HONEST), AUTHORITY.certificate.public_bytes(DER)]
    leaf = x509.load_pem_x509_certificate(HONEST.chain_pem)
    assert first.not_before == leaf.not_valid_before_utc.timestamp()
    assert first.not_after == leaf.not_valid_after_utc.timestamp()
    mesh.end.write(b"x")
    assert mesh.other.read(1) == b"x"


def test_who_has_the_certificate_but_not_the_key_is_refused(mesh: Mesh) -> None:
    mesh.meets(HONEST)
    own = serialization.load_pem_private_key(HONEST.key_pem, None)
    assert isinstance(own, ec.EllipticCurvePrivateKey)
    point = own.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    other = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32, "big")
    # RFC 5915: a private key beside a public key that is not its own, which OpenSSL believes
    inner = b"\x02\x01\x01\x04\x20" + other + bytes.fromhex("a00a06082a8648ce3d030107") + b"\xa1\x44\x03\x42\x00" + point
    key = ssl.DER_cert_to_PEM_cert(b"\x30" + bytes([len(inner)]) + inner).replace("CERTIFICATE", "EC PRIVATE KEY").encode()
    judge = Judge()
    thief = SetCertificate(CLIENT, HONEST.chain_pem, key, AUTHORITY.pem, 0)
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.signature|decrypt.error"):
        mesh.meets(thief, judge)
    assert mesh.verified == 1


def test_an_expired_certificate_is_refused_though_it_was_verified_before(mesh: Mesh) -> None:
    mesh.meets(HONEST)
    (key,) = mesh.known._known
    late = AUTHORITY.certificate_for(CLIENT, expired=True)
    leaf = x509.load_pem_x509_certificate(late.chain_pem)
    first, last = (int(one.timestamp()) for one in (leaf.not_valid_before_utc, leaf.not_valid_after_utc))
    mesh.known.keep((key[0], der(late)), Verified([str(CLIENT)], [der(late)], first, last))
    assert mesh.refuses(late) == "certificate expired"
    assert mesh.alert() == "SSLV3_ALERT_CERTIFICATE_EXPIRED" and mesh.verified == 2
    assert list(mesh.known._known) == [key]


@pytest.mark.parametrize(("seconds", "times"), [(-1, 2), (0, 1), (86_400 * 2 - 1, 1), (86_400 * 2, 2)])
def test_what_is_remembered_counts_while_all_of_the_chain_is_valid(seconds: int, times: int) -> None:
    now = 1000
    known = Verifications(2, lambda: now + seconds)
    known.keep((b"realm", b"leaf"), Verified([], [b"leaf", b"root"], now, now + 86_400 * 2))
    assert (known.find((b"realm", b"leaf")) is None) == (times == 2)
    assert len(known) == 2 - times


def test_roots_that_were_replaced_verify_anew(mesh: Mesh) -> None:
    mesh.meets(HONEST)
    namesake = Authority()
    assert mesh.refuses(HONEST, roots=namesake.pem).startswith(("untrusted issuer", "certificate signature failure"))
    assert mesh.verified == 2
    mesh.meets(HONEST, roots=Authority("the next root").pem + AUTHORITY.pem)
    mesh.meets(HONEST)
    assert mesh.verified == 3


@pytest.mark.parametrize("right", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
def test_a_certificate_for_one_role_is_refused_in_the_other(right: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, key = AUTHORITY.issue(str(CLIENT), usages=[right])
    peer = SetCertificate(CLIENT, chain, key, AUTHORITY.pem, 0)
    as_client, as_server = Mesh(V1_3, True, monkeypatch), Mesh(V1_3, False, monkeypatch)
    good, bad = (as_client, as_server) if right is ExtendedKeyUsageOID.CLIENT_AUTH else (as_server, as_client)
    bad.known = good.known
    good.meets(peer)
    assert "not meant for this role" in bad.refuses(peer)
    assert bad.alert() == "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"


def test_another_certificate_of_the_same_name_key_and_number_is_verified(mesh: Mesh) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    one, renewed, forged = (
        SetCertificate(CLIENT, signed("x", key, by, serial=7).public_bytes(PEM), secret(key), AUTHORITY.pem, 0)
        for by in (AUTHORITY, AUTHORITY, Authority())
    )
    mesh.meets(one)
    mesh.meets(renewed)
    assert mesh.verified == 2
    assert mesh.refuses(forged)
    assert mesh.verified == 3


def test_the_same_contents_with_another_signature_are_verified(mesh: Mesh) -> None:
    mesh.meets(HONEST)
    damaged = bytearray(der(HONEST))
    damaged[-1] ^= 1
    assert mesh.refuses(SetCertificate(CLIENT, pem(bytes(damaged)), HONEST.key_pem, AUTHORITY.pem, 0))
    assert mesh.alert() == "TLSV1_ALERT_DECRYPT_ERROR" and mesh.verified == 2
    r, s = decode_dss_signature(x509.load_pem_x509_certificate(HONEST.chain_pem).signature)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    old, new = encode_dss_signature(r, s), encode_dss_signature(r, order - s)
    if len(old) == len(new):  # good as well, and another certificate all the same
        twin = der(HONEST).replace(old, new)
        mesh.meets(SetCertificate(CLIENT, pem(twin), HONEST.key_pem, AUTHORITY.pem, 0))
        assert mesh.verified == 3


def test_another_intermediate_or_none_is_another_chain(mesh: Mesh) -> None:
    middle, twin, leaf = Authority("middle"), Authority("middle"), ec.generate_private_key(ec.SECP256R1())
    above = signed("middle", middle.key, AUTHORITY, ca=True).public_bytes(PEM)
    again = signed("middle", middle.key, AUTHORITY, ca=True).public_bytes(PEM)
    other = signed("middle", twin.key, AUTHORITY, ca=True).public_bytes(PEM)
    below = signed("leaf", leaf, middle).public_bytes(PEM)

    def peer(*chain: bytes) -> SetCertificate:
        return SetCertificate(CLIENT, b"".join(chain), secret(leaf), AUTHORITY.pem, 0)

    for _ in range(2):
        found = mesh.meets(peer(below, above))
        assert found is not None and found.chain[1] == ssl.PEM_cert_to_DER_cert(above.decode()) and len(found.chain) == 3
    assert mesh.verified == 1
    assert mesh.refuses(peer(below)).startswith("untrusted issuer")
    assert mesh.refuses(peer(below, other))
    mesh.meets(peer(below, again))
    assert mesh.verified == 4


def test_a_certificate_that_was_revoked_since_is_refused(mesh: Mesh) -> None:
    revocations = Revocations(Loop(), lambda _: None, ())

    class Looking(Judge):
        def judge(self, peer: Verified) -> None:
            revocations.check(True, peer.chain)

    mesh.meets(HONEST, Looking())
    revocations.set(read_lists(revocation_list(AUTHORITY, HONEST.chain_pem)))
    with pytest.raises(PeerRevoked, match="peer certificate revoked"):
        mesh.meets(HONEST, Looking())
    assert mesh.verified == 1 and mesh.alert() == "SSLV3_ALERT_CERTIFICATE_REVOKED"


def test_who_is_refused_by_name_is_told_and_the_next_one_is_served(mesh: Mesh) -> None:
    def refuse(names: list[str]) -> None:
        raise PeerRefused(f"we do not serve {names}")

    for _ in range(2):
        assert mesh.refuses(HONEST, Judge(refuse)) == f"we do not serve {[str(CLIENT)]}"
        assert mesh.alert() == "SSLV3_ALERT_CERTIFICATE_UNKNOWN"
    assert mesh.meets(HONEST) is not None
    assert mesh.verified == 1


def test_nothing_of_who_was_refused_waits_for_a_collector(mesh: Mesh) -> None:
    def refuse(names: list[str]) -> None:
        raise PeerRefused("no")

    judge = Judge(refuse)
    gone = weakref.ref(judge)
    gc.disable()
    try:
        with contextlib.suppress(PeerRefused):
            mesh.meets(HONEST, judge)
        del judge
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, KeyboardInterrupt, SystemExit])
def test_a_fault_of_our_own_refuses(mesh: Mesh, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise kind("here")

    for _ in range(2):
        with pytest.raises(kind):
            mesh.meets(HONEST, Judge(fail))
        assert mesh.alert() == "TLSV1_ALERT_INTERNAL_ERROR"
    for name in ("der", "uris", "validity", "verify"):
        mesh.known = Verifications(2)
        with monkeypatch.context() as patch, pytest.raises(kind):
            patch.setattr(openssl.BOUND, name, fail)
            mesh.meets(HONEST)
        assert len(mesh.known) == 0
    assert mesh.meets(HONEST) is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fault_that_ctypes_swallows_accepts_nobody(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenSSL then reads as our answer is whatever was in that memory."""

    def fail(*_: object) -> int:
        raise RuntimeError("before any answer")

    monkeypatch.setattr(verification.Verifier, "_verify", fail)
    assert mesh.refuses(HONEST)


@pytest.mark.parametrize("answer", [1, 2])
def test_an_answer_without_a_verdict_is_not_one(mesh: Mesh, answer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification.Verifier, "_verify", lambda *_: answer)
    assert mesh.refuses(HONEST)


def test_few_are_remembered_and_the_oldest_is_forgotten_first() -> None:
    known = Verifications(2)
    for name in (b"a", b"b", b"a", b"c"):
        known.keep((b"r", name), Verified([], [name, b"root"], 0, 1 << 40))
    assert known.find((b"r", b"b")) is None and len(known) == 2
    a, c = (known.find((b"r", name)) for name in (b"a", b"c"))
    assert a is not None and c is not None and a.chain[1] is c.chain[1], "issuers are there once"


@pytest.mark.parametrize(
    ("shown", "remembered"),
    [([b"x" * 8191], True), ([b"x" * 8192], False), ([b"1", b"2", b"3", b"4"], True), ([b"1"] * 5, False)],
)
def test_what_is_long_is_not_remembered(shown: list[bytes], remembered: bool) -> None:
    known = Verifications(2)
    known.keep((b"r", *shown), Verified([], shown, 0, 1 << 40))
    assert (known.find((b"r", *shown)) is not None) == remembered


def test_a_long_chain_and_a_memory_of_none_are_verified_each_time(mesh: Mesh) -> None:
    padding = b"".join(Authority(f"nobody {number}").pem for number in range(4))
    long = SetCertificate(CLIENT, HONEST.chain_pem + padding, HONEST.key_pem, AUTHORITY.pem, 0)
    uris = [str(CLIENT), *(f"https://example.com/{number:04}" * 10 for number in range(60))]
    large = AUTHORITY.certificate_for(CLIENT, *uris)
    for peer in (long, large, long, large):
        assert mesh.meets(peer) is not None
    assert mesh.verified == 4 and len(mesh.known) == 0
    found = mesh.meets(large)
    assert found is not None and found.names == uris and len(found.chain[0]) > 8192
    mesh.known = Verifications(0)
    for _ in range(2):
        mesh.meets(HONEST)
    assert mesh.verified == 7


def test_what_proves_nothing_cannot_be_varied_to_crowd_others_out(mesh: Mesh) -> None:
    """The owner of one good certificate could show it with another stranger's each time."""
    mesh.meets(HONEST)
    for number in range(20):
        stranger = Authority(f"stranger {number}").pem
        assert mesh.meets(SetCertificate(CLIENT, HONEST.chain_pem + stranger, HONEST.key_pem, AUTHORITY.pem, 0)) is not None
    assert len(mesh.known) == 1 and mesh.verified == 21
    mesh.meets(HONEST)
    with_root = SetCertificate(CLIENT, HONEST.chain_pem + AUTHORITY.pem, HONEST.key_pem, AUTHORITY.pem, 0)
    for _ in range(2):
        mesh.meets(with_root)
    assert mesh.verified == 22, "whoever shows its root too is remembered"


def no_memory(_: object) -> Any:
    raise MemoryError


@pytest.mark.parametrize(("where", "name", "what"), [(tls, "BOUND", None), (verification, "Verify", no_memory)])
def test_where_openssl_cannot_ask_peers_are_judged_after_the_handshake(
    mesh: Mesh, where: Any, name: str, what: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an interpreter that nobody looked into, or where no code can be made for OpenSSL to call."""
    monkeypatch.setattr(where, name, what)

    def refuse(names: list[str]) -> None:
        raise PeerRefused(f"not {names}")

    for _ in range(2):
        found = mesh.meets(HONEST)
        assert found is not None and found.names == [str(CLIENT)] and len(found.chain) == 2
        assert mesh.refuses(HONEST, Judge(refuse)) == f"not {[str(CLIENT)]}"
    assert mesh.refuses(Authority("foreign").certificate_for(CLIENT, roots=AUTHORITY.pem)).startswith("untrusted issuer")
    assert mesh.verified == 0 and len(mesh.known) == 0


@pytest.mark.parametrize("versions", [(3, 0), (3, 10)])
def test_no_memory_of_other_interpreters_is_touched(versions: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "_LAST_LOOKED_AT", versions)
    monkeypatch.setattr(ctypes, "PyDLL", lambda _: pytest.fail("it was asked for its memory"))
    assert openssl.bind() is None


def test_a_library_without_one_of_the_calls_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without(ctypes.PyDLL):
        def __getitem__(self, name: Any) -> Any:
            if name == "GENERAL_NAMES_free":
                raise AttributeError(name)
            return super().__getitem__(name)

    monkeypatch.setattr(ctypes, "PyDLL", Without)
    assert openssl.bind() is None


PARTNER = Authority("partner root")
ROOT = ssl.PEM_cert_to_DER_cert(AUTHORITY.pem.decode())
PARTNERS: Federated = (("partner.net", PARTNER.pem),)
THEIRS = Identity("partner.net", CLIENT.namespace, CLIENT.service_account)


@pytest.mark.parametrize("asked", [True, False], ids=["in the handshake", "after it"])
def test_a_federated_root_speaks_for_its_own_domain_alone(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    if not asked:
        monkeypatch.setattr(tls, "BOUND", None)
    for _ in range(2):  # what is remembered, too
        found = mesh.meets(PARTNER.certificate_for(THEIRS), federated=PARTNERS)
        assert found is not None and found.names == [str(THEIRS)]
        ours = mesh.meets(HONEST, federated=PARTNERS)
        assert ours is not None and ours.names == [str(CLIENT)]
        both = mesh.meets(PARTNER.certificate_for(THEIRS, str(CLIENT), str(THEIRS)), federated=PARTNERS)
        assert both is not None and both.names == [str(THEIRS)]
        for name in (str(CLIENT), "spiffe://partner.net.evil/ns/a/sa/b", "spiffe://partner.net", "SPIFFE://cluster.local/x"):
            assert "may not speak for" in mesh.refuses(PARTNER.certificate_for(CLIENT, name), federated=PARTNERS)
        for name in (str(THEIRS), str(THEIRS).replace("partner", "Partner"), "SPIFFE://partner.net/ns/a/sa/b"):
            assert "may not speak for" in mesh.refuses(AUTHORITY.certificate_for(THEIRS, name), federated=PARTNERS)


def test_a_federated_root_is_none_any_more_once_it_is_gone(mesh: Mesh) -> None:
    peer = PARTNER.certificate_for(THEIRS)
    assert mesh.meets(peer, federated=PARTNERS) is not None
    assert "untrusted issuer" in mesh.refuses(peer)
    assert "untrusted issuer" in mesh.refuses(peer, federated=(("partner.net", b""),))
    assert "may not speak for" in mesh.refuses(AUTHORITY.certificate_for(THEIRS), federated=(("partner.net", b""),))
    assert "may not speak for" in mesh.refuses(peer, federated=(("other.net", PARTNER.pem),))


def test_whom_a_root_let_in_is_believed_while_that_one_counts_for_the_same() -> None:
    now = Authorities(AUTHORITY.pem, PARTNERS)
    leaf = [b"any leaf"]
    theirs, ours = [*leaf, ssl.PEM_cert_to_DER_cert(PARTNER.pem.decode())], [*leaf, ROOT]
    assert now.still_believed(str(THEIRS), theirs) and now.still_believed(str(CLIENT), ours)
    assert not now.still_believed(str(CLIENT), theirs) and not now.still_believed(str(THEIRS), ours)
    assert not now.still_believed(str(CLIENT), [])
    renewed = Authority("test root")
    for ended in (Authorities(AUTHORITY.pem), Authorities(AUTHORITY.pem, (("partner.net", b""),)), Authorities(renewed.pem)):
        assert not ended.still_believed(str(THEIRS), theirs)
    assert not Authorities(renewed.pem, PARTNERS).still_believed(str(CLIENT), ours)
    assert Authorities(renewed.pem + AUTHORITY.pem).still_believed(str(CLIENT), ours)


def test_of_what_two_domains_signed_the_root_counts_in_which_a_chain_ends(mesh: Mesh) -> None:
    shared = Authority("shared")
    for issuer, believed, other in ((AUTHORITY, CLIENT, THEIRS), (PARTNER, THEIRS, CLIENT)):
        between = signed("shared", shared.key, issuer, ca=True).public_bytes(PEM)
        shown = [replace(one, chain_pem=one.chain_pem + between) for one in map(shared.certificate_for, (believed, other))]
        found = mesh.meets(shown[0], federated=PARTNERS)
        assert found is not None and found.names == [str(believed)] and len(found.chain) == 3
        assert "may not speak for" in mesh.refuses(shown[1], federated=PARTNERS)
    crossed = signed("partner root", PARTNER.key, AUTHORITY, ca=True).public_bytes(PEM)
    peer = PARTNER.certificate_for(CLIENT)
    assert "may not speak for" in mesh.refuses(replace(peer, chain_pem=peer.chain_pem + crossed), federated=PARTNERS)
