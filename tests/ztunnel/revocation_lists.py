"""Certificate revocation lists that tests write."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from tests.ztunnel.world import Authority


def revocation_list(authority: Authority, *revoked: bytes, expired: bool = False, encoding: Any = Encoding.PEM) -> bytes:
    """A list of an authority, which names the leaves of PEM chains."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.name)
        .last_update(now - timedelta(days=2))
        .next_update(now + timedelta(days=-1 if expired else 1))
    )
    for chain in revoked:
        serial = x509.load_pem_x509_certificate(chain).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(encoding)
