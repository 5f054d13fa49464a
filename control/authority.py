"""The certificate authority: turns a public key and a grant into a certificate.

Pure: time and serial numbers are arguments, keys are values. What may be asked for, and by whom, is `control.signing`'s
decision; this module only knows what a certificate of each kind looks like.

A workload certificate is what Istio's data plane expects: empty subject, one critical URI SAN with the SPIFFE id, both
extended key usages, valid from two minutes ago. A node certificate is a credential towards control and nothing else: its URI
SAN is `spiffe://TRUST_DOMAIN/node/NAME`, a shape that is no workload identity anywhere, and it lacks serverAuth.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MAX_CSR_BYTES = 16 << 10
"""A P-256 request is 0.5 KB, an RSA 4096 one 2 KB."""
BACKDATE = timedelta(minutes=2)
"""Clock skew that a fresh certificate forgives."""
ROOT_LIFETIME = timedelta(days=3650)
MAX_LIFETIME_S = 90 * 86400
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
_BOTH_ENDS = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class SigningError(ValueError):
    """A request that no certificate can be made from; the text names the reason."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The root certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def root_pem(self) -> str:
        """The root certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def sign_workload(self, key: PublicKey, spiffe_id: str, lifetime: timedelta, now: datetime, serial: int) -> str:
        """Certify a workload's identity; returns PEM."""
        return self._sign(key, [x509.UniformResourceIdentifier(spiffe_id)], _BOTH_ENDS, lifetime, now, serial)

    def sign_node(self, key: PublicKey, spiffe_id: str, lifetime: timedelta, now: datetime, serial: int) -> str:
        """Certify a node towards control; returns PEM."""
        names = [x509.UniformResourceIdentifier(spiffe_id)]
        return self._sign(key, names, (ExtendedKeyUsageOID.CLIENT_AUTH,), lifetime, now, serial)

    def sign_server(
        self,
        key: PublicKey,
        hostnames: list[str],
        addresses: list[IPv4Address | IPv6Address],
        lifetime: timedelta,
        now: datetime,
        serial: int,
    ) -> str:
        """Certify control's own TLS end; returns PEM."""
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in hostnames]
        names += [x509.IPAddress(address) for address in addresses]
        return self._sign(key, names, (ExtendedKeyUsageOID.SERVER_AUTH,), lifetime, now, serial)

    def certify(self, other: x509.Certificate, now: datetime, serial: int) -> x509.Certificate:
        """Certify another root, for as long as this one lives."""
        key_id = other.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            x509.CertificateBuilder()
            .subject_name(other.subject)
            .issuer_name(self.certificate.subject)
            .public_key(other.public_key())
            .serial_number(serial)
            .not_valid_before(max(now - BACKDATE, self.certificate.not_valid_before_utc))
            .not_valid_after(min(other.not_valid_after_utc, self.certificate.not_valid_after_utc))
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(key_id, critical=False)
            .add_extension(self._key_id(), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def _key_id(self) -> x509.AuthorityKeyIdentifier:
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)

    def _sign(
        self,
        key: PublicKey,
        names: list[x509.UniformResourceIdentifier] | list[x509.GeneralName],
        usages: tuple[x509.ObjectIdentifier, ...],
        lifetime: timedelta,
        now: datetime,
        serial: int,
    ) -> str:
        end = min(now + lifetime, self.certificate.not_valid_after_utc)
        if end <= now:
            raise SigningError("the root certificate has expired: remove root-key.pem and root-cert.pem to make a new one")
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(max(now - BACKDATE, self.certificate.not_valid_before_utc))
            .not_valid_after(end)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(self._key_id(), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


def make_root(key: ec.EllipticCurvePrivateKey, organization: str, now: datetime, serial: int) -> Authority:
    """Make a self-signed root, valid for ten years."""
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def read_request(pem: str) -> PublicKey:
    """Take the public key out of a PKCS#10 request; whatever else it asks for is ignored.

    Raises: SigningError for anything but one signed request with a key that is strong enough.
    """
    if len(pem) > MAX_CSR_BYTES:
        raise SigningError(f"the request has {len(pem)} bytes, at most {MAX_CSR_BYTES} are read")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise SigningError(f"not a PKCS#10 request in PEM: {error}") from error
    if not signed:
        raise SigningError("the request's signature does not match its public key")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 4096:
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise SigningError("the public key must be ECDSA P-256 or P-384, Ed25519, or RSA with 2048 to 4096 bits")


def lifetime_of(requested_s: int, default_s: int) -> timedelta:
    """How long a certificate may live: the default where nothing is asked for.

    Raises: SigningError above 90 days.
    """
    if requested_s <= 0:
        return timedelta(seconds=default_s)
    if requested_s > MAX_LIFETIME_S:
        raise SigningError(f"requested TTL {requested_s}s is greater than the max allowed TTL {MAX_LIFETIME_S}s")
    return timedelta(seconds=requested_s)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=not signs_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
