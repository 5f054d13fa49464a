"""Bytes that wait for a socket which takes no more now. Counted, so that nothing waits without a bound."""

from collections import deque
from collections.abc import Callable

from ztunnel.limits import Held

_MERGE_BELOW = 64 << 10
"""Small pieces join the last one: a peer that sends single bytes must not cost an object for each."""


class Backlog:
    """A queue of bytes in front of one socket."""

    __slots__ = ("_chunks", "_held", "_offset", "size")

    def __init__(self, held: Held) -> None:
        self._held = held
        self._chunks: deque[bytearray] = deque()
        self._offset = 0
        self.size = 0

    def add(self, data: bytes | memoryview) -> None:
        """Append a copy."""
        if self._chunks and len(self._chunks[-1]) < _MERGE_BELOW:
            self._chunks[-1] += data
        else:
            self._chunks.append(bytearray(data))
        self.size += len(data)
        self._held.add(len(data))

    def send(self, send: Callable[[memoryview], int]) -> int:
        """Send until the socket takes no more; the count of bytes that left. Raises: OSError of the socket."""
        sent = 0
        try:
            while self._chunks:
                chunk = self._chunks[0]
                with memoryview(chunk) as whole, whole[self._offset :] as rest:
                    try:
                        count = send(rest)
                    except BlockingIOError:
                        break
                    all_left = count == len(rest)
                sent += count
                if not all_left:
                    self._offset += count
                    break
                self._chunks.popleft()
                self._offset = 0
        finally:
            self.size -= sent
            self._held.add(-sent)
        return sent

    def clear(self) -> int:
        """Forget what waits; the count of bytes."""
        size, self.size = self.size, 0
        self._held.add(-size)
        self._chunks.clear()
        self._offset = 0
        return size
