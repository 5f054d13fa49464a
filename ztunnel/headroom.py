"""Which of a node's workers have time for more connections: a table in memory that all of them share, one number for each.

Connections of one pod that are in one worker share its tunnel and its turns, and cost less the more there are: so each pod has
a worker that takes all of them, until that one is busy. A worker that is not promises so for a moment, again and again. So
nothing has to be taken back of one that hangs, and nobody waits for anybody: each number has one writer.
"""

import mmap
import os
from zlib import crc32

_PROMISE_S = 0.6
"""Twice as long as it takes to renew one, and more."""
_BUSY = 0.55
"""Of one CPU. Who moves bulk needs two thirds of one, and small messages had better not wait behind it."""
_NUMBER_BYTES = 8


def make_table(workers: int) -> int:
    """A descriptor of a table in which nobody has promised anything."""
    fd = os.memfd_create("headroom", os.MFD_CLOEXEC)
    os.ftruncate(fd, workers * _NUMBER_BYTES)
    return fd


def withdraw(fd: int, worker: int) -> None:
    """A worker is gone, and its promise with it."""
    os.pwrite(fd, bytes(_NUMBER_BYTES), worker * _NUMBER_BYTES)


class Headroom:
    """The table as one worker sees it."""

    def __init__(self, fd: int, own: int) -> None:
        """`own`: which number is this worker's. The descriptor stays the caller's."""
        self.own = own
        self._until = memoryview(mmap.mmap(fd, os.fstat(fd).st_size)).cast("d")
        """Monotonic seconds."""
        self.lapsed_at = [0.0] * len(self._until)
        """When each worker was last seen without a promise, by `renew`."""
        self._seen_s = self._seen_cpu_s = 0.0

    def home_of(self, uid: str) -> int:
        """The worker of a pod's connections."""
        return crc32(uid.encode()) % len(self._until)

    def has_time(self, worker: int, now: float) -> bool:
        """Whether a worker promised to take who comes."""
        return self._until[worker] > now

    def renew(self, now: float, cpu_s: float, full: bool) -> None:
        """Promise, or do not: to be called several times a second with the CPU time that this worker has used in its life.

        `full`: it may soon have to refuse connections that others have room for.
        """
        for worker, until in enumerate(self._until):
            if until <= now:
                self.lapsed_at[worker] = now
        busy = (cpu_s - self._seen_cpu_s) > _BUSY * (now - self._seen_s)
        self._seen_s, self._seen_cpu_s = now, cpu_s
        self._until[self.own] = 0.0 if busy or full else now + _PROMISE_S

    def take_back(self) -> None:
        """Promise no more, from now on: what comes would wait behind bulk."""
        self._until[self.own] = 0.0
