"""The node's flows: what proxy and kernel saw lately, and whoever waits for the next.

What was seen is kept as it was told, lines of the proxy as lines; it becomes a `flow.Flow` when the first reader looks at it,
because most never are.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent.pod_index import PodIndex
from agent.ring import CAPACITY, Ring
from mesh.event_line import EventLine, Shared
from mesh.flows import ConnectionEvent, FlowEndpoint, Phase, connection_flow, verdict_of
from mesh.proto import flow_pb2

RATE_WINDOW_S = 60
NAMESPACE_TTL_S = 3600
MAX_NAMESPACES = 4096
_MAX_ENDS = 1024

Event = Any
"""Seen or flow.LostEvent; another log's own kind."""


class Ends:
    """Of an event: what the runtime labelled the pods at its ends with (control does not say), and their namespaces."""

    __slots__ = ("labels", "namespaces")

    def __init__(self, event: ConnectionEvent, pods: PodIndex) -> None:
        ends = (event.source, event.destination)
        self.labels = tuple([_labels_of(end, pods) for end in ends])
        self.namespaces = [(end.cluster, end.namespace) for end in ends if end.namespace]


class Seen:
    """What was told of one connection. `opening`: of an event that stands for two moments this is the first."""

    __slots__ = ("_ends", "_flow", "_opening", "_told")

    def __init__(self, told: ConnectionEvent | EventLine, ends: Ends, opening: bool = False) -> None:
        self._told = told
        self._ends = ends
        self._opening = opening
        self._flow: flow_pb2.Flow | None = None

    @property
    def time_ns(self) -> int:
        """When it happened."""
        return self._told.time_ns - (self._told.duration_ns if self._opening else 0)

    def _event(self) -> ConnectionEvent:
        event = self._told if isinstance(self._told, ConnectionEvent) else self._told.whole()
        return event.moments()[0 if self._opening else -1]

    @property
    def flow(self) -> flow_pb2.Flow:
        """The flow; not to be changed."""
        if self._flow is None:
            self._flow = flow = connection_flow(self._event())
            for end, labels in zip((flow.source, flow.destination), self._ends.labels, strict=True):
                if labels:
                    _relabel(end, labels)
        return self._flow


def _labels_of(end: FlowEndpoint, pods: PodIndex) -> tuple[str, ...]:
    pod = pods.by_name.get((end.namespace, end.pod))
    return tuple(pod.flow_labels) if pod else ()


def _relabel(end: flow_pb2.Endpoint, labels: tuple[str, ...]) -> None:
    named = {label.partition("=")[0] for label in labels}
    merged = {*labels, *(label for label in end.labels if label.partition("=")[0] not in named)}
    end.ClearField("labels")
    end.labels.extend(sorted(merged))


def time_ns(event: Event) -> int | None:
    """When a flow happened; None for a lost-event record."""
    return event.time_ns if isinstance(event, Seen) else None


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
        self._seconds: deque[tuple[int, int]] = deque(maxlen=RATE_WINDOW_S)
        self._namespaces: dict[tuple[str, str], float] = {}
        self._ends: dict[Shared, Ends] = {}
        """As of the pods that were given last."""
        self._pods: PodIndex | None = None

    def add(self, told: ConnectionEvent | EventLine, pods: PodIndex, now_s: float) -> None:
        """Add what was told; `pods` are the node's own, now."""
        ends = Ends(told, pods) if isinstance(told, ConnectionEvent) else self._ends_of(told.shared, pods)
        moments = 1
        if told.untold:
            if told.phase == "closed":
                moments = 2
            else:
                self._count("opened", ends, now_s)
            self.append(Seen(told, ends, opening=True))
        self._count(told.phase, ends, now_s, moments)
        self.append(Seen(told, ends))

    def _ends_of(self, shared: Shared, pods: PodIndex) -> Ends:
        if pods is not self._pods or len(self._ends) >= _MAX_ENDS:
            self._pods = pods
            self._ends.clear()
        ends = self._ends.get(shared)
        if ends is None:
            ends = self._ends[shared] = Ends(shared.likeness, pods)
        return ends

    def _count(self, phase: Phase, ends: Ends, now_s: float, moments: int = 1) -> None:
        """`moments`: of this verdict, at once."""
        self.seen += moments
        self.by_verdict[verdict_of(phase)] += moments
        self._count_second(int(now_s), moments)
        for key in ends.namespaces:
            if key in self._namespaces or len(self._namespaces) < MAX_NAMESPACES:
                self._namespaces[key] = now_s

    def add_lost(self, source: "flow_pb2.LostEventSource", count: int) -> None:
        """Record that `count` events never arrived."""
        self.lost[flow_pb2.LostEventSource.Name(source)] += count
        self.append(flow_pb2.LostEvent(source=source, num_events_lost=count))

    def _count_second(self, second: int, moments: int) -> None:
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + moments)
        else:
            self._seconds.append((second, moments))

    def rate(self, now_s: float, uptime_s: float) -> float:
        """Flows per second over the last minute, or since the start where that is shorter."""
        recent = sum(count for second, count in self._seconds if now_s - RATE_WINDOW_S < second <= now_s)
        return recent / max(1.0, min(RATE_WINDOW_S, uptime_s))

    def namespaces(self, now_s: float) -> list[tuple[str, str]]:
        """Cluster and namespace of every flow of the last hour, sorted."""
        self._namespaces = {key: at for key, at in self._namespaces.items() if at > now_s - NAMESPACE_TTL_S}
        return sorted(self._namespaces)
