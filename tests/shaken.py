"""Tests under a scheduler that is never fair: `python -m tests.shaken [--turns N] [--seed S] [PYTEST ARGUMENT...]`, as root.

Busy loops take every CPU, and the threads of the run and of all programs that it starts draw anew several times a second
which of them idle (SCHED_IDLE, sched(7)): beside a busy loop those stand still for 10 to 300 ms while the others go on. Orders
of events that come once in a thousand plain runs come once in 20 here. A limit that is missed because all is slower, some three
times, says nothing.
"""

import argparse
import ctypes
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from pathlib import Path

_IDLING = 0.4
"""The share of threads that stand still."""
_PAUSE_S = (0.01, 0.3)
"""Between draws."""
_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n for _ in range(10**6): pass"
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def _threads(pid: int) -> Iterator[int]:
    """The threads of a process, and of those it started."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        yield int(thread.name)
        for child in (thread / "children").read_text().split():
            yield from _threads_left(int(child))


def _threads_left(pid: int) -> Iterator[int]:
    try:
        yield from _threads(pid)
    except (OSError, ValueError):  # ended meanwhile
        return


def _draw(chance: random.Random, never: Set[int]) -> None:
    """Let every thread below this process, but those, idle or run until the next draw."""
    for thread in set(_threads_left(os.getpid())) - never:
        idles = chance.random() < _IDLING
        try:
            os.sched_setscheduler(thread, os.SCHED_IDLE if idles else os.SCHED_OTHER, os.sched_param(0))
        except ProcessLookupError:
            continue


def _turn(arguments: list[str], chance: random.Random, never: Set[int]) -> int:
    """Run pytest once. Its exit status."""
    with subprocess.Popen([sys.executable, "-m", "pytest", "-q", *arguments]) as run:
        while run.poll() is None:
            _draw(chance, never)
            time.sleep(chance.uniform(*_PAUSE_S))
        return run.returncode


def main() -> int:
    """How many turns failed, or were none, at most 100."""
    parser = argparse.ArgumentParser(description="Run tests while random threads stand still.")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    settings, arguments = parser.parse_known_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what tests leave to itself is shaken, too
    failed = 0
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in os.sched_getaffinity(0)]
    never = {os.getpid(), *(loop.pid for loop in busy)}
    try:
        for turn in range(settings.turns):
            failed += _turn(arguments, random.Random(settings.seed + turn), never) != 0
            print(f"=== turn {turn + 1} of {settings.turns}: {failed} failed", flush=True)
    finally:
        for loop in busy:
            loop.kill()
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main())
