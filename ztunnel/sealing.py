"""A certificate with its key as a sealed payload, which only who knows the node's token can open. Pure.

Layout: version (1 byte), nonce (12), AES-256-GCM of a JSON object. The key comes from the token by HKDF-SHA256; the name under
which the payload is kept is authenticated with it, so that one identity's payload is of no use in the place of another's.
"""

import json
import math

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mesh.identity import Identity
from ztunnel.certificates import Certificate

NONCE_BYTES = 12
_VERSION = b"\x01"
_INFO = b"weft workload keys, version 1"


class CannotOpen(Exception):
    """A payload is damaged, of another version, another name or another token."""


class Seal:
    """What one token seals and opens."""

    def __init__(self, token: bytes) -> None:
        """Raises: ValueError without a token."""
        if not token:
            raise ValueError("no token: nothing to derive a key from")
        self._cipher = AESGCM(HKDF(SHA256(), 32, None, _INFO).derive(token))

    def close(self, certificate: Certificate, name: str, nonce: bytes) -> bytes:
        """Seal a certificate for the place `name`; a nonce is random and never used twice."""
        fields = {
            "chain": certificate.chain_pem.decode(),
            "key": certificate.key_pem.decode(),
            "roots": certificate.roots_pem.decode(),
            "not_before": certificate.not_before,
            "not_after": certificate.not_after,
        }
        return _VERSION + nonce + self._cipher.encrypt(nonce, json.dumps(fields).encode(), name.encode())

    def open(self, payload: bytes, name: str, identity: Identity) -> Certificate:
        """The certificate that was sealed for `name`. Raises: CannotOpen."""
        version, nonce, sealed = payload[:1], payload[1 : 1 + NONCE_BYTES], payload[1 + NONCE_BYTES :]
        if version != _VERSION or len(nonce) < NONCE_BYTES:
            raise CannotOpen("damaged, or of another version")
        try:
            fields = json.loads(self._cipher.decrypt(nonce, sealed, name.encode()))
            chain, key, roots = (str(fields[one]).encode() for one in ("chain", "key", "roots"))
            not_before, not_after = float(fields["not_before"]), float(fields["not_after"])
        except InvalidTag:
            raise CannotOpen("damaged, or sealed with another token") from None
        except (ValueError, TypeError, KeyError) as error:
            raise CannotOpen(f"of another make: {type(error).__name__}") from None
        if not (math.isfinite(not_before) and math.isfinite(not_after)):
            raise CannotOpen("of another make: no validity")
        return Certificate(identity, chain, key, roots, not_before, not_after)
