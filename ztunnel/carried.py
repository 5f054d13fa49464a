"""A connection that has been open for a moment: what it needs until it ends, and no more.

How it came to be (ztunnel.inbound, ztunnel.outbound) is of no use any more, and what it has in common with others is there once
for all of them. Of those that are idle there may be tens of thousands, for hours; those that end at once never come here.
"""

import time
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from mesh.matching import Connection
from mesh.policy_set import Verdict
from mesh.workload import Workload
from ztunnel.channel import Closed
from ztunnel.connection_record import ConnectionRecord, Flag, names_of, place_of

if TYPE_CHECKING:
    from ztunnel.ledger import Ledger, Pump, Tracked


class Kind:
    """What connections have in common that differ in number, source, times and bytes alone."""

    __slots__ = ("__weakref__", "judged_port", "leave", "ledger", "record", "workload")

    def __init__(self, like: "Tracked | Kind", record: ConnectionRecord) -> None:
        """`record`: one of theirs, which nobody changes any more."""
        self.ledger: Ledger = like.ledger
        self.leave: Callable[[], None] = like.leave
        self.judged_port: int | None = like.judged_port
        self.workload: Workload | None = like.workload
        self.record = record


class Kinds:
    """Those of one ledger that somebody is of."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[object, ...], Kind] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, like: "Tracked | Kind", record: ConnectionRecord) -> Kind:
        """The kind of a connection whose record this is."""
        key = (like.leave, like.judged_port, *names_of(record), *place_of(record))
        kind = self._known.get(key)
        if kind is None:
            kind = self._known[key] = Kind(like, record)
        kind.workload = like.workload  # the newest
        return kind


class Carried:
    """One such connection, in the place of the one by which it was begun (ztunnel.ledger.Tracked)."""

    __slots__ = ("_address", "_kind", "_port", "_received", "_sent", "began_ns", "number", "pump")

    was_open = True

    def __init__(self, tracked: "Tracked", pump: "Pump", kind: Kind) -> None:
        record = tracked.record
        self._kind = kind
        self._address, self._port = record.source
        self._sent, self._received = record.bytes_sent, record.bytes_received
        self.began_ns = tracked.began_ns
        self.number = record.number
        self.pump: Pump | None = pump

    @property
    def pod_uid(self) -> str:
        """Whose it is."""
        return self._kind.record.pod_uid

    @property
    def subject(self) -> Connection | None:
        """See ztunnel.ledger.Tracked."""
        kind = self._kind
        if kind.judged_port is None:
            return None
        return Connection(self._address, kind.record.source_identity, kind.record.destination[0], kind.judged_port)

    @property
    def workload(self) -> Workload | None:
        """See ztunnel.ledger.Tracked."""
        return self._kind.workload

    @workload.setter
    def workload(self, workload: Workload | None) -> None:
        self._kind.workload = workload

    @property
    def record(self) -> ConnectionRecord:
        """A new one, of this moment."""
        record = copy(self._kind.record)
        record.number, record.source = self.number, (self._address, self._port)
        # By the clock of now, which may have been set since: what is told of an end is its own time then.
        record.opened_unix_ns = time.time_ns() - time.monotonic_ns() + self.began_ns
        record.bytes_sent, record.bytes_received = self._sent, self._received
        return record

    def note(self, verdict: Verdict) -> None:
        """See ztunnel.ledger.Tracked."""
        kind, noted = self._kind, (verdict.policy or "", verdict.asked)
        if noted != (kind.record.policy, kind.record.asked_policies):
            record = copy(kind.record)
            record.policy, record.asked_policies = noted
            self._kind = kind.ledger.kinds.find(kind, record)

    def count(self) -> tuple[int, int, int] | None:
        """See ztunnel.ledger.Tracked."""
        pump = self.pump
        if pump is None or (pump.sent == self._sent and pump.received == self._received):
            return None
        self._sent, self._received = pump.sent, pump.received
        return self.number, self._sent, self._received

    def opened(self) -> None:
        """See ztunnel.stream_owner.Owner: it was before."""

    def declined(self, _stream: object, _untouched: bool) -> bool:
        """See ztunnel.stream_owner.Owner: how it came to be is forgotten."""
        return False

    def ended(self, flag: Flag, error: str) -> None:
        """See ztunnel.stream_owner.Owner: write it down."""
        kind = self._kind
        open_now = kind.ledger.open
        if open_now.get(self.number) is not self:
            return
        del open_now[self.number]
        kind.leave()
        self.count()
        self.pump = None
        record = self.record
        record.flag, record.error = flag, error
        record.duration_ns = time.monotonic_ns() - self.began_ns
        kind.ledger.emit(Closed(record, was_open=True))

    def abort(self, flag: Flag, error: str) -> None:
        """End it from outside."""
        if self.pump is not None:
            self.pump.abort(flag, error)
        self.ended(flag, error)
