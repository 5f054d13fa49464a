"""Processes that stand still for a while, so that nobody does meanwhile what a test looks for."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Processes stand still for the length of a `with` block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
