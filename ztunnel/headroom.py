"""Which of a node's workers have time for more connections, and which carry small messages: a table in memory that all share.

Connections of one pod that are in one worker share its tunnel and its turns, and cost less the more there are: so each pod has
a worker that takes all of them, until that one is busy. A worker that is not promises so for a moment, again and again. So
nothing has to be taken back of one that hangs, and nobody waits for anybody: each number has one writer.

Who carries small messages says so because the others' bulk keeps CPUs busy for which they, and their applications, wait.
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
    os.ftruncate(fd, 2 * workers * _NUMBER_BYTES)
    return fd


def withdraw(fd: int, worker: int) -> None:
    """A worker is gone, and its promise with it."""
    os.pwrite(fd, bytes(_NUMBER_BYTES), worker * _NUMBER_BYTES)


class Headroom:
    """The table as one worker sees it."""

    def __init__(self, fd: int, own: int) -> None:
        """`own`: which number is this worker's. The descriptor stays the caller's."""
        self.own = own
        table = memoryview(mmap.mmap(fd, os.fstat(fd).st_size)).cast("d")
        workers = len(table) // 2
        self._until = table[:workers]
        """Monotonic seconds, as those that follow."""
        self._small_at = table[workers:]
        """When each worker last carried a small message."""
        self.lapsed_at = [0.0] * len(self._until)
        """When each worker was last seen without a promise, by `renew`."""
        self._seen_s = self._seen_cpu_s = 0.0
        self._small_before = 0.0

    def home_of(self, uid: str) -> int:
        """The worker of a pod's connections."""
        return crc32(uid.encode()) % len(self._until)

    def has_time(self, worker: int, now: float) -> bool:
        """Whether a worker promised to take who comes."""
        return self._until[worker] > now

    def others_have_time(self, now: float) -> bool:
        """Whether another worker promised to take who comes."""
        return any(until > now for worker, until in enumerate(self._until) if worker != self.own)

    def renew(self, now: float, cpu_s: float, full: bool) -> None:
        """Promise, or do not: to be called several times a second with the CPU time that this worker has used in its life.

        `full`: it may soon have to refuse connections that others have room for, or does not listen for them yet, or cannot.
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

    def small_elsewhere_at(self, now: float, small_at: float) -> float:
        """Tell when this worker last carried a small message, and learn when another one last had; to be called with `renew`.

        What is told goes on from call to call: bulk begins with small messages, too.
        """
        goes_on = small_at > self._small_before > now - _PROMISE_S
        self._small_before = small_at
        self._small_at[self.own] = small_at if goes_on else 0.0
        return max((at for worker, at in enumerate(self._small_at) if worker != self.own), default=0.0)
