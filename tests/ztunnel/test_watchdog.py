"""A data worker that hangs is replaced; one that is stopped, watched, starved or merely slow is not."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ztunnel import channel, watchdog, workers
from ztunnel.watchdog import Look, Watchdog, look_at

pytestmark = pytest.mark.unit

PATIENCE_S = 30.0
ASLEEP, STARVED, STOPPED = Look("S", False, 1.0), Look("R", False, 1.0), Look("T", False, 1.0)

# A real worker, which says something every 20 ms, and can be made to hang.
PROGRAM = """
import os, sys
from ztunnel import worker
def hang(self, node, message, fds):
    if "sleep" in message.answers:
        os.read(os.pipe()[0], 1)
    while "spin" in message.answers:
        pass
worker.STATUS_S = 0.02
worker.Worker._answered = hang
open(os.path.join(os.path.dirname(__file__), f"ready.{os.getpid()}"), "w").close()
worker.main(sys.argv[1:])
"""


def looks(*of_one: Look, every_s: float = 1.0, heard_at: Callable[[int], float] = lambda _: 0.0) -> list[int]:
    """At which looks at one process it is said to hang."""
    dog = Watchdog(PATIENCE_S)
    return [at for at, look in enumerate(of_one) if dog.judge(at * every_s, {7: (heard_at(at), look)})]


def busy(at: int, share: float) -> Look:
    return Look("R", False, at * share)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_who_is_asleep_or_busy_for_so_long_hangs(share: float) -> None:
    assert looks(*[ASLEEP] * 40) == [30]
    assert looks(*(busy(at, share) for at in range(40))) == [30]


def test_evidence_is_what_it_did_meanwhile() -> None:
    dog = Watchdog(PATIENCE_S)
    found = [dog.judge(at, {7: (0.0, busy(at, 0.5)), 8: (0.0, ASLEEP)}) for at in range(62)]
    assert [one for one in found if one] == [(7, "busy, with 15.0 s of CPU"), (7, "busy, with 15.0 s of CPU")]


def test_who_speaks_is_patiently_waited_for_anew() -> None:
    assert looks(*[ASLEEP] * 200, heard_at=lambda at: at // 25 * 25.0) == []


def test_who_gets_no_cpu_on_a_node_that_is_overloaded_does_not_hang() -> None:
    assert looks(*[STARVED] * 1000) == []
    assert looks(*(busy(at, 0.01) for at in range(900))) == []
    assert looks(*(Look("S", False, at * 0.01) for at in range(900))) == [], "it wakes up again and again"


def test_who_waits_for_the_disk_does_not_hang() -> None:
    assert looks(*[Look("D", False, 1.0)] * 1000) == []


@pytest.mark.parametrize("look", [STOPPED, Look("t", True, 1.0), Look("S", True, 1.0), Look("R", True, 1.0)])
def test_who_is_stopped_or_watched_by_a_debugger_does_not_hang_and_has_all_its_time_afterwards(look: Look) -> None:
    assert looks(*[ASLEEP] * 29, *[look] * 100) == []
    assert looks(*[ASLEEP] * 29, look, *[ASLEEP] * 40) == [59]


def test_time_in_which_nobody_ran_does_not_count() -> None:
    assert looks(*[ASLEEP] * 100, every_s=600.0) == []
    dog = Watchdog(PATIENCE_S)
    times = [*range(20), *range(3600, 3640)]  # frozen for an hour
    assert [now for now in times if dog.judge(now, {7: (0.0, ASLEEP)})] == [3611]


def test_one_at_a_time() -> None:
    dog = Watchdog(PATIENCE_S)
    running = dict.fromkeys((7, 8, 9), (0.0, ASLEEP))
    found = []
    for now in range(200):
        if hung := dog.judge(now, running):
            found.append((now, hung[0]))
            del running[hung[0]]
    assert found == [(30, 7), (61, 8), (92, 9)]


def test_a_look_at_a_process() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        stopped = look_at(process.pid)
        assert stopped is not None and (stopped.state, stopped.traced) == ("T", False) and stopped.cpu_s < 1
        process.kill()
    assert look_at(process.pid) is None
    own = look_at(os.getpid())
    assert own is not None and own.state == "R" and own.cpu_s > 0


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any) -> Iterator[Callable[[Any], None]]:
    """Two real workers under a watchdog that is in a hurry."""
    monkeypatch.setattr(watchdog, "EVERY_S", 0.05)
    monkeypatch.setattr(workers, "EVERY_S", 0.05)
    monkeypatch.setattr(workers, "SPEAKS_EVERY_S", 0.3)
    (tmp_path / "program.py").write_text(PROGRAM)

    async def main(scenario: Any) -> None:
        state = [(channel.Configure("n", "", "c", "td", 0), ())]
        command = (sys.executable, str(tmp_path / "program.py"))
        told = asyncio.Event()
        made = workers.Workers(2, lambda _: state, lambda *_: None, lambda _: None, command, told=told, patience_s=0.3)
        running = asyncio.ensure_future(made.run())
        await eventually(lambda: len(list(tmp_path.glob("ready.*"))) == 2)  # all is imported, and nothing takes long any more
        told.set()
        await scenario(made)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    yield lambda scenario: asyncio.run(asyncio.wait_for(main(scenario), 60))


@pytest.mark.parametrize("how", ["sleep", "spin"])
def test_a_worker_that_hangs_says_where_and_is_replaced(
    pool: Any, eventually: Any, how: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario(made: workers.Workers) -> None:
        await eventually(lambda: len(made.alive) == 2)
        before = made.pids
        made._workers[1].tell(channel_frame(how))
        # Once or more: a successor that a busy machine lets begin slowly may seem to hang too, to one in such a hurry.
        await eventually(lambda: made.hangs and made.restarts and len(made.alive) == 2)
        assert made.pids[0] == before[0] and made.pids[1] != before[1]

    pool(scenario)
    assert "hangs: silent for " in caplog.text and "worker 1 was killed by SIGKILL" in caplog.text
    assert ("asleep, after" if how == "sleep" else "busy, with") in caplog.text
    assert "in hang\n" in capfd.readouterr().err


def test_a_worker_that_is_stopped_is_left_alone(pool: Any, eventually: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(made: workers.Workers) -> None:
        await eventually(lambda: len(made.alive) == 2)
        stopped = made._workers[1]
        os.kill(stopped.process.pid, signal.SIGSTOP)
        made._workers[0].tell(channel_frame("sleep"))
        await eventually(lambda: made.hangs and made.restarts)  # so much time is enough for one that hangs
        silent_since = stopped.heard_at
        os.kill(stopped.process.pid, signal.SIGCONT)
        await eventually(lambda: stopped.heard_at > silent_since)
        assert made._workers[1] is stopped

    pool(scenario)
    assert "worker 0 (process " in caplog.text and "worker 1 " not in caplog.text


def channel_frame(how: str) -> bytes:
    return workers.framing.pack(channel.Answered({how: ""}), 0)
