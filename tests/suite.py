"""The whole suite, as `make test` runs it: `python -m tests.suite [PATH...]`.

Thousands of tests wait for real kernels, processes and clocks; on a machine that others keep busy one of them now and then
meets a limit, or an order, that nothing promised. So tests that failed have three more turns, in processes of their own, and
all three must pass; failures in more than a few files are no chance, and have none, nor have those of a run that took long.
What passed in the end is named in the last lines all the same, with its failure above: a fault of the test, of another test
that left something behind, or of weft, that shows rarely wants mending too.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

_TURNS = 3
_FEW_FILES = 2
"""Failures in more files than that are no chance."""
_LONG_S, _LONG_TURN_S, _END_S = 30 * 60, 300, 60
"""A run that has no further turns, a turn that has failed, and what that has to clean up: together below 40 minutes."""


def _run_pytest(*arguments: str, timeout_s: float | None = None) -> int:
    """Its exit status; one that takes too long is interrupted, and has failed."""
    with subprocess.Popen([sys.executable, "-m", "pytest", "-q", *arguments]) as run:
        try:
            return run.wait(timeout_s)
        except subprocess.TimeoutExpired:
            print(f"=== ended after {timeout_s} s", flush=True)
            run.send_signal(signal.SIGINT)
            try:
                return run.wait(_END_S) or int(pytest.ExitCode.INTERRUPTED)
            except subprocess.TimeoutExpired:
                run.kill()
                return int(pytest.ExitCode.INTERRUPTED)


def _passes_further_turns(names: list[str]) -> bool:
    for turn in range(_TURNS):
        print(f"=== failed, turn {turn + 1} of {_TURNS} more: {' '.join(names)}", flush=True)
        if _run_pytest("-p", "no:cacheprovider", *names, timeout_s=_LONG_TURN_S):
            return False
    return True


def run(paths: list[str]) -> int:
    """The exit status, as pytest's. Says last what passed only in further turns."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weft-suite-") as cache:
        status = _run_pytest("-o", f"cache_dir={cache}", *paths)
        found = Path(cache, "v/cache/lastfailed")
        names = list(json.loads(found.read_bytes())) if found.exists() else []
    few = len({name.partition("::")[0] for name in names}) <= _FEW_FILES
    if status != pytest.ExitCode.TESTS_FAILED or not few or time.monotonic() - began_s > _LONG_S:
        return status
    if not _passes_further_turns(names):
        return status
    for name in names:
        print(f"FAILED ONCE, passed {_TURNS} further turns, wants mending (its failure is above): {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
