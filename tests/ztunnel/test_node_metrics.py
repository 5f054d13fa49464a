"""Metrics of the proxy itself."""

import os
import subprocess
import sys

import pytest

from ztunnel.node_metrics import open_fds

pytestmark = pytest.mark.unit


def test_descriptors_of_any_process_are_counted() -> None:
    script = "import os, sys; [os.open('/dev/null', 0) for _ in range(100)]; print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        assert 103 <= open_fds(process.pid) <= 110
        process.kill()
        process.wait()
        assert open_fds(process.pid) == 0
    before = open_fds(os.getpid())
    fds = [os.dup(2) for _ in range(50)]
    assert open_fds(os.getpid()) == before + 50
    for fd in fds:
        os.close(fd)
