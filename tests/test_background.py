"""A run of the tests in the background of a shell, or under nohup, is like any other."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit


def test_programs_hear_the_signals_that_the_run_itself_ignores() -> None:
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/wire/test_endings.py"]
    run = subprocess.run(
        ["sh", "-c", 'trap "" INT QUIT HUP; exec "$@"', "sh", *pytest_run],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=115,
    )
    assert run.returncode == 0, run.stdout
