"""Prometheus metrics: the mesh's TCP counters under Istio's names and labels, and their text form.

Written by hand because Istio's label order is part of what is promised, and because a counter is touched on every event.
Series are bounded; those that find no room are counted under `weft_metrics_overflow_total` and otherwise lost.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from mesh.workload import Workload
from ztunnel.channel import Revocation
from ztunnel.connection_facts import Facts
from ztunnel.connection_record import Direction

MAX_SERIES = 20_000
UNKNOWN = "unknown"
_REPORTERS: dict[Direction, str] = {"outbound": "source", "inbound": "destination"}
Labels = tuple[tuple[str, str], ...]
Kind = Literal["counter", "gauge", "histogram", "info"]


class Sample(NamedTuple):
    """One value of a family."""

    labels: Labels
    value: float
    suffix: str = ""
    """What follows the family's name in a histogram."""


class Family(NamedTuple):
    """One metric; `name` without the `_total` of counters."""

    name: str
    kind: Kind
    help: str
    samples: list[Sample]
    unit: str = ""
    """As the name ends with it; empty: not said."""


def gauge(name: str, text: str, value: float, **labels: str) -> Family:
    """A family of one value."""
    return Family(name, "gauge", text, [Sample(tuple(labels.items()), value)])


def counter(name: str, text: str, values: Iterable[tuple[Labels, float]], unit: str = "") -> Family:
    """A family of counts."""
    return Family(name, "counter", text, [Sample(labels, value) for labels, value in values], unit)


def histogram(name: str, text: str, bounds: Sequence[float], values: Iterable[tuple[Labels, Sequence[int], float]]) -> Family:
    """A family of (labels, counts within each bound but not the one before and beyond all, sum), in seconds."""
    samples = []
    for labels, counts, total in values:
        below = list(accumulate(counts))
        for bound, count in zip((*map(str, bounds), "+Inf"), below, strict=True):
            samples.append(Sample((*labels, ("le", bound)), count, "_bucket"))
        samples += [Sample(labels, below[-1], "_count"), Sample(labels, total, "_sum")]
    return Family(name, "histogram", text, samples, "seconds")


def workload_labels(prefix: str, workload: Workload | None, principal: str) -> Iterator[tuple[str, str]]:
    """Istio's labels of one end, in Istio's order; values that are missing are empty."""
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
        ("reporter", _REPORTERS[facts.record.direction]),
        *workload_labels("source", source, str(facts.source_principal or "")),
        ("destination_service", service.hostname if service else ""),
        ("destination_service_namespace", service.namespace if service else ""),
        ("destination_service_name", service.name if service else ""),
        *workload_labels("destination", destination, str(facts.destination_principal or "")),
        ("request_protocol", "tcp"),
        ("response_flags", flag),
        ("connection_security_policy", "mutual_tls" if facts.encrypted else ""),
    ]
    if source or destination:  # else Istio's ztunnel has none of these
        labels += [
            ("source_region", source.locality.region if source else ""),
            ("source_zone", source.locality.zone if source else ""),
            ("destination_region", destination.locality.region if destination else ""),
            ("destination_zone", destination.locality.zone if destination else ""),
        ]
    return tuple((name, value or UNKNOWN) for name, value in labels)


class Series:
    """The counters of one set of labels; those that never counted anything are not shown."""

    __slots__ = ("closed", "failed", "labels", "opened", "received", "sent")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.opened = self.closed = self.failed = self.received = self.sent = 0

    def moved(self, direction: Direction, bytes_sent: int, bytes_received: int) -> None:
        """Bytes moved, from the local workload's viewpoint; Istio counts from the server's."""
        if direction == "outbound":
            bytes_sent, bytes_received = bytes_received, bytes_sent
        self.sent += bytes_sent
        self.received += bytes_received

    def shows(self, counter: str) -> bool:
        """Whether a counter has a sample: the bytes of an opened connection do, even when they are none."""
        return bool(getattr(self, "opened" if counter in ("received", "sent") else counter))


_TCP = {
    "opened": ("istio_tcp_connections_opened", "The total number of TCP connections opened"),
    "closed": ("istio_tcp_connections_closed", "The total number of TCP connections closed"),
    "failed": ("istio_tcp_connections_failed", "The total number of TCP connections that failed to establish (unstable)"),
    "received": ("istio_tcp_received_bytes", "The size of total bytes received during request in case of a TCP connection"),
    "sent": ("istio_tcp_sent_bytes", "The size of total bytes sent during response in case of a TCP connection"),
}


class TcpMetrics:
    """The counters of all connections since the start."""

    def __init__(self) -> None:
        self._series: dict[Labels, Series] = {}
        self.open: dict[Direction, int] = {"outbound": 0, "inbound": 0}
        """Connections that have an accepted socket of their own."""
        self.tunnels = 0
        """Inbound ones, each of one accepted socket."""
        self.overflow = 0
        """Sets of labels that found no room."""

    def series(self, facts: Facts, flag: str) -> Series:
        """The series of a connection's labels; without room for it, one that nobody shows."""
        labels = tcp_labels(facts, flag)
        series = self._series.get(labels)
        if series is None:
            series = Series(labels)
            if len(self._series) < MAX_SERIES:
                self._series[labels] = series
            else:
                self.overflow += 1
        return series

    def families(self) -> list[Family]:
        """All of them."""
        families = [
            counter(name, text, ((one.labels, getattr(one, kind)) for one in self._series.values() if one.shows(kind)))
            for kind, (name, text) in _TCP.items()
        ]
        open_sockets = self.open | {"inbound": self.open["inbound"] + self.tunnels}
        sockets = [Sample((("reporter", _REPORTERS[direction]),), count) for direction, count in open_sockets.items()]
        families.append(Family("istio_tcp_sockets_open", "gauge", "The current number of open TCP sockets (unstable)", sockets))
        families.append(
            counter("weft_metrics_overflow", "Sets of labels that found no room", [((), self.overflow)]),
        )
        return families


def revocation_families(counts: Mapping[Revocation, int]) -> list[Family]:
    """What revocation lists cost whom."""

    def reporters(known: bool) -> Iterator[tuple[Labels, float]]:
        for one, count in counts.items():
            if one.known is known:
                yield (("reporter", _REPORTERS[one.direction]),), count

    refused = "The total number of connections rejected due to CRL certificate revocation (unstable)"
    unknown = "The total number of connections not tracked for CRL enforcement (unstable)"
    return [
        counter("istio_crl_policy_rejections", refused, reporters(True)),
        counter("istio_crl_untracked_connections", unknown, reporters(False)),
    ]


def render(families: Iterable[Family]) -> bytes:
    """The OpenMetrics text."""
    lines: list[str] = []
    for family in families:
        lines += [f"# HELP {family.name} {family.help}.", f"# TYPE {family.name} {family.kind}"]
        lines += [f"# UNIT {family.name} {family.unit}"] if family.unit else ()
        suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
        for labels, value, own in family.samples:
            text = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            number = int(value) if float(value).is_integer() else value
            lines.append(
                f"{family.name}{own or suffix}{{{text}}} {number}" if text else f"{family.name}{own or suffix} {number}"
            )
    lines.append("# EOF\n")
    return "\n".join(lines).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
