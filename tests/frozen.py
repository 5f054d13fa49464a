"""Processes that stand still for a while, so that nobody does meanwhile what a test looks for."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.cgroup import processes


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Processes stand still for the length of a `with` block. Raises: AssertionError unless each of them runs."""
    with _stopped(pids) as stopped:
        assert len(stopped) == len(pids), f"of {pids} only {stopped} run"
        yield


@contextmanager
def frozen_group(folder: Path) -> Iterator[None]:
    """As `frozen`, of those that a cgroup has now: what a daemon starts may run for a moment only."""
    with _stopped(processes(folder)):
        yield


@contextmanager
def _stopped(pids: Sequence[int]) -> Iterator[list[int]]:
    """Those of them that there were to stop: one at least."""
    assert all(pid > 0 for pid in pids), f"{pids}: 0 would be this process and who waits for it"
    stopped: list[int] = []
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        assert stopped, f"of {pids} none runs"
        yield stopped
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):  # a test may have ended it
                os.kill(pid, signal.SIGCONT)
