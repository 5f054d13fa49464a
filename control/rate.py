"""Token buckets: how often each of several callers may ask. Pure: the time is an argument, in seconds."""

from dataclasses import dataclass, field

MAX_CALLERS = 10_000
"""Buckets remembered; above it the full ones are forgotten, which changes nothing for their callers."""


@dataclass(slots=True)
class Rate:
    """`per_second` on average, `burst` at once, for each caller."""

    per_second: float
    burst: int
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Caller -> (tokens left, at which time)."""

    def take(self, caller: str, now: float) -> bool:
        """Take one token; False: none left, come again later."""
        left = self._left(caller, now)
        if left < 1:
            return False
        if len(self._buckets) >= MAX_CALLERS and caller not in self._buckets:
            self._forget_full(now)
        self._buckets[caller] = (left - 1, now)
        return True

    def _left(self, caller: str, now: float) -> float:
        left, at = self._buckets.get(caller, (float(self.burst), now))
        return min(float(self.burst), left + max(0.0, now - at) * self.per_second)

    def _forget_full(self, now: float) -> None:
        for caller in [one for one in self._buckets if self._left(one, now) >= self.burst]:
            del self._buckets[caller]
