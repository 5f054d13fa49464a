"""Standard output for the access log, behind a bounded queue: a reader that is slow or gone never holds the proxy up."""

import asyncio
import os
import threading
from collections import deque

_MAX_BYTES = 8 << 20
_PIECE_LINES = 1024
"""Lines that are taken or dropped as one: of a turn with more than the queue holds, some are written."""


class LineOutput:
    """Writes lines to a descriptor from a thread of its own; what does not fit the queue is dropped and counted."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._fresh: list[str] = []
        self._queue: deque[bytes] = deque()
        self._wake = threading.Semaphore(0)
        # Each of these is written by one side only: the loop's, then the thread's.
        self._taken_bytes = self._dropped_lines = 0
        self._done_bytes = self._failed_lines = 0
        threading.Thread(target=self._write_all, name="access-log", daemon=True).start()

    @property
    def lost(self) -> int:
        """Lines that were never written."""
        return self._dropped_lines + self._failed_lines

    def write(self, line: str) -> None:
        """Take a finished line; those of one loop turn leave together."""
        if not self._fresh:
            asyncio.get_running_loop().call_soon(self.flush)
        self._fresh.append(line)
        if len(self._fresh) >= _PIECE_LINES:
            self.flush()

    def flush(self) -> None:
        """Hand what was taken to the writing thread."""
        if not self._fresh:
            return
        data = "".join(self._fresh).encode(errors="replace")
        if self._taken_bytes - self._done_bytes + len(data) > _MAX_BYTES:
            self._dropped_lines += len(self._fresh)
        else:
            self._taken_bytes += len(data)
            self._queue.append(data)
            self._wake.release()
        self._fresh.clear()

    def _write_all(self) -> None:
        while True:
            self._wake.acquire()
            data = self._queue.popleft()
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError:
                self._failed_lines += data.count(b"\n")
            self._done_bytes += len(data)

    async def drain(self, timeout_s: float = 1.0) -> None:
        """Wait until everything is written, or the time is over."""
        self.flush()
        try:
            async with asyncio.timeout(timeout_s):
                while self._done_bytes < self._taken_bytes:  # noqa: ASYNC110  the thread has no way into this loop once it closes
                    await asyncio.sleep(0.005)
        except TimeoutError:
            return
