"""How much one pod, and all pods of the node together, may hold at a time; and what is held.

Four kinds: `connections` of applications and peers, `streams` of peers' tunnels, `handshakes` in flight, and `buffered_bytes`
that wait for slow receivers. Limits are a node's and divided evenly among its data workers, so that no worker asks another: one
may be full a little before the node is. Who is half full is home to no more connections (ztunnel.headroom). Checking a limit is
a comparison.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

Kind = Literal["connections", "streams", "handshakes", "buffered_bytes"]
KINDS: tuple[Kind, ...] = ("connections", "streams", "handshakes", "buffered_bytes")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one holder: a pod, or the node."""

    connections: int
    streams: int
    handshakes: int
    buffered_bytes: int

    def share(self, workers: int) -> "Limits":
        """One worker's."""
        return Limits(*(-(-getattr(self, field.name) // workers) for field in fields(self)))


NODE = Limits(65_536, 65_536, 2_048, 512 << 20)
POD = Limits(32_768, 32_768, 1_024, 128 << 20)


class Held:
    """Bytes that wait, of one holder and of whatever it is a part of."""

    __slots__ = ("__weakref__", "_whole", "bytes", "limit", "refused")

    def __init__(self, limit: int, whole: "Held | None" = None) -> None:
        """`whole`: what it is a part of."""
        self.limit = limit
        self.bytes = self.refused = 0
        self._whole = whole

    def add(self, count: int) -> None:
        """More wait, or (negative) fewer."""
        self.bytes += count
        if self._whole is not None:
            self._whole.add(count)

    def refuses(self) -> bool:
        """Whether nothing more may wait; counted where that is so."""
        if self.bytes > self.limit:
            self.refused += 1
            return True
        return self._whole is not None and self._whole.refuses()


class PartHeld(Held):
    """Those of one peer, of what a pod may hold: half at most, so that whoever uses all of its part does so to itself."""

    __slots__ = ()

    def __init__(self, pod: Held) -> None:
        super().__init__(pod.limit // 2, pod)

    def refuses(self) -> bool:
        """See Held; counted at the pod."""
        if self.bytes > self.limit and self._whole is not None:
            self._whole.refused += 1
            return True
        return super().refuses()


class Holder:
    """What a pod, or the node, holds in this worker, and what was refused to it."""

    __slots__ = ("_refused", "held", "limits", "streams")

    def __init__(self, limits: Limits, held: Held) -> None:
        self.limits = limits
        self.held = held
        self.streams = 0
        self._refused: dict[Kind, int] = dict.fromkeys(KINDS, 0)

    def refuses(self, kind: Kind, used: int) -> bool:
        """Whether one more of a kind is one too many; counted where that is so."""
        if used < getattr(self.limits, kind):
            return False
        self.count(kind)
        return True

    def half_full(self, connections: int) -> bool:
        """Whether it had better have no more of what goes to other workers as well."""
        return 2 * connections > self.limits.connections or 2 * self.held.bytes > self.limits.buffered_bytes

    def count(self, kind: Kind) -> None:
        """One was refused."""
        self._refused[kind] += 1

    def usage(self, connections: int, handshakes: int) -> "Usage":
        """For who watches."""
        refused = self._refused
        return Usage(
            (connections, self.streams, handshakes, self.held.bytes),
            (refused["connections"], refused["streams"], refused["handshakes"], self.held.refused),
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a holder has in one worker, and how often it was refused more since the worker began; in the order of KINDS."""

    used: tuple[int, int, int, int]
    refused: tuple[int, int, int, int]

    def __iter__(self) -> Iterator[tuple[Kind, int, int]]:
        return iter(zip(KINDS, self.used, self.refused, strict=True))
