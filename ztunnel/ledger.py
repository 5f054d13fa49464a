"""The account of this worker's connections: who is open, what moved, how each ended; and who may stay when policy changes."""

import itertools
import logging
import time
from collections.abc import Callable, Iterable
from copy import copy
from typing import Protocol

from mesh.matching import Connection, policy_matches
from mesh.policy import Policy
from mesh.policy_set import Verdict, evaluate
from mesh.policy_store import PolicyStore
from mesh.workload import Address, Workload
from ztunnel.carried import Carried, Kinds
from ztunnel.channel import Closed, FromWorker, Opened, Progress
from ztunnel.connection_record import ConnectionRecord, Flag
from ztunnel.failures import Failures
from ztunnel.log_lines import RBAC
from ztunnel.loop import Loop
from ztunnel.stream import TunnelStream
from ztunnel.stream_owner import Owner
from ztunnel.walk import ENDINGS_PER_TURN, Walk

DENIED = "connection closed due to policy rejection: "
CHANGED = "connection closed due to policy change: "
DRAINED = "connection closed due to connection drain"

SocketAddress = tuple[Address, int]
SETTLED_NS = 500_000_000
"""Who is open after so long will be for longer, as a rule: how it began is forgotten (ztunnel.carried)."""


class Pump(Protocol):
    """What moves a connection's bytes: ztunnel.stream or ztunnel.passthrough."""

    owner: Owner
    """Who hears how that goes."""

    @property
    def sent(self) -> int:
        """Bytes from the local workload's socket."""

    @property
    def received(self) -> int:
        """Bytes to it."""

    @property
    def is_stuck(self) -> bool:
        """It may have to begin anew."""

    def abort(self, flag: Flag, error: str) -> None:
        """End both sides now."""


class Tracked:
    """One connection, from its first check to its end. The shells in ztunnel.inbound and ztunnel.outbound derive from it."""

    __slots__ = ("began_ns", "ledger", "pump", "record", "was_open", "workload")

    def __init__(self, ledger: "Ledger", record: ConnectionRecord) -> None:
        self.ledger = ledger
        self.record = record
        self.pump: Pump | None = None
        self.workload: Workload | None = None
        """The local workload that policies protect."""
        self.was_open = False
        self.began_ns = time.monotonic_ns()

    @property
    def number(self) -> int:
        """Its number in this worker."""
        return self.record.number

    @property
    def pod_uid(self) -> str:
        """Whose it is."""
        return self.record.pod_uid

    @property
    def subject(self) -> Connection | None:
        """What policies are asked about; None outbound, where none apply."""
        return None

    @property
    def judged_port(self) -> int | None:
        """The application's, where policies are asked."""
        return None

    @property
    def lasts(self) -> bool:
        """Whether how it began may be forgotten, once it is open for a while."""
        return self.was_open

    def note(self, verdict: Verdict) -> None:
        """Which policy decided."""
        self.record.policy, self.record.asked_policies = verdict.policy or "", verdict.asked

    def opened(self) -> None:
        """Bytes can flow: told once, also of one that went on in another tunnel."""
        if not self.was_open:
            self.was_open = True
            self.ledger.emit(Opened(self.record))

    def declined(self, stream: TunnelStream, untouched: bool) -> bool:
        """See ztunnel.stream_owner.Owner: there is no other way."""
        return False

    def ended(self, flag: Flag, error: str) -> None:
        """It is over: write it down."""
        open_now, number = self.ledger.open, self.record.number
        if open_now.get(number) is not self:
            return
        del open_now[number]
        self.leave()
        record = self.record
        record.flag, record.error = flag, error
        now_ns = time.monotonic_ns()
        record.duration_ns = now_ns - self.began_ns
        self.count()
        self.pump = None
        closed = Closed(record, self.was_open)
        if self.was_open:
            self.ledger.emit(closed)
        else:
            self.ledger.failures.refused(closed, now_ns / 1e9)

    @property
    def leave(self) -> Callable[[], None]:
        """Gives back what it held of its pod's limits, when the ledger has it no more. Nothing of this one connection."""
        return _nothing

    def abort(self, flag: Flag, error: str) -> None:
        """End it from outside, wherever it stands."""
        if self.pump is not None:
            self.pump.abort(flag, error)
        self.ended(flag, error)

    def count(self) -> tuple[int, int, int] | None:
        """Bring the record's bytes up to date; the change, or None."""
        if self.pump is not None and self.was_open:
            record, sent, received = self.record, self.pump.sent, self.pump.received
            if sent != record.bytes_sent or received != record.bytes_received:
                record.bytes_sent, record.bytes_received = sent, received
                return record.number, sent, received
        return None


def _nothing() -> None:
    """It held nothing."""


