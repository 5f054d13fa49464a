"""What processes cost, checked on processes whose cost is known."""

import os
import socket
import subprocess
import sys
import time

import pytest

from bench.accounts import (
    command_of,
    cpu_s,
    kernel_bytes,
    kill,
    listens,
    machine_cpu_s,
    parent,
    pin,
    pss_bytes,
    started_s,
    stolen_s,
)

pytestmark = pytest.mark.unit
_BUSY = """import sys, time
end = time.process_time() + 0.2
while time.process_time() < end:
    pass
print(flush=True)
sys.stdin.read()"""


def test_cpu_of_another_process() -> None:
    machine = machine_cpu_s()  # before it begins, which may be before it is known here
    with subprocess.Popen([sys.executable, "-c", _BUSY], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = cpu_s([process.pid])
        assert 0.2 <= used < 2
        assert machine_cpu_s() - machine >= 0.15
        process.kill()
    assert cpu_s([process.pid]) == 0.0  # gone: counts nothing


def test_memory_and_name() -> None:
    assert 1 << 20 < pss_bytes(os.getpid()) < 1 << 31
    with subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"], stdout=-1, stderr=-1) as process:
        while command_of(process.pid) != "http.server":
            time.sleep(0.01)  # between fork and exec it is still this process
        process.kill()
    with pytest.raises(OSError):
        pss_bytes(process.pid)


def test_pinning() -> None:
    allowed = os.sched_getaffinity(0)
    last = {max(allowed)}
    with subprocess.Popen(["sleep", "60"]) as process:
        pin([process.pid], last)
        assert os.sched_getaffinity(process.pid) == last
        process.kill()
        process.wait()
        pin([process.pid], allowed)  # gone: left out
    assert stolen_s() >= 0


def test_kernel_memory_counts_objects_in_use() -> None:
    header = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize> ...\n"
    assert kernel_bytes(header + "TCP 10 20 2048 16 8 : tunables\nsock_inode_cache 3 5 832 39 8 : tunables\n") == 22_976
    if os.geteuid() == 0:
        assert kernel_bytes() > 1 << 20


def test_listeners_and_starts_are_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert listens(os.getpid(), port)
    assert not listens(os.getpid(), port)
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with subprocess.Popen(["sleep", "60"]) as process:
        assert before - 0.02 < started_s(process.pid) < time.clock_gettime(time.CLOCK_BOOTTIME) + 0.02
        assert parent(process.pid) == os.getpid()
        kill(process.pid)
        process.wait()
        kill(process.pid)  # gone: fine
