"""The life of the mesh's roots. Pure: time, keys and serial numbers are arguments.

| phase | who signs | trusted | ends |
|---|---|---|---|
| steady | the root | the root | with `begin` |
| announced | the root | the root, its successor | after an overlap: by then every valid leaf came with both in its bundle |
| signing | the successor | both | after another overlap: by then every leaf that the old root signed has expired |

An overlap is no shorter than any leaf is valid that was signed before it, so that neither end depends on how soon proxies ask
again. The old root certifies its successor for control's own TLS end: a node whose root file knows the old one
only goes on talking to control until that one expires.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from math import ceil

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.authority import MAX_LIFETIME_S, Authority

ROTATE_BEFORE = timedelta(days=365)
"""A root is replaced by itself when this is left of it: a year for the files that hold it."""
MAX_OVERLAP_S = 2 * MAX_LIFETIME_S
_MAX_CROSSED = 8
_ROUNDED_UP = 1.1


class Phase(Enum):
    """Where a rotation stands."""

    STEADY = "steady"
    ANNOUNCED = "announced"
    SIGNING = "signing"


@dataclass(frozen=True, slots=True)
class Roots:
    """The roots of a mesh at one moment."""

    signer: Authority
    successor: Authority | None = None
    """Trusted, and signs nothing yet."""
    retiring: x509.Certificate | None = None
    """Trusted, and signs nothing any more."""
    crossed: tuple[x509.Certificate, ...] = ()
    """The way from the signer to roots before it: certified by its predecessor, that one by its own, and so on."""
    since_s: float = 0.0
    """When the phase began, unix time."""
    overlap_s: int = 0
    expired_s: float = 0.0
    """When every leaf so far has expired, or a little later: so that it need not be written with each of them."""

    @property
    def phase(self) -> Phase:
        """Where the rotation stands."""
        if self.successor is not None:
            return Phase.ANNOUNCED
        return Phase.STEADY if self.retiring is None else Phase.SIGNING

    @property
    def next_at_s(self) -> float | None:
        """When the phase ends; None: not by itself."""
        return None if self.phase is Phase.STEADY else self.since_s + self.overlap_s

    @property
    def bundle_pem(self) -> str:
        """All that is trusted, the signer first."""
        further = [self.successor.certificate] if self.successor else [self.retiring] if self.retiring else []
        return self.signer.root_pem + "".join(_pem(one) for one in further)

    def expires_soon(self, now: datetime) -> bool:
        """Whether it is time for a successor."""
        return self.phase is Phase.STEADY and self.signer.certificate.not_valid_after_utc - now < ROTATE_BEFORE

    def server_chain(self, leaf_pem: str, now: datetime) -> str:
        """A server's leaf with the way to older roots, for who knows only those."""
        return leaf_pem + "".join(_pem(one) for one in self.crossed if one.not_valid_after_utc > now)


def granted(roots: Roots, lifetime_s: int, now_s: float) -> Roots:
    """A leaf of this life is being signed; the very same roots where others are valid for as long."""
    if now_s + lifetime_s <= roots.expired_s:
        return roots
    return replace(roots, expired_s=now_s + lifetime_s * _ROUNDED_UP)


def least_overlap_s(roots: Roots, now_s: float) -> int:
    """For how long from now on a leaf may be valid that has been signed."""
    return max(ceil(roots.expired_s - now_s), 0)


def begin(roots: Roots, successor: Authority, overlap_s: int, now_s: float) -> Roots:
    """Announce a successor. Raises: ValueError where another is on its way, or the overlap would cut leaves off."""
    if roots.phase is not Phase.STEADY:
        raise ValueError(f"a rotation is under way ({roots.phase.value}): wait until it has ended")
    least_s = least_overlap_s(roots, now_s)
    if not max(least_s, 1) <= overlap_s <= MAX_OVERLAP_S:
        raise ValueError(
            f"an overlap of {overlap_s} s: certificates that were issued are valid for {least_s} s more, "
            f"so write {max(least_s, 1)}s to {MAX_OVERLAP_S}s"
        )
    return replace(roots, successor=successor, since_s=now_s, overlap_s=overlap_s)


def advance(roots: Roots, now_s: float, serial: int) -> Roots:
    """Enter the next phase where it is due; else the very same roots. `serial` is for the successor's certificate."""
    if roots.next_at_s is None or now_s < roots.next_at_s:
        return roots
    if roots.successor is None:
        return replace(roots, retiring=None, overlap_s=0)
    now = datetime.fromtimestamp(now_s, UTC)
    crossed = roots.signer.certify(roots.successor.certificate, now, serial)
    older = [one for one in roots.crossed if one.not_valid_after_utc > now]
    return replace(
        roots,
        signer=roots.successor,
        successor=None,
        retiring=roots.signer.certificate,
        crossed=(crossed, *older)[:_MAX_CROSSED],
        since_s=now_s,
        # What was granted meanwhile may live longer than what was known at the beginning.
        overlap_s=max(roots.overlap_s, least_overlap_s(roots, now_s)),
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
