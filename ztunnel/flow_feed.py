"""The proxy's connection events for whoever reads them (mesh.event_line), and never at the traffic's expense.

Events wait as lines in a queue per reader. Who is slow loses the oldest (counted, and told), and so does everybody when more
than 4,000 a second happen for long: ordinary openings and closings first, refusals never before the queue is full of them.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Literal

from mesh.event_line import write_event, write_lost
from mesh.flows import ConnectionEvent, FlowEndpoint, Phase, policy_object
from mesh.workload import Workload
from wire.burst import Burst
from ztunnel.channel import EarlyFailure
from ztunnel.connection_facts import Facts

QUEUE_EVENTS = 4096
READERS = 8
UNREAD_REFUSALS = 256
"""Kept while nobody reads, for who comes first: an agent that is late, or away for a moment, learns what was refused."""
_PER_SECOND, _BURST = 4000.0, 8192.0
_BATCH = 64
"""Events per piece: about 0.1 ms of work, then others get their turn."""

_UNPROVED = ("TLS_FAILURE", "IDENTITY_ERROR", "CERT_REVOKED")
"""Flags of who proved no acceptable identity, or one that is revoked."""

Moment = Literal["opened", "refused", "closed"]
Line = tuple[bytes, bytes]
"""What is this event's own, and what it shares with others; the two make the line."""


def connection_event(facts: Facts, moment: Moment, node: str, untold: bool = False, count: int = 1) -> ConnectionEvent:
    """What to tell of a connection that was opened, refused before that (`count`: the last of so many), or has ended after it
    (`untold`: and was opened)."""
    record = facts.record
    source_address, source_port = record.source
    over = moment != "opened"  # its record may have ended meanwhile: what it says of that was not so yet
    return ConnectionEvent(
        time_ns=record.opened_unix_ns + (record.duration_ns if over else 0),
        node=node,
        phase=_ending(facts, moment) if over else "opened",
        direction=record.direction,
        source=FlowEndpoint.of(facts.source, source_address, source_port, identity=record.source_identity),
        destination=FlowEndpoint.of(facts.destination, *facts.destination_end, identity=record.destination_identity),
        service=record.destination_service,
        policy=record.policy,
        policy_object=policy_object(record.policy, facts.destination),
        asked_objects=tuple(policy_object(key, facts.destination) for key in record.asked_policies),
        reason=_reason(record.error, count) if over else "",
        through=facts.through,
        encrypted=facts.encrypted,
        bytes_sent=record.bytes_sent if over else 0,
        bytes_received=record.bytes_received if over else 0,
        duration_ns=record.duration_ns if over else 0,
        untold=untold,
    )


def _ending(facts: Facts, moment: Moment) -> Phase:
    if facts.record.flag == "DENY":
        return "denied"
    if facts.record.flag in _UNPROVED:
        return "unauthenticated"
    broke = facts.record.flag != "-" or (moment == "refused" and facts.record.error)
    return "failed" if broke else "closed"


def early_event(
    failure: EarlyFailure, local: Workload | None, peer: Workload | None, node: str, unix_ns: int
) -> ConnectionEvent:
    """What to tell of a connection that failed before it was one; `local` is the pod's workload, `peer` the other end's."""
    inbound = failure.direction == "inbound"
    source, destination = (peer, local) if inbound else (local, peer)
    unauthenticated = inbound and failure.flag in _UNPROVED
    return ConnectionEvent(
        time_ns=unix_ns,
        node=node,
        phase="denied" if failure.flag == "DENY" else "unauthenticated" if unauthenticated else "failed",
        direction=failure.direction,
        source=FlowEndpoint.of(source, *failure.source, identity=failure.identity if inbound else None),
        destination=FlowEndpoint.of(destination, *failure.destination, identity=None if inbound else failure.identity),
        reason=_reason(failure.error, failure.count),
    )


def _reason(error: str, count: int) -> str:
    return error if count == 1 else f"{error} (the last of {count} in a second)".lstrip()


@dataclass(slots=True)
class _Reader:
    queue: deque[Line] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    lost: int = 0
    """Events since the last line that said so."""


class FlowFeed:
    """Passes events to all readers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._readers: list[_Reader] = []
        self._unread: deque[Line] = deque(maxlen=UNREAD_REFUSALS)
        self._budget = _BURST
        self._filled_at = clock()
        self.lost = 0
        """Events that some reader did not get."""

    @property
    def has_readers(self) -> bool:
        """Whether anybody wants ordinary events at all; refusals are always welcome."""
        return bool(self._readers)

    @property
    def has_room(self) -> bool:
        """Whether one more reader is served."""
        return len(self._readers) < READERS

    def admits(self) -> bool:
        """Whether an ordinary event, an opening or closing, is to be told; counts it as lost where one more were too many."""
        if not self._readers:
            return False
        if self._within_budget():
            return True
        for reader in self._readers:
            self._lose(reader)
        return False

    def publish(self, event: ConnectionEvent) -> None:
        """Tell an event to every reader; a refusal to the next one where there is none."""
        if event.phase in ("opened", "closed"):
            if self.admits():
                self.put((write_event(event), b""))
        elif self._readers:
            self.put((write_event(event), b""))
        else:
            self._unread.append((write_event(event), b""))

    def put(self, line: Line) -> None:
        """Queue a line for every reader."""
        for reader in self._readers:
            if len(reader.queue) >= QUEUE_EVENTS:
                reader.queue.popleft()
                self._lose(reader)
            reader.queue.append(line)
            reader.wake.set()

    def _lose(self, reader: _Reader) -> None:
        self.lost += 1
        reader.lost += 1
        reader.wake.set()

    def _within_budget(self) -> bool:
        if self._budget < 1:  # not before: the clock costs more than the rest
            now = self._clock()
            self._budget = min(_BURST, self._budget + (now - self._filled_at) * _PER_SECOND)
            self._filled_at = now
            if self._budget < 1:
                return False
        self._budget -= 1
        return True

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Lines from now on, until the reader goes away. Ask `has_room` before."""
        reader, burst = _Reader(deque(self._unread)), Burst()
        self._unread.clear()
        self._readers.append(reader)
        try:
            while True:
                reader.wake.clear()
                while reader.queue or reader.lost:
                    lines = [part for _ in range(min(_BATCH, len(reader.queue))) for part in reader.queue.popleft()]
                    if reader.lost:
                        lines.append(write_lost(reader.lost))
                        reader.lost = 0
                    yield b"".join(lines)
                    burst.give_way()
                    if reader.queue:
                        await asyncio.sleep(0)
                await reader.wake.wait()
        finally:
            self._readers.remove(reader)
