"""What to do about a part that does not answer: seen on a real process behind a real socket."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.mend import continue_it

pytestmark = pytest.mark.unit

_SERVE = """
import socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[1]); server.listen(); print("listens", flush=True); sys.stdin.read()
"""


def test_a_stopped_process_is_named_and_a_running_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    command = [sys.executable, "-c", _SERVE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            assert continue_it(path) == ""
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert continue_it(path) == f"its process {process.pid} is stopped: continue it with: kill -CONT {process.pid}"
        finally:
            process.kill()
    assert continue_it(path) == "" == continue_it(tmp_path / "missing")
