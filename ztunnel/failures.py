"""Connections that came to nothing are told one by one, up to a number; of what comes beyond it the last, with how many it
stands for. Pure.

Each line and each flow costs the node more than the failure cost whoever caused it: a flood at the door, or of a pod's own
connections that it resets at once, must not become one of the log.
"""

from collections.abc import Callable
from dataclasses import replace

from ztunnel.channel import Closed, EarlyFailure
from ztunnel.connection_record import names_of

AT_ONCE = 64
"""Of one peer, that failed alike, in PERIOD_S."""
PERIOD_S = 1.0
_MAX_PEERS = 1024
Failure = EarlyFailure | Closed


class _Alike:
    """Failures of one peer."""

    __slots__ = ("count", "held", "last", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.count = self.held = 0
        self.last: Failure | None = None


class Failures:
    """Those of one worker."""

    def __init__(self, emit: Callable[[Failure], None]) -> None:
        self._emit = emit
        self._peers: dict[object, _Alike] = {}
        """In the order in which their periods began."""

    def early(self, failure: EarlyFailure, now: float) -> None:
        """One more, of a connection that was not in the ledger yet."""
        peer = failure.source if failure.direction == "inbound" else failure.destination
        self._tell((failure.pod_uid, failure.direction, peer[0], failure.flag, failure.identity), failure, now)

    def refused(self, closed: Closed, now: float) -> None:
        """One more that was, and never opened: it has moved no bytes, and counts where all of its key do."""
        record = closed.record
        peer = record.source if record.direction == "inbound" else record.destination
        self._tell((record.pod_uid, peer[0], record.flag, record.policy, *names_of(record)), closed, now)

    def _tell(self, key: object, failure: Failure, now: float) -> None:
        alike = self._peers.get(key)
        if alike is None:
            if len(self._peers) >= _MAX_PEERS:
                self._end(next(iter(self._peers)))
            alike = self._peers[key] = _Alike(now)
        alike.count += 1
        if alike.count <= AT_ONCE:
            self._emit(failure)
        else:
            alike.last = failure
            alike.held += 1

    def tick(self, now: float) -> None:
        """Tell what was held back longer than a period."""
        while self._peers:
            key, alike = next(iter(self._peers.items()))
            if now - alike.since < PERIOD_S:
                return
            self._end(key)

    def finish(self) -> None:
        """Tell all that was held back."""
        for key in list(self._peers):
            self._end(key)

    def _end(self, key: object) -> None:
        alike = self._peers.pop(key)
        if alike.last is not None:
            self._emit(replace(alike.last, count=alike.held))
