"""Which process of a node is its proxy."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import stage
from bench.stage import Stage

pytestmark = pytest.mark.unit

_NOBODY = 1 << 22
"""The kernel gives no such number."""
_FORKED = "import os, sys; child = os.fork(); child and print(child, flush=True); sys.stdin.read()"


def proxy_among(pids: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(stage, "pids_of", lambda _cgroup: pids)
    layout = SimpleNamespace(node_cgroup=lambda _node: Path("/"))
    return Stage(cast(Any, layout), cast(Any, None)).proxy("a")


def test_one_that_is_gone_since_it_was_listed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed a moment before, to see how soon the next one listens."""
    assert proxy_among([_NOBODY], monkeypatch) == 0


def test_a_worker_that_is_not_executed_yet_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", _FORKED, "-m", "ztunnel"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert proxy_among([process.pid, worker, _NOBODY], monkeypatch) == process.pid
