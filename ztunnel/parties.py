"""Who talks to whom, by the names in connections' records: looked up, labelled and written down once for all of them.

The same few pairs of workloads talk again and again. What the inventory knows of them, the series that count them and most of
what a reader of flows is told of them costs more than all that is a single connection's own.
"""

from collections.abc import Callable
from operator import attrgetter

from mesh.event_line import write_head, write_tail
from mesh.inventory import Inventory
from ztunnel.connection_facts import Facts, facts_of
from ztunnel.connection_record import ConnectionRecord, names_of, place_of
from ztunnel.flow_feed import Line, connection_event
from ztunnel.metrics import Series, TcpMetrics

_MAX_REMEMBERED = 8192
_MAX_TAILS = _MAX_ALIKE = 2048
"""Of a kilobyte each."""

_place: Callable[[ConnectionRecord], tuple[object, ...]] = attrgetter(
    "destination", "hbone_destination", "policy", "asked_policies"
)


class Parties:
    """The two ends of connections, and the service and hop between them."""

    __slots__ = ("_first", "_metrics", "_series")

    def __init__(self, first: Facts, metrics: TcpMetrics) -> None:
        """`first`: one connection between them."""
        self._first = first
        self._metrics = metrics
        self._series: dict[str, Series] = {}

    def facts(self, record: ConnectionRecord) -> Facts:
        """The facts of another connection between them."""
        first = self._first
        return Facts(record, first.source, first.destination, first.service, first.hop)

    def series(self, flag: str) -> Series:
        """What counts those of their connections that end with `flag`."""
        series = self._series.get(flag)
        if series is None:
            series = self._series[flag] = self._metrics.series(self._first, flag)
        return series


class Directory:
    """All parties that were met lately."""

    def __init__(self, node: str, inventory: Inventory, metrics: TcpMetrics) -> None:
        self._node = node
        self._inventory = inventory
        self._metrics = metrics
        self._parties: dict[tuple[object, ...], Parties] = {}
        self._tails: dict[tuple[object, ...], bytes] = {}
        self._alike: dict[tuple[object, ...], ConnectionRecord] = {}

    def of(self, record: ConnectionRecord) -> Parties:
        """The parties of a connection."""
        names = names_of(record)
        parties = self._parties.get(names)
        if parties is None:
            if len(self._parties) >= _MAX_REMEMBERED:
                self.forget()
            parties = self._parties[names] = Parties(facts_of(record, self._inventory), self._metrics)
        return parties

    def alike(self, parties: Parties, record: ConnectionRecord) -> ConnectionRecord:
        """One record for all open connections that differ in number, source, time and bytes alone."""
        key = (parties, *place_of(record))
        first = self._alike.get(key)
        if first is None:
            if len(self._alike) >= _MAX_ALIKE:
                self._alike.clear()
            first = self._alike[key] = record
        return first

    def line(self, parties: Parties, record: ConnectionRecord, over: bool, untold: bool) -> Line:
        """What readers of flows are told of a connection that fares well: that it opened, or is `over` (`untold`: both)."""
        key = (parties, *_place(record))
        tail = self._tails.get(key)
        if tail is None:
            if len(self._tails) >= _MAX_TAILS:
                self._tails.clear()
            tail = self._tails[key] = write_tail(connection_event(parties.facts(record), "opened", self._node))
        address, port = record.source
        if not over:
            return write_head(record.opened_unix_ns, "opened", address, port), tail
        counts = (record.bytes_sent, record.bytes_received, record.duration_ns)
        return write_head(record.opened_unix_ns + record.duration_ns, "closed", address, port, counts, untold), tail

    def forget(self) -> None:
        """Names may stand for something else now."""
        self._parties.clear()
        self._tails.clear()
        self._alike.clear()