class Ledger:
    """All connections that are being checked, connected or carried."""

    def __init__(
        self,
        loop: Loop,
        emit: Callable[[FromWorker], None],
        failures: Failures,
        policies: PolicyStore,
        log_level: int = logging.DEBUG,
    ) -> None:
        """`log_level`: at which verdicts are logged."""
        self.emit = emit
        self._loop = loop
        self.failures = failures
        self._log_level = log_level
        self.open: dict[int, Tracked | Carried] = {}
        self.kinds = Kinds()
        self._policies = policies
        self._numbers = itertools.count(1)
        self._rechecking = Walk(loop, self._all, self._recheck)
        self._counting = Walk(loop, self._all, self._progress)

    def _all(self) -> list[int]:
        return list(self.open)

    def _still_open(self, some: Iterable[int]) -> list[Tracked | Carried]:
        return [tracked for number in some if (tracked := self.open.get(number)) is not None]

    def next_number(self) -> int:
        """A number for a new record."""
        return next(self._numbers)

    def register(self, tracked: Tracked) -> None:
        """From here on a change of policy finds the connection: before its own first check, so that none is missed."""
        tracked.record.opened_unix_ns = time.time_ns()
        self.open[tracked.record.number] = tracked

    def judge(self, tracked: Tracked | Carried) -> Verdict:
        """Ask the policies about an inbound connection, and note which one decided."""
        subject = tracked.subject
        assert subject is not None and tracked.workload is not None
        policies = self._policies.applicable(tracked.workload)
        verdict = evaluate(policies, subject)
        if RBAC.isEnabledFor(self._log_level):
            _log_verdict(self._log_level, subject, verdict, policies)
        tracked.note(verdict)
        return verdict

    def recheck(self, workload_of: Callable[[str], Workload | None]) -> None:
        """Judge every inbound connection again, and close what is no longer allowed: some at once, others in later turns.

        `workload_of`: a local pod's workload as it is then, by the pod's uid.
        """
        self._workload_of = workload_of
        self._rechecking.begin()

    def _recheck(self, some: list[int]) -> None:
        ended = 0
        for place, number in enumerate(some):
            tracked = self.open.get(number)
            if tracked is None or tracked.subject is None:
                continue
            if ended == ENDINGS_PER_TURN:
                self._rechecking.put_back(some[place:])
                return
            tracked.workload = self._workload_of(tracked.pod_uid) or tracked.workload
            verdict = self.judge(tracked)
            if not verdict.allowed:
                tracked.abort("DENY", CHANGED + verdict.reason)
                ended += 1

    def progress(self, making_s: float) -> None:
        """Report what moved since the last time, and end what is not open after `making_s`, whatever it waits for."""
        self._making_ns = int(making_s * 1e9)
        self._counting.begin()

    def _progress(self, some: list[int]) -> None:
        now_ns = time.monotonic_ns()
        before_ns = now_ns - self._making_ns
        for tracked in [one for one in self._still_open(some) if not one.was_open and one.began_ns < before_ns]:
            tracked.abort("CONNECT", f"connection failed: not open after {self._making_ns / 1e9:g} s")
        carried_on = self._still_open(some)
        self._count(carried_on)
        for tracked in carried_on:
            if isinstance(tracked, Tracked) and tracked.lasts and tracked.began_ns < now_ns - SETTLED_NS:
                self._settle(tracked)

    def _count(self, some: Iterable[Tracked | Carried]) -> None:
        counts = [change for tracked in some if (change := tracked.count()) is not None]
        if counts:
            self.emit(Progress(counts))

    def _settle(self, tracked: Tracked) -> None:
        pump = tracked.pump
        if pump is not None and not pump.is_stuck:
            tracked.pump = None
            carried = Carried(tracked, pump, self.kinds.find(tracked, tracked.record))
            pump.owner = self.open[tracked.number] = carried

    def of_pod(self, uid: str) -> list[int]:
        """The numbers of all that belong to one pod."""
        return [number for number, tracked in self.open.items() if tracked.pod_uid == uid]

    def abort(self, number: int, flag: Flag, error: str) -> None:
        """End one from outside, if it is open."""
        tracked = self.open.get(number)
        if tracked is not None:
            tracked.abort(flag, error)

    def tell_records(self, tell: Callable[[list[ConnectionRecord], bool], None]) -> None:
        """Tell the open connections, with their bytes so far: some at once, others in later turns; True: more will come."""

        def visit(some: list[int]) -> None:
            shown = [tracked for tracked in self._still_open(some) if tracked.was_open]
            self._count(shown)
            tell([copy(tracked.record) for tracked in shown], walk.unfinished)

        walk = Walk(self._loop, self._all, visit)
        walk.begin()


def _log_verdict(level: int, connection: Connection, verdict: Verdict, policies: Iterable[Policy]) -> None:
    """One line on what was decided, and one for each dry-run policy that would have had a say."""
    who = f"{connection.source} ({connection.identity or 'no identity'}) to {connection.destination} port {connection.port}"
    decision = f"allowed by {verdict.policy or 'default'}" if verdict.allowed else verdict.reason
    RBAC.log(level, "%s: %s", who, decision)
    for policy in policies:
        if policy.dry_run and policy_matches(policy, connection):
            RBAC.log(level, "%s: dry run: %s %s matches", who, policy.action.value, policy.key)
