"""Turns what the workers report into access log, metrics and flows, and knows which connections are open."""

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from mesh.inventory import Inventory
from mesh.workload import Workload
from ztunnel import access_log
from ztunnel.channel import (
    Closed,
    DNSCounts,
    EarlyFailure,
    FromWorker,
    Offence,
    Opened,
    Progress,
    Revocation,
    Unasked,
    WorkerStatus,
)
from ztunnel.connection_record import ConnectionRecord
from ztunnel.dns_metrics import DNSMetrics
from ztunnel.flow_feed import FlowFeed, Moment, connection_event, early_event
from ztunnel.limit_metrics import LimitMetrics
from ztunnel.limits import Limits
from ztunnel.log_levels import Level
from ztunnel.metrics import Family, Series, TcpMetrics, counter, gauge, revocation_families
from ztunnel.parties import Directory, Parties
from ztunnel.zds_session import PodInfo

MAX_OPEN = 200_000
"""Connections whose bytes are counted while they are open; beyond, they count when they end."""

LOST_AT_ONCE = 8
"""Connections of dead workers that are told in one go: 50 us each."""
_MAX_OFFENDERS = 1000
"""Identities that are named in a metric; whoever comes later is counted as one of the others."""
_COUNTS = frozenset(("dropped_events", "endpoint_retries", "refused_lookups", "unknown_destinations"))
"""What workers tell of themselves that only grows: it stays when they end."""
_Key = TypeVar("_Key")


class _Open:
    """A connection that is open: its series, the bytes counted so far, and what a record needs that others do not share."""

    __slots__ = ("_address", "_came", "alike", "received", "sent", "series")

    def __init__(self, record: ConnectionRecord, alike: ConnectionRecord, series: Series) -> None:
        self.alike = alike
        self._address, port = record.source
        self._came = record.opened_unix_ns << 16 | port  # one number in the place of two: 40 bytes
        self.series = series
        self.sent = self.received = 0

    def record(self, number: int) -> ConnectionRecord:
        """Its record as it was told, with the bytes of now."""
        return replace(
            self.alike,
            number=number,
            source=(self._address, self._came & 0xFFFF),
            opened_unix_ns=self._came >> 16,
            bytes_sent=self.sent,
            bytes_received=self.received,
        )


