"""Endpoints that keep failing to connect are set aside for a while. Pure: the time is an argument.

An endpoint is a workload's port: an application that is not there says nothing of the workload's others. One that failed
FAILURES times in a row, with nothing between, is set aside for 30 s, the next time for 60, and so on up to five minutes; one
success forgives everything. Never more than half of a service's endpoints stand aside: beyond that it is more likely that
something else is broken, and all are tried. Every pod judges by what it saw itself: whom it may reach, and as whom, is its own,
and whoever is refused everywhere must not lose its neighbours half of a service. So does every worker, of which a pod mostly
has one.
"""

from typing import NamedTuple

from mesh.inventory import Endpoint

ASIDE_S, LONGEST_S = 30.0, 300.0
_FORGET_S = 600.0
"""Without a further failure for so long, an endpoint starts anew."""
MAX_KNOWN = 512


class Choice(NamedTuple):
    """An endpoint that was taken where others could have been: its workload's uid, and the port there."""

    uid: str
    port: int


class _Record:
    __slots__ = ("aside_until", "failures", "last_at", "times")

    def __init__(self) -> None:
        self.failures = 0
        self.times = 0
        self.aside_until = 0.0
        self.last_at = 0.0


class Outliers:
    """What one pod saw of endpoints, in one worker; only of those that failed."""

    def __init__(self, failures: int) -> None:
        """`failures` in a row set an endpoint aside; 0: nobody ever is."""
        self._failures = failures
        self._known: dict[Choice, _Record] = {}
        self._aside: frozenset[Choice] = frozenset()
        self._until = 0.0
        """When the first of them comes back."""

    @property
    def aside(self) -> frozenset[Choice]:
        """Who stands aside; see `tick`."""
        return self._aside

    def failed(self, choice: Choice, now: float) -> None:
        """A connection to an endpoint could not be made."""
        if not self._failures:
            return
        record = self._known.pop(choice, None) or _Record()
        if now - record.last_at > _FORGET_S:
            record = _Record()
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[choice] = record  # the newest last
        record.last_at = now
        record.failures += 1
        if record.failures >= self._failures and record.aside_until <= now:
            record.failures = 0
            record.times += 1
            record.aside_until = now + min(ASIDE_S * record.times, LONGEST_S)
            self._find(now)

    def succeeded(self, choice: Choice) -> None:
        """A connection was made."""
        if self._known and self._known.pop(choice, None) is not None and choice in self._aside:
            self._aside -= {choice}

    def tick(self, now: float) -> None:
        """Let those come back whose time is over."""
        if self._aside and now >= self._until:
            self._find(now)

    def _find(self, now: float) -> None:
        aside = {choice: record.aside_until for choice, record in self._known.items() if record.aside_until > now}
        self._aside = frozenset(aside)
        self._until = min(aside.values(), default=0.0)


def without(candidates: list[Endpoint], aside: frozenset[str]) -> list[Endpoint]:
    """The candidates that do not stand aside; all of them where fewer than half would be left."""
    left = [endpoint for endpoint in candidates if endpoint.workload.uid not in aside]
    return left if 2 * len(left) >= len(candidates) else candidates
