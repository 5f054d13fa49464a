"""Flows of several nodes, and of a node's workers, in the order of their times. Pure: time is an argument.

What a node has stored is in order; live flows arrive when a worker tells of them. A live flow therefore waits a moment for
older ones, and is let go when it has waited long enough; what comes even later is shown late rather than not at all.
"""

import heapq
from collections.abc import Iterable
from itertools import count

from mesh.proto.observer_pb2 import GetFlowsResponse

HOLD_S = 0.4
"""Twice as long as a proxy's worker gathers what it tells."""
MAX_HELD = 4096
"""Beyond this many the oldest are let go at once: memory is bounded whatever the rate."""


def at(response: GetFlowsResponse) -> tuple[int, int]:
    """What flows are ordered by."""
    return response.time.seconds, response.time.nanos


def newest(streams: Iterable[Iterable[GetFlowsResponse]], number: int | None) -> list[GetFlowsResponse]:
    """All flows of finished streams in order of time; with a number, only so many of the newest (lost events aside)."""
    ordered = list(heapq.merge(*(sorted(stream, key=at) for stream in streams), key=at))
    if number is None:
        return ordered
    left, start = number, len(ordered)
    while start and (left or not ordered[start - 1].HasField("flow")):
        start -= 1
        left -= ordered[start].HasField("flow")
    return ordered[start:]


def oldest(responses: list[GetFlowsResponse], number: int) -> list[GetFlowsResponse]:
    """Up to so many of the oldest flows, with the lost events among them."""
    kept = []
    for response in responses:
        if number <= 0:
            break
        kept.append(response)
        number -= response.HasField("flow")
    return kept


class LiveMerge:
    """Live flows on their way to the screen; `hold_s` is how long each waits for older ones."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._held: list[tuple[tuple[int, int], int, float, GetFlowsResponse]] = []
        self._numbers = count()

    def receive(self, response: GetFlowsResponse, now: float) -> None:
        """A flow arrived."""
        heapq.heappush(self._held, (at(response), next(self._numbers), now + self._hold_s, response))

    def due(self, now: float) -> list[GetFlowsResponse]:
        """What may be shown now, oldest first."""
        ready = []
        while self._held and (self._held[0][2] <= now or len(self._held) > MAX_HELD):
            ready.append(heapq.heappop(self._held)[3])
        return ready

    def next_timer(self) -> float | None:
        """When `due` has something again, None while nothing waits."""
        return self._held[0][2] if self._held else None

    def rest(self) -> list[GetFlowsResponse]:
        """Everything that still waits, oldest first, whether its time has come or not."""
        ready = [entry[3] for entry in sorted(self._held)]
        self._held.clear()
        return ready
