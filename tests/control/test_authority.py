from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from control.authority import MAX_CSR_BYTES, Authority, SigningError, lifetime_of, make_root, read_request

pytestmark = pytest.mark.unit

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WEB = "spiffe://cluster.local/ns/demo/sa/web"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_root(ec.generate_private_key(ec.SECP256R1()), "cluster.local", NOW, 7)


PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def csr(key: PrivateKey, name: str = "") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://cluster.local/ns/kube-system/sa/admin")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(san, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def test_a_workload_certificate_is_what_istios_data_plane_expects(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = authority.sign_workload(read_request(csr(key, "someone-else")), WEB, timedelta(hours=24), NOW, 2**126 + 5)
    leaf = x509.load_pem_x509_certificate(pem.encode())
    leaf.verify_directly_issued_by(authority.certificate)
    assert leaf.public_key() == key.public_key()
    assert list(leaf.subject) == []
    assert leaf.serial_number == 2**126 + 5
    assert leaf.not_valid_before_utc == NOW - timedelta(seconds=120)
    assert leaf.not_valid_after_utc == NOW + timedelta(hours=24)
    assert [(one.oid, one.critical) for one in leaf.extensions] == [
        (ExtensionOID.KEY_USAGE, True),
        (ExtensionOID.EXTENDED_KEY_USAGE, False),
        (ExtensionOID.BASIC_CONSTRAINTS, True),
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False),
        (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, True),
    ]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(WEB)]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    key_usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert key_usage.digital_signature and key_usage.key_encipherment and not key_usage.key_cert_sign


def test_a_certificate_forgives_two_minutes_of_skew_and_never_outlives_the_root(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    later = NOW + timedelta(days=1)
    leaf = x509.load_pem_x509_certificate(authority.sign_workload(key, WEB, timedelta(hours=1), later, 1).encode())
    assert leaf.not_valid_before_utc == later - timedelta(seconds=120)
    late = authority.certificate.not_valid_after_utc - timedelta(hours=1)
    leaf = x509.load_pem_x509_certificate(authority.sign_workload(key, WEB, timedelta(hours=24), late, 1).encode())
    assert leaf.not_valid_after_utc == authority.certificate.not_valid_after_utc
    with pytest.raises(SigningError, match="root certificate has expired"):
        authority.sign_workload(key, WEB, timedelta(hours=24), late + timedelta(hours=2), 1)


def test_a_node_certificate_serves_nobody(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = authority.sign_node(key, "spiffe://cluster.local/node/n1", timedelta(hours=1), NOW, 1)
    usages = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_no_leaf_is_an_authority(authority: Authority) -> None:
    key, life = ec.generate_private_key(ec.SECP256R1()).public_key(), timedelta(hours=1)
    for pem in (
        authority.sign_workload(key, WEB, life, NOW, 1),
        authority.sign_node(key, "spiffe://cluster.local/node/n1", life, NOW, 1),
        authority.sign_server(key, ["weft-control"], [], life, NOW, 1),
    ):
        leaf = x509.load_pem_x509_certificate(pem.encode())
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical and not constraints.value.ca
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical and not usage.value.key_cert_sign and not usage.value.crl_sign


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        ("", "not a PKCS#10 request"),
        ("garbage", "not a PKCS#10 request"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "not a PKCS#10 request"),
        ("x" * (MAX_CSR_BYTES + 1), "at most"),
        (csr(ec.generate_private_key(ec.SECP224R1())), "public key must be"),
        (csr(rsa.generate_private_key(65537, 1024)), "public key must be"),
    ],
)
def test_what_is_no_request_is_refused(pem: str, reason: str) -> None:
    with pytest.raises(SigningError, match=reason):
        read_request(pem)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-256", "P-384", "RSA 2048", "Ed25519"],
)
def test_keys_that_are_strong_enough_are_certified(authority: Authority, key: PrivateKey) -> None:
    pem = authority.sign_workload(read_request(csr(key)), WEB, timedelta(hours=1), NOW, 1)
    assert x509.load_pem_x509_certificate(pem.encode()).public_key() == key.public_key()


def test_a_root_and_one_that_it_certifies_are_authorities_and_nothing_else(authority: Authority) -> None:
    other = make_root(ec.generate_private_key(ec.SECP256R1()), "cluster.local", NOW, 8)
    crossed = authority.certify(other.certificate, NOW, 9)
    crossed.verify_directly_issued_by(authority.certificate)
    assert crossed.public_key() == other.certificate.public_key()
    for one in (authority.certificate, crossed):
        constraints = one.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical and constraints.value.ca
        usage = one.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical and usage.value.key_cert_sign and usage.value.crl_sign
        assert not usage.value.digital_signature and not usage.value.key_encipherment


def test_a_request_must_be_signed_with_its_own_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    good = x509.load_pem_x509_csr(csr(key).encode()).public_bytes(serialization.Encoding.DER)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    pem = x509.load_der_x509_csr(bad).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(SigningError, match="signature does not match"):
        read_request(pem)


def test_lifetimes() -> None:
    assert lifetime_of(0, 86400) == lifetime_of(-5, 86400) == timedelta(days=1)
    assert lifetime_of(60, 86400) == timedelta(minutes=1)
    assert lifetime_of(90 * 86400, 86400) == timedelta(days=90)
    with pytest.raises(SigningError, match="greater than the max allowed TTL"):
        lifetime_of(90 * 86400 + 1, 86400)
