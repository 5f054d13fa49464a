"""Prometheus metrics: the mesh's TCP counters under Istio's names and labels, and their text form.

Written by hand because Istio's label order is part of what is promised, and because a counter is touched on every event.
Series are bounded; what has no room is counted under `weft_metrics_overflow_total` and otherwise lost.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mesh.workload import Workload
from ztunnel.channel import ConnectionRecord
from ztunnel.connection_facts import Facts

MAX_SERIES = 20_000
_UNKNOWN = "unknown"
Labels = tuple[tuple[str, str], ...]
Kind = Literal["counter", "gauge", "info"]


class Sample(NamedTuple):
    """One value of a family."""

    labels: Labels
    value: float


class Family(NamedTuple):
    """One metric; `name` without the `_total` of counters."""

    name: str
    kind: Kind
    help: str
    samples: list[Sample]


def gauge(name: str, text: str, value: float, **labels: str) -> Family:
    """A family of one value."""
    return Family(name, "gauge", text, [Sample(tuple(labels.items()), value)])


def counter(name: str, text: str, values: Iterable[tuple[Labels, float]]) -> Family:
    """A family of counts."""
    return Family(name, "counter", text, [Sample(labels, value) for labels, value in values])


def _workload_labels(prefix: str, workload: Workload | None, principal: str) -> Iterator[tuple[str, str]]:
    yield f"{prefix}_workload", workload.workload_name if workload else ""
    yield f"{prefix}_canonical_service", workload.canonical_name if workload else ""
    yield f"{prefix}_canonical_revision", workload.canonical_revision if workload else ""
    yield f"{prefix}_workload_namespace", workload.namespace if workload else ""
    yield f"{prefix}_principal", principal
    yield f"{prefix}_app", workload.canonical_name if workload else ""
    yield f"{prefix}_version", workload.canonical_revision if workload else ""
    yield f"{prefix}_cluster", workload.cluster_id if workload else ""


def tcp_labels(facts: Facts, flag: str) -> Labels:
    """Istio's labels of a connection, in Istio's order."""
    service = facts.service
    source, destination = facts.source, facts.destination
    labels = [
        ("reporter", "source" if facts.record.direction == "outbound" else "destination"),
        *_workload_labels("source", source, str(facts.source_principal or "")),
        ("destination_service", service.hostname if service else ""),
        ("destination_service_namespace", service.namespace if service else ""),
        ("destination_service_name", service.name if service else ""),
        *_workload_labels("destination", destination, str(facts.destination_principal or "")),
        ("request_protocol", "tcp"),
        ("response_flags", flag),
        ("connection_security_policy", "mutual_tls" if facts.encrypted else ""),
        ("source_region", source.locality.region if source else ""),
        ("source_zone", source.locality.zone if source else ""),
        ("destination_region", destination.locality.region if destination else ""),
        ("destination_zone", destination.locality.zone if destination else ""),
    ]
    return tuple((name, value or _UNKNOWN) for name, value in labels)


@dataclass(slots=True)
class _Counts:
    opened: int = 0
    closed: int = 0
    failed: int = 0
    received: int = 0
    sent: int = 0
    seen: set[str] = field(default_factory=set)
    """The counters that this series has: others have no sample."""


_TCP = {
    "opened": ("istio_tcp_connections_opened", "The total number of TCP connections opened"),
    "closed": ("istio_tcp_connections_closed", "The total number of TCP connections closed"),
    "failed": ("istio_tcp_connections_failed", "The total number of TCP connections that failed"),
    "received": ("istio_tcp_received_bytes", "The size of total bytes received during request in case of a TCP connection"),
    "sent": ("istio_tcp_sent_bytes", "The size of total bytes sent during response in case of a TCP connection"),
}


class TcpMetrics:
    """The counters of all connections since the start."""

    def __init__(self) -> None:
        self._series: dict[Labels, _Counts] = {}
        self._open = {"source": 0, "destination": 0}
        self.overflow = 0

    def _counts(self, labels: Labels) -> _Counts:
        counts = self._series.get(labels)
        if counts is None:
            if len(self._series) >= MAX_SERIES:
                self.overflow += 1
                return _Counts()
            counts = self._series[labels] = _Counts()
        return counts

    def opened(self, facts: Facts) -> Labels:
        """A connection began; returns the series that its bytes belong to."""
        labels = tcp_labels(facts, "-")
        counts = self._counts(labels)
        counts.opened += 1
        counts.seen |= {"opened", "received", "sent"}
        self._open[labels[0][1]] += 1
        return labels

    def moved(self, labels: Labels, record: ConnectionRecord, bytes_sent: int, bytes_received: int) -> None:
        """Bytes moved, from the local workload's viewpoint; Istio counts from the server's."""
        counts = self._counts(labels)
        if record.direction == "outbound":
            bytes_sent, bytes_received = bytes_received, bytes_sent
        counts.sent += bytes_sent
        counts.received += bytes_received

    def closed(self, facts: Facts) -> None:
        """A connection ended; one that failed counts as that, too."""
        labels = tcp_labels(facts, facts.record.flag)
        counts = self._counts(labels)
        counts.closed += 1
        counts.seen.add("closed")
        if facts.record.flag != "-":
            counts.failed += 1
            counts.seen.add("failed")
        self._open[labels[0][1]] -= 1

    def families(self) -> list[Family]:
        """All of them."""
        families = [
            counter(name, text, ((labels, getattr(c, kind)) for labels, c in self._series.items() if kind in c.seen))
            for kind, (name, text) in _TCP.items()
        ]
        sockets = [Sample((("reporter", reporter),), count) for reporter, count in self._open.items()]
        families.append(Family("istio_tcp_sockets_open", "gauge", "The number of TCP connections that are open", sockets))
        families.append(
            counter("weft_metrics_overflow", "Events that no more series had room for", [((), self.overflow)]),
        )
        return families


def render(families: Iterable[Family]) -> bytes:
    """The OpenMetrics text."""
    lines: list[str] = []
    for family in families:
        lines += [f"# HELP {family.name} {family.help}.", f"# TYPE {family.name} {family.kind}"]
        suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
        for labels, value in family.samples:
            text = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            number = int(value) if float(value).is_integer() else value
            lines.append(f"{family.name}{suffix}{{{text}}} {number}" if text else f"{family.name}{suffix} {number}")
    lines.append("# EOF\n")
    return "\n".join(lines).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
