"""What is fuzzed: a parser, what it may not do, and bytes to begin with."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Target(NamedTuple):
    """One parser. `feed` returns for whatever it is given; an exception is a finding, and so is a hang."""

    name: str
    feed: Callable[[bytes], None]
    seeds: Sequence[bytes]
    max_bytes: int = 4096


class Cursor:
    """Takes values off the front of a fuzzer's bytes; zeros when nothing is left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        """Bytes that nobody has taken."""
        return len(self._data) - self._place

    def byte(self) -> int:
        """One."""
        return (self.take(1) or b"\0")[0]

    def take(self, count: int) -> bytes:
        """At most `count`."""
        part = self._data[self._place : self._place + count]
        self._place += len(part)
        return part

    def rest(self) -> bytes:
        """All others."""
        return self.take(self.left)
