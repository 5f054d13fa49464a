"""Metrics of the proxy itself."""

import subprocess
import sys

import pytest

from ztunnel.node_metrics import open_fds

pytestmark = pytest.mark.unit


def test_descriptors_of_any_process_are_counted() -> None:
    script = (
        "import os, sys\n"
        "for count in (100, 50):\n"
        "    [os.open('/dev/null', 0) for _ in range(count)]\n"
        "    print('there', flush=True)\n"
        "    sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        before = open_fds(process.pid)
        assert 103 <= before <= 110
        process.stdin.write(b"more\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"there\n"
        assert open_fds(process.pid) == before + 50
        process.kill()
        process.wait()
        assert open_fds(process.pid) == 0
