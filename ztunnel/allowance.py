"""Allowances: how much of what costs us, but moves no bytes, a peer may send. A token bucket with the time as argument."""


class Allowance:
    """`burst` at once and `rate_per_s` for ever after."""

    __slots__ = ("_at", "_level", "burst", "rate_per_s")

    def __init__(self, burst: float, rate_per_s: float) -> None:
        self.burst = burst
        self.rate_per_s = rate_per_s
        self._level = burst
        self._at = 0.0

    def spend(self, now: float, cost: float = 1.0) -> bool:
        """Take `cost` from the bucket; False when the peer has used it up."""
        level = min(self.burst, self._level + (now - self._at) * self.rate_per_s) if self._at else self._level
        self._at = now
        self._level = level - cost
        return self._level >= 0

    def shrink(self, share: float) -> None:
        """Leave only a part of the burst, and of what is in it; the rate stays."""
        self.burst *= share
        self._level *= share

    def earn(self, amount: float) -> None:
        """Give back for useful work, never beyond the burst."""
        self._level = min(self.burst, self._level + amount)
