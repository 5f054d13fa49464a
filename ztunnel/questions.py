"""How much each may have the control plane asked for, on demand: a pod by what it dials, a peer by what it names. Pure.

An answer costs the control plane work and a subscription that lasts; so a scan, or a hostile peer's CONNECTs to names that
nobody has, is refused beyond a rate, and nobody else's questions with it.
"""

from typing import NamedTuple

from mesh.identity import Identity
from ztunnel.allowance import Allowance

BURST_S = 2.0
"""Of a rate: what is allowed at once, as programs that start dial all that they need."""
MIN_BURST = 8
"""What one connection may need at once, however low the rate is (ztunnel.missing.MAX_NAMES)."""
MAX_ASKERS = 4096
"""Of whom it is remembered; the one that was silent longest is forgotten, and has its burst again."""


class Asker(NamedTuple):
    """Who has something asked."""

    key: str
    """A local pod's uid, or a peer's identity: whichever pod it asks at, a peer has one share."""
    identity: Identity | None


class Questions:
    """One worker's."""

    def __init__(self, rate_per_s: float) -> None:
        self.rate_per_s = rate_per_s
        self._allowances: dict[str, Allowance] = {}

    def allow(self, key: str, count: int, now: float) -> bool:
        """Whether so many names may be asked for; they count where they may."""
        allowance = self._allowances.pop(key, None) or Allowance(max(BURST_S * self.rate_per_s, MIN_BURST), self.rate_per_s)
        self._allowances[key] = allowance
        if len(self._allowances) > MAX_ASKERS:
            del self._allowances[next(iter(self._allowances))]
        if allowance.spend(now, count):
            return True
        allowance.earn(count)
        return False
