"""What the programs report: connections that were refused, or let past the proxy, out of the ring buffer."""

import time
from dataclasses import dataclass

from bpf import libbpf
from bpf.layout import EventRecord, Reason, unpack_address
from mesh.workload import Address

_REFUSALS = frozenset(Reason(number) for number in range(Reason.NO_LISTENER, Reason.EXCLUDED))


@dataclass(frozen=True, slots=True)
class Event:
    """A connection that the kernel refused, or let past the proxy (HOST, EXCLUDED)."""

    time_ns: int
    """Wall clock."""
    reason: Reason
    netns_cookie: int
    """Of the pod; of the node for HOST; 0 where the programs could not know."""
    cgroup_id: int
    """Of the process that dialled; 0 where the programs could not know."""
    source: Address | None
    """None: refused before it was bound."""
    source_port: int
    destination: Address | None
    """What the app dialled, also where the connection was captured."""
    destination_port: int

    @property
    def refused(self) -> bool:
        """Whether the connection came to nothing."""
        return self.reason in _REFUSALS

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.destination.version if self.destination else 4


class Events:
    """Reads events; `fileno()` for the event loop."""

    def __init__(self, map_fd: int) -> None:
        self._ring = libbpf.RingBuffer(map_fd)

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._ring.fileno()

    def read(self) -> list[Event]:
        """The events that are there, at most 256; never blocks."""
        to_wall_ns = time.time_ns() - time.monotonic_ns()
        return [_event(raw, to_wall_ns) for raw in self._ring.read()]

    def close(self) -> None:
        """Stop reading."""
        self._ring.close()


def _event(raw: bytes, to_wall_ns: int) -> Event:
    record = EventRecord.from_buffer_copy(raw)
    source, destination = record.flow.source, record.flow.destination
    return Event(
        time_ns=record.time + to_wall_ns,
        reason=Reason(record.reason),
        netns_cookie=record.netns,
        cgroup_id=record.cgroup,
        source=unpack_address(bytes(source.address)),
        source_port=source.port,
        destination=unpack_address(bytes(destination.address)),
        destination_port=destination.port,
    )
