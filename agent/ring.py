"""The last events in memory, numbered, with what was overwritten known rather than guessed."""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

CAPACITY = 4095
"""Events kept: Hubble's own default."""
_PIECE = 64
"""Events taken at a time on a walk back: to find the first of them takes as long as the ring is."""

Event = TypeVar("Event")


class Ring(Generic[Event]):
    """Events with consecutive numbers from 0; the newest `capacity` of them are kept."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._events: deque[Event] = deque(maxlen=capacity)
        self.end = 0
        """Number of the next event to come: as many were written so far."""

    def __len__(self) -> int:
        return len(self._events)

    @property
    def start(self) -> int:
        """Number of the oldest event kept; as many were overwritten so far."""
        return self.end - len(self._events)

    def append(self, event: Event) -> None:
        """Add the newest event, in place of the oldest when full."""
        self._events.append(event)
        self.end += 1

    def read(self, position: int, limit: int) -> tuple[list[Event], int]:
        """At most `limit` events from `position` on, and how many before them were overwritten."""
        lost = max(0, self.start - position)
        first = position + lost - self.start
        count = max(0, min(limit, len(self._events) - first))
        return [self._events[index] for index in range(first, first + count)], lost

    def backwards(self) -> Iterator[tuple[int, Event]]:
        """Every event kept with its number, newest first; what comes meanwhile is left out, as is what goes."""
        number = self.end
        while (first := max(self.start, number - _PIECE)) < number:
            for event in reversed(self.read(first, number - first)[0]):
                number -= 1
                yield number, event
