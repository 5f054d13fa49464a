"""Whose roots are believed, and about whom.

OpenSSL's store believes every root about every name. Where other trust domains are federated, the root up to which a chain was
verified says which of its names count: a federated domain's root speaks for that domain's identities alone, ours for everybody
but theirs.
"""

import hashlib
import re
import ssl
from collections.abc import Iterator

Federated = tuple[tuple[str, bytes], ...]
"""Trust domains with their roots, PEM."""
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class Authorities:
    """Our roots, and those of federated trust domains."""

    __slots__ = ("_ours", "_prefixes", "_speaks_for", "_theirs", "key", "pem")

    def __init__(self, roots_pem: bytes, federated: Federated = ()) -> None:
        self.pem = b"".join((roots_pem, *(pem for _, pem in federated)))
        """All of them, for OpenSSL's store."""
        self.key = hashlib.sha256(repr((roots_pem, federated)).encode()).digest()
        """The same wherever the same are believed about the same."""
        self._prefixes = tuple(f"spiffe://{domain}/" for domain, _ in federated)
        self._theirs = tuple(prefix.lower() for prefix in self._prefixes)
        self._ours = frozenset(_ders(roots_pem))
        self._speaks_for: dict[bytes, tuple[str, ...]] = {}
        for prefix, (_, pem) in zip(self._prefixes, federated, strict=True):
            for root in _ders(pem):
                self._speaks_for[root] = (*self._speaks_for.get(root, ()), prefix)

    def believed(self, names: list[str], root: bytes) -> list[str]:
        """The URI names that count of a certificate whose chain was verified up to a root (DER)."""
        if not self._prefixes:
            return names
        its, ours = self._speaks_for.get(root, ()), root in self._ours
        return [name for name in names if name.startswith(its) or (ours and not name.lower().startswith(self._theirs))]

    def still_believed(self, name: str, chain: list[bytes]) -> bool:
        """Whether a peer of that URI name, who was verified by a chain (DER, leaf first), would be by the same one now."""
        known = bool(chain) and (chain[-1] in self._ours or chain[-1] in self._speaks_for)
        return known and bool(self.believed([name], chain[-1]))


def _ders(pem: bytes) -> Iterator[bytes]:
    return (ssl.PEM_cert_to_DER_cert(block.decode("ascii")) for block in _BLOCK.findall(pem))
