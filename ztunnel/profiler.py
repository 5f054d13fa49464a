"""Profiles of a proxy: of its CPU time, and of the memory that it takes, in the supervisor and all workers at once."""

import asyncio
import time

from ztunnel import sampling
from ztunnel.channel import ProfileKind
from ztunnel.workers import Workers

MAX_SECONDS, USUAL_SECONDS = 300, 10
MAX_FREQUENCY, USUAL_FREQUENCY = 1000, 100
"""Samples a second. These are Istio's ztunnel's."""
_GRACE_S = 2.0
"""Until workers have ended what they began."""


class Profiler:
    """One profile at a time."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._until_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether one is being taken, be it for somebody who has gone."""
        return time.monotonic() < self._until_s

    async def take(self, kind: ProfileKind, seconds: int, frequency: int) -> bytes:
        """Watch the supervisor and its workers for a while."""
        from ztunnel.pprof import encode  # only here: who never asks needs none of it in memory

        began_ns = time.time_ns()
        self._until_s = time.monotonic() + seconds + _GRACE_S
        end = sampling.begin(kind, frequency)
        try:
            theirs, _ = await asyncio.gather(self._workers.take_profiles(kind, seconds, frequency), asyncio.sleep(seconds))
        finally:
            ours = end()
        seen = {"supervisor": ours} | {f"worker {index}": stacks for index, stacks in theirs.items()}
        packed = await asyncio.to_thread(encode, kind, seen, began_ns, seconds, frequency)
        self._until_s = 0.0
        return packed
