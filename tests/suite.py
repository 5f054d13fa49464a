"""The whole suite, as `make test` runs it: `python -m tests.suite [PATH...]`.

Thousands of tests wait for real kernels, processes and clocks; on a machine that others keep busy one of them now and then
meets a limit, or an order, that nothing promised. So tests that failed have three more turns, in processes of their own, and
all three must pass; failures in more than a few files are no chance, and have none. What passed in the end is named in the last
lines all the same, with its failure above: a fault of the test, or of weft, that shows rarely wants mending too.
"""

import subprocess
import sys

import pytest

_TURNS = 3
_FEW_FILES = 2
"""Failures in more files than that are no chance."""


class Failures:
    """The tests that failed, or could not be set up or taken down, in the order of the run (a pytest plugin)."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down what failed."""
        if report.failed:
            self.names[report.nodeid] = None

    def are_few(self) -> bool:
        """Whether chance may have brought them about."""
        return 0 < len({name.partition("::")[0] for name in self.names}) <= _FEW_FILES


def _turns_passed(names: list[str]) -> int:
    """How many of the further turns pass in a row; the first that does not is the last."""
    for turn in range(_TURNS):
        print(f"=== failed, turn {turn + 1} of {_TURNS} more: {' '.join(names)}", flush=True)
        if subprocess.run([sys.executable, "-m", "pytest", "-q", *names], check=False).returncode:
            return turn
    return _TURNS


def run(paths: list[str]) -> int:
    """The exit status, as pytest's. Says last what passed only in further turns."""
    failures = Failures()
    status = int(pytest.main(["-q", *paths], plugins=[failures]))
    if status != pytest.ExitCode.TESTS_FAILED or not failures.are_few():
        return status
    names = list(failures.names)
    if _turns_passed(names) < _TURNS:
        return status
    for name in names:
        print(f"FAILED ONCE, passed {_TURNS} further turns, wants mending (its failure is above): {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
