"""The life of the mesh's roots. Pure: time, keys and serial numbers are arguments.

| phase | who signs | trusted | ends |
|---|---|---|---|
| steady | the root | the root | with `begin` |
| announced | the root | the root, its successor | after an overlap: by then every valid leaf came with both in its bundle |
| signing | the successor | both | after another overlap: by then every leaf that the old root signed has expired |

An overlap is no shorter than the longest life that was ever granted to a leaf, so that neither end depends on how soon
proxies ask again. The old root certifies its successor for control's own TLS end: a node whose root file knows the old one
only goes on talking to control until that one expires.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from control.authority import MAX_LIFETIME_S, Authority

ROTATE_BEFORE = timedelta(days=365)
"""A root is replaced by itself when this is left of it: a year for the files that hold it."""
_MAX_CROSSED = 8


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
    longest_s: int = 0
    """The longest life granted to a leaf."""

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


def begin(roots: Roots, successor: Authority, overlap_s: int, now_s: float) -> Roots:
    """Announce a successor. Raises: ValueError where another is on its way, or the overlap would cut leaves off."""
    if roots.phase is not Phase.STEADY:
        raise ValueError(f"a rotation is under way ({roots.phase.value}): wait until it has ended")
    if not roots.longest_s <= overlap_s <= MAX_LIFETIME_S or overlap_s <= 0:
        raise ValueError(
            f"an overlap of {overlap_s} s: certificates live up to {roots.longest_s} s, "
            f"so write {max(roots.longest_s, 1)} to {MAX_LIFETIME_S}"
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
        overlap_s=max(roots.overlap_s, roots.longest_s),
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
