"""Keys that OpenSSL reads the short way: who is served, and who is refused, is the same for every kind of key."""

import _ssl
import ctypes
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from tests.ztunnel.test_tls import Pair
from tests.ztunnel.world import CLIENT
from ztunnel import key_engine
from ztunnel.channel import SetCertificate
from ztunnel.key_engine import read_keys_fast
from ztunnel.tls import Credentials
from ztunnel.verification import read_verified

pytestmark = pytest.mark.unit

Key = CertificateIssuerPrivateKeyTypes
KINDS: dict[str, Callable[[], Key]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}
SLOW = not (3, 0) <= ssl.OPENSSL_VERSION_INFO[:2] <= (3, 1)
"""There is nothing to save."""


def signed(subject: Key, issuer: Key, ca: bool = False) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root" if ca else "leaf")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
        .public_key(subject.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(CLIENT))]), critical=True)
    )
    return builder.sign(issuer, hashes.SHA256())


def credentials(key: Key, issuer: Key, root: x509.Certificate) -> Credentials:
    pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    chain = signed(key, issuer).public_bytes(pem)
    secret = key.private_bytes(pem, kind, serialization.NoEncryption())
    return Credentials(SetCertificate(CLIENT, chain, secret, root.public_bytes(pem), 0))


@pytest.mark.parametrize("leaf", KINDS)
@pytest.mark.parametrize("issuer", KINDS)
def test_every_kind_of_key_is_served_and_a_forged_signature_is_refused(leaf: str, issuer: str) -> None:
    assert read_keys_fast() != SLOW
    key, root_key = KINDS[leaf](), KINDS[issuer]()
    root = signed(root_key, root_key, ca=True)
    honest = credentials(key, root_key, root)
    pair = Pair(honest.client, honest.server)
    pair.shake_hands()
    assert read_verified(pair.client).names == read_verified(pair.server).names == [str(CLIENT)]
    forger = credentials(KINDS[leaf](), KINDS[issuer](), root)  # the right names, not signed by the root that both trust
    for client, server in ((forger, honest), (honest, forger)):
        with pytest.raises(ssl.SSLError) as refused:
            Pair(client.client, server.server).shake_hands()
        assert refused.value.reason in ("CERTIFICATE_VERIFY_FAILED", "TLSV1_ALERT_DECRYPT_ERROR")


def test_it_is_there_once_for_elliptic_curves_and_for_nothing_else() -> None:
    assert read_keys_fast() == read_keys_fast() != SLOW
    assert len(key_engine._kept) == (0 if SLOW else 1)
    if SLOW:
        return
    find = ctypes.CDLL(_ssl.__file__).ENGINE_get_pkey_meth_engine
    find.restype, find.argtypes = ctypes.c_void_p, (ctypes.c_int,)
    assert find(408) and not find(6)  # NID_X9_62_id_ecPublicKey, NID_rsaEncryption


@pytest.mark.parametrize("version", [(1, 1, 1), (3, 2, 0), (3, 5, 1)])
def test_other_releases_are_left_alone(version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION_INFO", version)
    monkeypatch.setattr(key_engine, "_kept", [])
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the library was asked"))
    assert not read_keys_fast()
