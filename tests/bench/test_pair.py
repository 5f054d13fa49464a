"""Proxies that stand beside weft's get from the kernel what weft's get."""

import os
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.pair import start

pytestmark = pytest.mark.kernel


def test_each_proxy_has_a_session_of_its_own_and_ends_with_the_stack(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pids = [start(stack, Path("/proc/self/ns/net"), ["sleep", "60"], tmp_path / f"{number}.log") for number in range(2)]
        assert [os.getsid(pid) for pid in pids] == pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


_BENCH = """
import signal, sys
from contextlib import ExitStack
from pathlib import Path
from bench.pair import start
with ExitStack() as stack:
    print(start(stack, Path("/proc/self/ns/net"), ["sleep", "600"], Path(sys.argv[1])), flush=True)
    signal.pause()
"""


def test_none_outlives_a_bench_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _BENCH, tmp_path / "log"], stdout=subprocess.PIPE, text=True) as bench:
        assert bench.stdout is not None
        pid = int(bench.stdout.readline())
        proxy, until = os.pidfd_open(pid), time.monotonic() + 50
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":  # so its parent's death is arranged for
            assert time.monotonic() < until
            time.sleep(0.01)
        bench.kill()
    try:
        assert select.select([proxy], [], [], 50)[0], "the proxy goes on without its bench"
    finally:
        os.close(proxy)
