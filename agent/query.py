"""What a client's request means: where in the ring its answer begins, what belongs to it, and when it ends.

Hubble's rules, which clients count on: `first` without `since` begins at the oldest event; `follow` with neither number nor
`since` begins now; `since` begins at the oldest event not before it, whatever the number says; else the walk goes back until
`number` events match. `number` ends an answer that does not follow; an event after `until` ends any. Lost-event records bypass
filters and times, and do not count.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Generic

from agent.ring import Event, Ring


class Fate(Enum):
    """What becomes of one event on its way to a client."""

    SEND = "send"
    SKIP = "skip"
    END = "end"


@dataclass(frozen=True, slots=True)
class Query(Generic[Event]):
    """One request. Times in Unix nanoseconds, None where not given."""

    time_ns: Callable[[Event], int | None]
    """When an event happened; None for a lost-event record."""
    matches: Callable[[Event], bool]
    number: int = 0
    first: bool = False
    follow: bool = False
    since_ns: int | None = None
    until_ns: int | None = None

    def begin(self, ring: Ring[Event]) -> Iterator[tuple[int, bool] | None]:
        """Last the number of the first event to look at, and whether more was asked for than is kept; before it None after each
        event that was looked at, so that others get their turn."""
        if self.first and self.since_ns is None:
            yield ring.start, False
        elif self.since_ns is not None:
            yield from self._begin_since(ring, self.since_ns)
        elif self.number == 0:
            yield (ring.end, False) if self.follow else (ring.start, ring.start > 0)
        else:
            yield from self._begin_back(ring)

    def _begin_back(self, ring: Ring[Event]) -> Iterator[tuple[int, bool] | None]:
        left = self.number
        for position, event in ring.backwards():
            if self.time_ns(event) is not None and self.matches(event):
                left -= 1
                if left == 0:
                    yield position, False
                    return
            yield None
        yield ring.start, ring.start > 0

    def _begin_since(self, ring: Ring[Event], since_ns: int) -> Iterator[tuple[int, bool] | None]:
        position = ring.end
        older = False
        # Events of proxy and kernel come in almost, not exactly, in the order of their times: look at all.
        for number, event in ring.backwards():
            yield None
            time_ns = self.time_ns(event)
            if time_ns is not None and time_ns >= since_ns:
                position = number
            older = older or (time_ns is not None and time_ns < since_ns)
        yield position, ring.start > 0 and not older and not self.first

    def fate(self, event: Event) -> Fate:
        """What to do with an event that the client has not seen."""
        time_ns = self.time_ns(event)
        if time_ns is None:
            return Fate.SEND
        if self.until_ns is not None and time_ns > self.until_ns:
            return Fate.END if self.follow else Fate.SKIP
        if self.since_ns is not None and time_ns < self.since_ns:
            return Fate.SKIP
        return Fate.SEND if self.matches(event) else Fate.SKIP

    def is_done(self, sent: int) -> bool:
        """Whether the answer is complete after `sent` events."""
        return not self.follow and 0 < self.number <= sent
