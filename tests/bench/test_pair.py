"""Proxies that stand beside weft's get from the kernel what weft's get."""

import os
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
