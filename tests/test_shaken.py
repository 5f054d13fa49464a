"""Tests that are shaken stand still by chance, and what then fails is counted."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]  # a run of pytest, beside busy loops
_WAITS_TO_IDLE = """
import os, subprocess, threading, time

def idles(thread):
    for _ in range(100_000):
        if os.sched_getscheduler(thread) == os.SCHED_IDLE:
            return True
        time.sleep(0.001)

def test_a_thread_and_a_program_that_is_nobodys_child_any_more():
    go = threading.Event()
    thread = threading.Thread(target=go.wait, daemon=True)
    thread.start()
    orphan = int(subprocess.check_output(["sh", "-c", "sleep 1000 >&2 & echo $!"]))
    assert idles(thread.native_id) and idles(orphan)
    go.set()
    os.kill(orphan, 9)

def test_that_fails():
    assert os.sched_getscheduler(0) is None
"""


def test_threads_and_programs_of_a_test_are_shaken_and_failed_turns_counted(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(_WAITS_TO_IDLE)
    program = [sys.executable, str(Path(__file__).with_name("shaken.py")), "--turns", "1"]
    run = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1 and "1 failed, 1 passed" in run.stdout, run.stdout
    assert run.stdout.splitlines()[-1] == "=== turn 1 of 1: 1 failed"
