"""SPIFFE identities: who a workload is, as its certificate says."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

MAX_ALIASES = 16
_PART = re.compile(r"[A-Za-z0-9._-]{1,253}")
_SPIFFE = "spiffe://"
_SHOWN = 200
"""Characters of a refused text that its error repeats: errors go into logs and onto the wire."""


class Identity(NamedTuple):
    """A service account in a trust domain: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{_SPIFFE}{self.principal}"

    @property
    def principal(self) -> str:
        """The form that policies compare with: the SPIFFE id without its scheme."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @staticmethod
    def parse(uri: str) -> "Identity":
        """Read a SPIFFE id of exactly this shape.

        Raises: ValueError for any other URI (other paths, empty parts, foreign characters).
        """
        return _parse(uri)


@lru_cache(4096)
def _parse(uri: str) -> Identity:
    """Remembered: a certificate shows the same few in every handshake."""
    parts = uri.removeprefix(_SPIFFE).split("/") if uri.startswith(_SPIFFE) else []
    if len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa" or not all(map(_PART.fullmatch, parts)):
        shown = uri if len(uri) <= _SHOWN else uri[:_SHOWN] + "..."
        raise ValueError(f"not a workload identity: {shown!r}: expected spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/NAME")
    return Identity(parts[0], parts[2], parts[4])


def first_identity(uris: list[str]) -> Identity | None:
    """The first of several URI SANs that is a workload identity; others are skipped, as Istio's ztunnel does."""
    for uri in uris:
        try:
            return Identity.parse(uri)
        except ValueError:
            continue
    return None


def read_aliases(texts: Iterable[str]) -> frozenset[str]:
    """Trust domains from a setting. Raises: ValueError naming the one that is none."""
    aliases = frozenset(text.strip() for text in texts if text.strip())
    for alias in sorted(aliases):
        if not _PART.fullmatch(alias):
            raise ValueError(f"{alias[:100]!r}: not a trust domain: write one like example.org, without spiffe:// and slashes")
    if len(aliases) > MAX_ALIASES:
        raise ValueError(f"{len(aliases)} trust domains: at most {MAX_ALIASES} are aliases of one mesh")
    return aliases
