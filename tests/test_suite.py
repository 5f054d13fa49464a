"""A test that fails by chance is named, and does not fail the run; one that fails again does."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.unit, pytest.mark.timeout(400)]  # up to four runs of pytest
_FAILS = """
from pathlib import Path
from time import sleep

def test_it():
    turns = Path(__file__).with_suffix(".turns")
    turns.write_text(turns.read_text() + "x" if turns.exists() else "x")
    assert len(turns.read_text()) not in {failing}
"""

_PROGRAM = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import suite; sys.exit(suite.run([]))"
_HASTY = _PROGRAM.replace("sys.exit", "suite._LONG_TURN_S = 60; sys.exit")


def _suite(folder: Path, *failing: str, program: str = _PROGRAM) -> "subprocess.CompletedProcess[str]":
    """Run a suite of files each of which fails in the turns named."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    for number, turns in enumerate(failing):
        (folder / f"test_{number}.py").write_text(_FAILS.replace("{failing}", turns))
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)


def _turns(folder: Path) -> list[int]:
    return [len((folder / f"test_{number}.turns").read_text()) for number in range(len(list(folder.glob("test_*.py"))))]


def test_what_fails_once_is_named_last_and_forgiven(tmp_path: Path) -> None:
    run = _suite(tmp_path, "()", "(1,)")
    assert run.returncode == 0 and _turns(tmp_path) == [1, 4], run.stdout
    assert "assert 1 not in (1,)" in run.stdout, "its failure is there to be read"
    last = run.stdout.splitlines()[-1]
    assert last.startswith("FAILED ONCE, passed 3 further turns") and last.endswith("test_1.py::test_it")


@pytest.mark.parametrize("again", (2, 3, 4))
def test_what_fails_again_in_any_turn_fails_the_run(tmp_path: Path, again: int) -> None:
    run = _suite(tmp_path, "()", f"(1, {again})")
    assert run.returncode == 1 and _turns(tmp_path) == [1, again], run.stdout


def test_failures_in_many_files_have_no_further_turn(tmp_path: Path) -> None:
    run = _suite(tmp_path, "(1,)", "(1,)", "(1,)")
    assert run.returncode == 1 and _turns(tmp_path) == [1, 1, 1], run.stdout


def test_what_takes_too_long_in_a_further_turn_is_ended_and_fails_the_run(tmp_path: Path) -> None:
    run = _suite(tmp_path, "(1,)\n    if len(turns.read_text()) == 2: sleep(1000)", program=_HASTY)
    assert run.returncode == 1 and _turns(tmp_path) == [2], run.stdout
    assert "=== ended after 60 s" in run.stdout and "KeyboardInterrupt" in run.stdout


def test_a_run_that_passes_and_one_that_finds_nothing_end_as_pytest_does(tmp_path: Path) -> None:
    assert _suite(tmp_path, "()").returncode == 0 and _turns(tmp_path) == [1]
    (tmp_path / "empty").mkdir()
    assert _suite(tmp_path / "empty").returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "test_broken.py").write_text("import nothing_of_that_name")
    assert _suite(tmp_path / "broken").returncode == pytest.ExitCode.INTERRUPTED
