"""The node's flows: what proxy and kernel saw lately, and whoever waits for the next."""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent.ring import CAPACITY, Ring
from mesh.proto import flow_pb2

RATE_WINDOW_S = 60
NAMESPACE_TTL_S = 3600
MAX_NAMESPACES = 4096

Event = Any
"""flow.Flow or flow.LostEvent."""


def time_ns(event: Event) -> int | None:
    """When a flow happened; None for a lost-event record."""
    return int(event.time.ToNanoseconds()) if isinstance(event, flow_pb2.Flow) else None


class EventLog:
    """A ring that wakes its readers; for one event loop."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.ring: Ring[Event] = Ring(capacity)
        self._readers: set[asyncio.Event] = set()
        self.stopped = False
        """No event will come any more: readers end."""

    def append(self, event: Event) -> None:
        """Add an event and wake the readers."""
        self.ring.append(event)
        self._wake()

    def stop(self) -> None:
        """Have every reader end."""
        self.stopped = True
        self._wake()

    def _wake(self) -> None:
        for reader in self._readers:
            reader.set()

    @contextmanager
    def reading(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever something was added; the reader clears it."""
        news = asyncio.Event()
        self._readers.add(news)
        try:
            yield news
        finally:
            self._readers.discard(news)


class FlowLog(EventLog):
    """The flows, with what is counted over all of them."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        super().__init__(capacity)
        self.seen = 0
        self.by_verdict: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self._seconds: deque[tuple[int, int]] = deque()
        self._namespaces: dict[tuple[str, str], float] = {}

    def add(self, flow: flow_pb2.Flow, now_s: float) -> None:
        """Add a flow."""
        self.seen += 1
        self.by_verdict[flow_pb2.Verdict.Name(flow.verdict)] += 1
        self._count_second(int(now_s))
        for end in (flow.source, flow.destination):
            if end.namespace:
                self._remember_namespace(end.cluster_name, end.namespace, now_s)
        self.append(flow)

    def add_lost(self, source: "flow_pb2.LostEventSource", count: int) -> None:
        """Record that `count` events never arrived."""
        self.lost[flow_pb2.LostEventSource.Name(source)] += count
        self.append(flow_pb2.LostEvent(source=source, num_events_lost=count))

    def _count_second(self, second: int) -> None:
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + 1)
        else:
            self._seconds.append((second, 1))
        while self._seconds[0][0] <= second - RATE_WINDOW_S:
            self._seconds.popleft()

    def rate(self, now_s: float, uptime_s: float) -> float:
        """Flows per second over the last minute, or since the start where that is shorter."""
        recent = sum(count for second, count in self._seconds if second > now_s - RATE_WINDOW_S)
        return recent / max(1.0, min(RATE_WINDOW_S, uptime_s))

    def _remember_namespace(self, cluster: str, namespace: str, now_s: float) -> None:
        key = (cluster, namespace)
        if key in self._namespaces or len(self._namespaces) < MAX_NAMESPACES:
            self._namespaces[key] = now_s

    def namespaces(self, now_s: float) -> list[tuple[str, str]]:
        """Cluster and namespace of every flow of the last hour, sorted."""
        self._namespaces = {key: at for key, at in self._namespaces.items() if at > now_s - NAMESPACE_TTL_S}
        return sorted(self._namespaces)