class Telemetry:
    """Hears all workers."""

    def __init__(
        self,
        node: str,
        network: str,
        inventory: Inventory,
        flows: FlowFeed,
        write: Callable[[str], None],
        pod: Callable[[str], PodInfo | None],
        limits: tuple[Limits, Limits],
        cluster: str = "",
    ) -> None:
        """`write` takes finished access log lines; `pod` finds a pod by its uid; `limits`: of the node, and of a pod."""
        self._node = node
        self._cluster = cluster
        self._network = network
        self._inventory = inventory
        self._flows = flows
        self._write = write
        self._pod = pod
        self._limits = LimitMetrics(*limits, pod)
        self._tcp = TcpMetrics()
        self._directory = Directory(node, inventory, self._tcp)
        self._dns = DNSMetrics(inventory)
        self._open: defaultdict[int, dict[int, _Open]] = defaultdict(dict)
        """By worker, and by the connection's number there; those of a worker that is dead by a number that is no worker's."""
        self._died_unix_ns: dict[int, int] = {}
        """When those died of whose connections some are still to be told, by that number."""
        self._deaths = itertools.count(1)
        self._gauges: dict[int, dict[str, int]] = {}
        self._counted_before: Counter[str] = Counter()
        """By workers that are gone, of _COUNTS."""
        self._revocations: dict[Revocation, int] = {}
        self._early: dict[tuple[str, str], int] = {}
        self._offences: dict[tuple[str, str], int] = {}
        self._unasked: dict[str, int] = {}
        self.level = Level.INFO
        """Of the access log."""
        self.as_json = False

    def hear(self, worker: int, message: FromWorker) -> None:
        """Take in one message of a worker."""
        if isinstance(message, Closed):
            self._closed(self._open[worker], message)
        elif isinstance(message, Opened):
            self._opened(worker, message.record)
        elif isinstance(message, Progress):
            opened = self._open[worker]
            for number, sent, received in message.counts:
                if known := opened.get(number):
                    self._count(known, sent, received)
        elif isinstance(message, EarlyFailure):
            self._failed_early(message)
        elif isinstance(message, Offence):
            self._offended(message)
        elif isinstance(message, Unasked):
            _count_for(self._unasked, str(message.identity or "unknown"), "others")
        elif isinstance(message, Revocation):
            self._revocations[message] = self._revocations.get(message, 0) + 1
        elif isinstance(message, WorkerStatus):
            self._gauges[worker] = message.gauges
            self._limits.take(worker, message.usage)
        elif isinstance(message, DNSCounts):
            self._dns.take(message)

    def _opened(self, worker: int, record: ConnectionRecord) -> None:
        parties = self._directory.of(record)
        series = self._begin(parties, record)
        if sum(map(len, self._open.values())) < MAX_OPEN:
            self._open[worker][record.number] = _Open(record, self._directory.alike(parties, record), series)
        if self._flows.admits():
            self._flows.put(self._directory.line(parties, record, over=False, untold=False))

    def _begin(self, parties: Parties, record: ConnectionRecord, count: int = 1) -> Series:
        if self.level <= Level.DEBUG:
            fields = access_log.connection_fields(parties.facts(record))
            self._log(Level.DEBUG, "connection opened", fields, record.opened_unix_ns)
        series = parties.series("-")
        series.opened += count
        self._count_socket(record, count)
        return series

    def _count(self, known: _Open, sent: int, received: int) -> None:
        sent, received = max(sent, known.sent), max(received, known.received)
        known.series.moved(known.alike.direction, sent - known.sent, received - known.received)
        known.sent, known.received = sent, received

    def _count_closed(self, parties: Parties, record: ConnectionRecord, count: int) -> None:
        series = parties.series(record.flag)
        series.closed += count
        if record.flag != "-":
            series.failed += count
        self._count_socket(record, -count)

    def _count_socket(self, record: ConnectionRecord, change: int) -> None:
        if record.direction == "outbound" or record.protocol == "TCP":  # others share their tunnel's socket
            self._tcp.open[record.direction] += change

    def mesh_changed(self) -> None:
        """The inventory changed: names may stand for something else now."""
        self._directory.forget()

    def _closed(self, opened: dict[int, _Open], message: Closed) -> None:
        record = message.record
        parties = self._directory.of(record)
        if message.told or not message.was_open or record.flag != "-" or self.level <= Level.DEBUG:
            self._count_whole(opened, parties, message)
        else:  # most connections: they came and went unnoticed
            series = parties.series("-")
            series.opened += 1
            series.closed += 1
            series.moved(record.direction, record.bytes_sent, record.bytes_received)
        level = Level.ERROR if record.error else Level.INFO
        if self.level <= level:
            fields = access_log.closing_fields(parties.facts(record), message.count)
            ended_unix_ns = record.opened_unix_ns + record.duration_ns  # we hear of it up to a fifth of a second later
            self._log(level, "connection complete", fields, ended_unix_ns if record.opened_unix_ns else time.time_ns())
        self._tell_closed(parties, message)

    def _count_whole(self, opened: dict[int, _Open], parties: Parties, message: Closed) -> None:
        record = message.record
        if message.was_open and message.told:
            known = opened.pop(record.number, None) or _Open(record, record, parties.series("-"))
        else:
            # Refused: never opened as the worker sees it, but Istio counts it as opened nevertheless.
            known = _Open(record, record, self._begin(parties, record, message.count))
        self._count(known, record.bytes_sent, record.bytes_received)
        self._count_closed(parties, record, message.count)

    def _tell_closed(self, parties: Parties, message: Closed) -> None:
        record = message.record
        untold = message.was_open and not message.told
        if record.flag == "-" and not record.error and message.was_open:
            if self._flows.admits():
                self._flows.put(self._directory.line(parties, record, over=True, untold=untold))
        elif self._flows.has_readers or record.error:
            moment: Moment = "closed" if message.was_open else "refused"
            self._flows.publish(connection_event(parties.facts(record), moment, self._node, untold, message.count))

    def _failed_early(self, failure: EarlyFailure) -> None:
        key = (failure.direction, failure.flag)
        self._early[key] = self._early.get(key, 0) + failure.count
        now_ns = time.time_ns()
        if self.level <= Level.WARN:
            self._log(Level.WARN, "connection failed", access_log.early_fields(failure), now_ns)
        peer_address = failure.source[0] if failure.direction == "inbound" else failure.destination[0]
        peer = self._inventory.workload_by_address(self._network, peer_address)
        self._flows.publish(early_event(failure, self._workload_of(failure.pod_uid), peer, self._node, now_ns))

    def _offended(self, offence: Offence) -> None:
        _count_for(self._offences, (str(offence.identity or "unknown"), offence.kind), ("others", offence.kind))

    def _workload_of(self, pod_uid: str) -> Workload | None:
        pod = self._pod(pod_uid)
        if pod is None:
            return None
        who = (pod.namespace, pod.name, pod.service_account)
        known = self._inventory.workload_of_pod(*who, self._node, self._cluster)
        return known or Workload("", pod.name, pod.namespace, service_account=pod.service_account)

    def _log(self, level: Level, message: str, fields: list[access_log.Field], unix_ns: int) -> None:
        self._write(access_log.line(level, message, fields, unix_ns, self.as_json))

    def worker_died(self, worker: int) -> None:
        """A worker is gone, and with it every connection that it carried: `tell_lost` tells of each."""
        if lost := self._open.pop(worker, None):
            dead = -next(self._deaths)
            self._open[dead] = lost
            self._died_unix_ns[dead] = time.time_ns()
        told = self._gauges.pop(worker, {})
        self._counted_before.update({name: told[name] for name in _COUNTS & told.keys()})
        self._limits.forget(worker)

    def tell_lost(self) -> bool:
        """Tell of some connections that dead workers carried; whether others are left."""
        for _ in range(LOST_AT_ONCE):
            if not self._died_unix_ns:
                break
            dead, died_unix_ns = next(iter(self._died_unix_ns.items()))
            lost = self._open[dead]
            number, known = lost.popitem()
            if not lost:
                del self._open[dead], self._died_unix_ns[dead]
            record = known.record(number)
            record.duration_ns = max(died_unix_ns - record.opened_unix_ns, 0)
            record.error = "connection closed: the data worker that carried it ended"
            self._closed({number: known}, Closed(record, was_open=True))
        return bool(self._died_unix_ns)

    def families(self) -> list[Family]:
        """The metrics of connections and workers."""
        early = (((("direction", direction), ("flag", flag)), count) for (direction, flag), count in self._early.items())
        offences = (((("identity", identity), ("kind", kind)), count) for (identity, kind), count in self._offences.items())
        self._tcp.tunnels = sum(gauges.get("inbound_tunnels", 0) for gauges in self._gauges.values())
        families = [
            *self._tcp.families(),
            *self._dns.families(),
            *self._limits.families(),
            *revocation_families(self._revocations),
        ]
        families.append(counter("weft_offences", "Tunnels that peers lost for breaking the protocol or their budget", offences))
        unasked = (((("identity", identity),), count) for identity, count in self._unasked.items())
        families.append(counter("weft_questions_refused", "Connections refused as their maker asks for too much", unasked))
        families.append(counter("weft_early_failures", "Connections that failed before they could be told apart", early))
        families.append(counter("weft_flows_lost", "Flows that a reader did not get", [((), self._flows.lost)]))
        return [*families, *self._of_workers()]

    def _of_workers(self) -> Iterator[Family]:
        names = self._counted_before.keys() | {name for gauges in self._gauges.values() for name in gauges}
        for name in sorted(names):
            total = sum(gauges.get(name, 0) for gauges in self._gauges.values())
            text = f"Sum over the data workers: {name.replace('_', ' ')}"
            if name in _COUNTS:
                yield counter(f"weft_worker_{name}", text, [((), total + self._counted_before[name])])
            else:
                yield gauge(f"weft_worker_{name}", text, total)


def _count_for(counts: dict[_Key, int], key: _Key, rest: _Key) -> None:
    """Count under a key, or under `rest` where there are too many already."""
    if key not in counts and len(counts) >= _MAX_OFFENDERS:
        key = rest
    counts[key] = counts.get(key, 0) + 1
