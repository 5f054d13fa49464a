"""Where memory ends: a worker ends with it and is replaced, a supervisor too, and the log says what to do."""

import asyncio
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from ztunnel.channel import Configure, UpdateInventory, WorkerStatus
from ztunnel.framing import FrameReader, pack, receive
from ztunnel.shortage import MEND, oom_kills
from ztunnel.supervisor import Supervisor
from ztunnel.worker_process import how_it_ended

pytestmark = pytest.mark.unit


def test_a_worker_whose_memory_ends_says_so_and_ends() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "ztunnel.worker", "--channel", str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True) as worker:
        theirs.close()
        ours.sendall(pack(Configure("n", "", "c", "td", 0)))
        reader, heard = FrameReader(), []
        while not heard:  # it has all that it needs to turn
            heard = [message for message, _ in reader.feed(*receive(ours))]
        assert isinstance(heard[0], WorkerStatus)
        pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[0])
        size = pages * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (size, size))
        with pytest.raises(OSError, match=r"reset|pipe"):  # what it had read of it is lost
            while True:
                ours.sendall(pack(UpdateInventory([], ["x" * (8 << 20)])))
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 1, said
    assert "no memory is left: this worker ends" in said and MEND in said and "Traceback" not in said


def test_kills_by_the_kernel_are_counted_where_it_tells(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 7\noom_killer 9\n")
    assert oom_kills(tmp_path / "vmstat") == 7
    (tmp_path / "vmstat").write_text("nr_free_pages 5\n")
    assert oom_kills(tmp_path / "vmstat") == oom_kills(tmp_path / "hidden") == 0
    assert "\noom_kill " in Path("/proc/vmstat").read_text()


def test_an_end_by_want_of_memory_is_told_with_the_mend() -> None:
    assert how_it_ended(-signal.SIGKILL, killed_for_memory=True).endswith(MEND)
    assert how_it_ended(-signal.SIGKILL) == "was killed by SIGKILL"
    assert how_it_ended(-signal.SIGTERM, killed_for_memory=True) == "was killed by SIGTERM"


@pytest.mark.parametrize("error", [MemoryError(), ExceptionGroup("of its tasks", [ValueError(), MemoryError()])])
def test_a_part_of_the_supervisor_whose_memory_ends_is_its_end_in_one_line(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def part() -> None:
        raise error

    async def scenario() -> tuple[bool, int]:
        supervisor = Supervisor.__new__(Supervisor)
        supervisor._end, supervisor._exit_code = asyncio.Event(), 0
        await supervisor._watch("certificates", part)
        return supervisor._end.is_set(), supervisor._exit_code

    assert asyncio.run(scenario()) == (True, 1)
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.CRITICAL, None)
    assert record.getMessage() == f"certificates: no memory is left: ending; {MEND}"


def test_it_ends_where_none_is_left_for_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError

    async def scenario() -> None:
        supervisor = Supervisor.__new__(Supervisor)
        supervisor._end, supervisor._exit_code = asyncio.Event(), 0
        monkeypatch.setattr(logging.Logger, "makeRecord", broken)
        with pytest.raises(MemoryError):
            await supervisor._watch("certificates", cast("Any", broken))
        assert supervisor._end.is_set() and supervisor._exit_code == 1

    asyncio.run(scenario())


STARTING = """
import sys
from ztunnel import __main__ as entry

async def run(config):
    raise MemoryError

entry._run = run
sys.argv = ["ztunnel", "--node", "n"]
sys.exit(entry.main())
"""


def test_a_proxy_that_has_no_memory_to_run_says_so_in_one_line() -> None:
    ended = subprocess.run([sys.executable, "-c", STARTING], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, f"weft-ztunnel: no memory is left: {MEND}\n")
