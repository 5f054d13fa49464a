"""Programs of the lab: how long it waits between attempts, and whom it takes over."""

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import cgroup, supervision
from lab.launch import Launch
from lab.process import LaunchError, Process, Record, started_ticks
from lab.supervision import Program, pause_s
from tests.descriptors import open_descriptors
from wire.cgroup import cgroup2_mount


@pytest.fixture
def group() -> Iterator[Path]:
    path = cgroup2_mount() / f"weft-test-supervision-{os.getpid()}"
    cgroup.create(path)
    yield path
    cgroup.kill(path)
    cgroup.remove(path)


SLEEPER = ("sleep", "1000")


def with_program(
    group: Path,
    folder: Path,
    eventually: Any,
    scenario: Callable[[Program], Awaitable[None]],
    command: tuple[str, ...] = SLEEPER,
) -> None:
    """Run a program that does nothing; when the scenario is over, it alone runs."""

    async def run() -> None:
        launch = Launch(command, str(group), env={"PATH": os.defpath}, log=str(folder / "log"))
        program = Program("sleeper", lambda: launch, folder / "record.json")
        running = asyncio.ensure_future(program.run())
        await eventually(lambda: program.state.pid)
        await scenario(program)
        await eventually(lambda: cgroup.processes(group) == [program.state.pid])
        await program.stop()
        await running

    asyncio.run(run())


@pytest.mark.kernel
def test_of_two_replacements_at_once_one_is_refused(group: Path, tmp_path: Path, eventually: Any) -> None:
    async def ready(_: int) -> str:
        return ""

    async def scenario(program: Program) -> None:
        results = await asyncio.gather(program.replace(ready), program.replace(ready), return_exceptions=True)
        assert [type(one) for one in results] == [tuple, LaunchError]

    with_program(group, tmp_path, eventually, scenario)


@pytest.mark.kernel
def test_a_replacement_that_is_given_up_leaves_no_successor(group: Path, tmp_path: Path, eventually: Any) -> None:
    asked: list[int] = []

    async def unready(pid: int) -> str:
        asked.append(pid)
        return "it begins"

    async def scenario(program: Program) -> None:
        replacing = asyncio.ensure_future(program.replace(unready))
        await eventually(lambda: asked)
        assert sorted(cgroup.processes(group)) == sorted([program.state.pid, asked[0]])
        replacing.cancel()
        await asyncio.wait([replacing])

    with_program(group, tmp_path, eventually, scenario)


@pytest.mark.kernel
def test_a_successor_whose_predecessor_dies_before_it_is_ready_is_the_only_one(
    group: Path, tmp_path: Path, eventually: Any
) -> None:
    async def scenario(program: Program) -> None:
        first = program.state.pid
        living = {first}

        async def unready(pid: int) -> str:
            if living:  # once: it is called again while nobody has been told of the end yet
                os.kill(living.pop(), signal.SIGKILL)
            return "" if program.state.pid == pid and not program.state.reason else "it is not waited for yet"

        _, successor = await program.replace(unready)
        for _ in range(100):
            await asyncio.sleep(0)
        assert program.state.pid == successor and program.state.restarts == 1

    with_program(group, tmp_path, eventually, scenario)


@pytest.mark.kernel
def test_who_drains_outlives_its_successors_death(group: Path, tmp_path: Path, eventually: Any) -> None:
    """What it carries has nothing to do with that one."""

    async def ready(_: int) -> str:
        return ""

    async def scenario(program: Program) -> None:
        running = Path(f"/proc/{program.state.pid}/comm")
        await eventually(lambda: running.read_text() == "sleep\n")  # until then `env` itself would hear the signal
        drains, successor = await program.replace(ready)
        os.kill(successor, signal.SIGKILL)
        await eventually(lambda: program.state.pid not in (0, successor))
        assert sorted(cgroup.processes(group)) == sorted([drains, program.state.pid])
        os.kill(drains, signal.SIGKILL)

    with_program(group, tmp_path, eventually, scenario, ("env", "--ignore-signal=TERM", *SLEEPER))


@pytest.mark.kernel
def test_a_program_runs_though_nobody_can_write_it_down(
    group: Path, tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(record: Record, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(supervision, "keep_record", full)

    async def scenario(program: Program) -> None:
        first = program.state.pid
        assert first and cgroup.processes(group) == [first] and not program.state.reason

    with_program(group, tmp_path, eventually, scenario)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("exit 2", "ended with code 2: PORTS: 'x' is no port"),
        ("exit 0", "ended with code 0"),
        ("kill -9 $$", "ended with code 137"),
    ],
)
def test_who_ends_with_an_error_is_quoted(group: Path, tmp_path: Path, eventually: Any, ending: str, reason: str) -> None:
    script = f"echo usage; echo \"PORTS: 'x' is no port\" >&2; {ending}"

    async def run() -> None:
        launch = Launch(("sh", "-c", script), str(group), env={"PATH": os.defpath}, log=str(tmp_path / "log"))
        program = Program("p", lambda: launch, tmp_path / "record.json")
        running = asyncio.ensure_future(program.run())
        await eventually(lambda: program.state.reason == reason)
        await program.stop()
        await running

    asyncio.run(run())


@pytest.mark.unit
def test_a_later_process_with_the_number_is_let_be() -> None:
    before = open_descriptors()
    assert Process.adopt(Record(os.getpid(), started_ticks(os.getpid()) - 1)) is None
    assert not open_descriptors() - before


@pytest.mark.unit
def test_pauses_double_up_to_a_limit() -> None:
    assert [pause_s(failures, 0.5, 4.0) for failures in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert pause_s(10_000, 0.5, 4.0) == 4.0
