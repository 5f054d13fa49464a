"""Processes that stand still for a while, so that nobody does meanwhile what a test looks for."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Processes stand still for the length of a `with` block."""
    try:
        _send(signal.SIGSTOP, pids)
        yield
    finally:
        _send(signal.SIGCONT, pids)


def _send(number: signal.Signals, pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it ran for a moment only, as what a daemon starts may
            os.kill(pid, number)
