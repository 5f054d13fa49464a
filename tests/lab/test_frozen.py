"""What the tests hold still themselves: nobody but whom they name, and somebody at least."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frozen import frozen, frozen_group

pytestmark = pytest.mark.unit

NOBODY = 2**22 + 1
"""More than any pid: see proc_sys_kernel(5), pid_max."""


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, signal.Signals]]:
    """Those that were sent, to nobody."""
    sent: list[tuple[int, signal.Signals]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


@pytest.mark.parametrize("pids", [[], [0], [1, 0], [-1]])
def test_what_stands_for_no_process_or_for_many_is_sent_nothing(
    pids: list[int], signals: list[tuple[int, signal.Signals]]
) -> None:
    with pytest.raises(AssertionError), frozen(pids):
        raise RuntimeError("nobody stands still")
    assert signals == []


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "infinity"]) as made:
        yield made
        made.kill()


def hears(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it ends when it is told to: one that stands still would not."""
    process.terminate()
    return process.wait(100) == -signal.SIGTERM


def test_who_runs_stands_still_for_the_length_of_the_block(process: "subprocess.Popen[bytes]") -> None:
    with frozen([process.pid]):
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert hears(process)


def test_one_of_those_that_are_named_must_not_have_ended(process: "subprocess.Popen[bytes]") -> None:
    with pytest.raises(AssertionError, match="only"), frozen([process.pid, NOBODY]):
        raise RuntimeError("one does not stand still")
    assert hears(process)


def test_of_a_group_those_that_are_left_stand_still(process: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    listed = tmp_path / "cgroup.procs"
    listed.write_text(f"{NOBODY}\n{process.pid}\n")
    with frozen_group(tmp_path):
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert hears(process)
    listed.write_text(f"{NOBODY}\n")
    with pytest.raises(AssertionError, match="none"), frozen_group(tmp_path):
        raise RuntimeError("nobody stands still")
