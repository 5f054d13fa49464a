"""A CA that this process makes up for itself, for tests of a mesh that is a file: nobody outside trusts it, nor is trusted.

Its key and those that it certifies are in this process and its workers alone, and are gone with them.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity import Identity
from ztunnel.ca import make_request, read_chain
from ztunnel.certificates import Certificate

_BACKDATED_S = 120.0
"""As istiod does: for who has another clock."""
_UNASKED_S = 86_400
_ROOT_LIFE_S = 10 * 365 * 86_400.0
_log = logging.getLogger(__name__)


class FakeCA:
    """Signs whatever identity this proxy wants: a `ztunnel.issuer.Fetcher`."""

    def __init__(self, ttl_s: int) -> None:
        """`ttl_s`: how long a certificate is valid; 0: a day."""
        _log.error(
            "FAKE_CA: identities in this mesh are made up by this process and prove nothing to anybody: for tests alone; "
            "unset FAKE_CA and set CA_ADDRESS or CA_PROVIDER"
        )
        self._ttl_s = ttl_s or _UNASKED_S
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weft fake CA, for tests")])
        root = self._certificate(self._name, self._key.public_key(), time.time(), _ROOT_LIFE_S)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(
            usage, critical=True
        )
        self._root_pem = self._sign(root)

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, now: float, life_s: float
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(now - _BACKDATED_S, UTC))
            .not_valid_after(datetime.fromtimestamp(now + life_s, UTC))
        )

    def _sign(self, builder: x509.CertificateBuilder) -> str:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    async def fetch(self, identity: Identity, now: float) -> Certificate:
        """One certificate."""
        key, _ = make_request(identity)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        leaf = self._certificate(x509.Name([]), key.public_key(), now, self._ttl_s)
        leaf = leaf.add_extension(names, critical=True).add_extension(usages, critical=False)
        _log.warning("FAKE_CA: made up a certificate for %s", identity)
        return read_chain(identity, key, [self._sign(leaf), self._root_pem], now)

    def on_renewal(self, renewed: Callable[[Certificate], None], withdrawn: Callable[[Identity, str], None]) -> None:
        """Nothing comes unasked."""

    def residents_changed(self) -> None:
        """Who lives here is asked for by name."""

    def forget(self, identity: Identity) -> None:
        """Nothing is kept."""

    async def close(self) -> None:
        """Nothing is open."""
