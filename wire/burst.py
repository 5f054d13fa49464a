"""Bursts of work in pieces, between which whoever waits for this CPU has it.

The kernel lets who runs go on for its slice, 1.4 ms or more, whoever wakes up meanwhile. Many events worked off in one go would
so hold up every connection whose client, server or worker happens to share the CPU.
"""

import os
import time

PIECE_NS = 100_000


class Burst:
    """A burst of steps, and then the next: one of it serves for ever."""

    __slots__ = ("_began_ns",)

    def __init__(self) -> None:
        self._began_ns = 0

    def give_way(self) -> None:
        """Call between two steps: gives the CPU away when `PIECE_NS` have passed since the last time."""
        if time.monotonic_ns() - self._began_ns >= PIECE_NS:
            os.sched_yield()
            self._began_ns = time.monotonic_ns()
