"""Workers as real processes: told everything, heard, and replaced with the same descriptors when they die."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.frozen import frozen
from ztunnel import channel, worker_process, workers
from ztunnel.framing import FrameReader, FrameWriter
from ztunnel.headroom import Headroom
from ztunnel.shortage import MEND

pytestmark = pytest.mark.unit

# A worker in small: answers what must be answered, and says in its gauges what else it was told.
PROGRAM = """
import os, signal, socket, sys
from ztunnel import channel, framing
sock = socket.socket(fileno=int(sys.argv[2]))
reader, writer, told, late = framing.FrameReader(), framing.FrameWriter(), {}, []
def say(message):
    writer.push(message)
    writer.flush(sock)
while True:
    data, fds = framing.receive(sock)
    if not data:
        sys.exit(0)
    for message, fds in reader.feed(data, fds):
        name = type(message).__name__
        told[name] = told.get(name, 0) + 1
        if name == "AddPod":
            told["fd_inode"] = os.fstat(fds[0]).st_ino
            if message.name == "mute":
                late.append(channel.PodAdded(message.uid, "", message.number))
                continue
            while late:
                say(late.pop())
            say(channel.PodAdded(message.uid, "no room" if message.name == "bad" else "", message.number))
        elif name == "QueryConnections":
            say(channel.Connections(message.number, []))
        elif name == "Shutdown":
            say(channel.WorkerStatus({"last words": 1}, {}))
            sys.exit(0)
        elif name == "RemovePod" and message.uid == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif name == "RemovePod":
            told["leads a session"] = os.getsid(0) == os.getpid()
            told["openssl.cnf"] = open(os.environ["OPENSSL_CONF"]).read().startswith("openssl_conf = ")
            say(channel.WorkerStatus(told, {}))
"""
NULL = os.open(os.devnull, os.O_RDONLY)
ASK = channel.RemovePod("what were you told?")


class World:
    """Two workers and what was heard of them."""

    def __init__(self, script: Path) -> None:
        self.heard: list[tuple[int, channel.FromWorker]] = []
        self.deaths: list[int] = []
        self.state: list[workers.Statement] = []
        self.command = (sys.executable, str(script))
        self.workers = workers.Workers(
            2,
            lambda index: [(channel.Configure("n", "", "c", "td", index), ()), *self.state],
            lambda index, message: self.heard.append((index, message)),
            self.deaths.append,
            self.command,
        )

    def gauges(self, index: int) -> dict[str, int]:
        return next((m.gauges for i, m in reversed(self.heard) if i == index and isinstance(m, channel.WorkerStatus)), {})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    monkeypatch.setattr(workers, "_ANSWER_TIMEOUT_S", 60)  # who is there may still import what it needs
    (tmp_path / "program.py").write_text(PROGRAM)

    async def main(scenario: Callable[[World], Awaitable[None]]) -> None:
        world = World(tmp_path / "program.py")
        running = asyncio.ensure_future(world.workers.run())
        await scenario(world)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    return lambda scenario: asyncio.run(asyncio.wait_for(main(scenario), 100))


def test_every_worker_is_told_and_the_first_error_counts(run: Any, eventually: Any) -> None:
    async def scenario(world: World) -> None:
        good, bad = channel.AddPod("1", "ns", "good", "sa"), channel.AddPod("2", "ns", "bad", "sa")
        await eventually(lambda: len(world.workers.alive) == 2)
        assert await world.workers.add_pod(good, [NULL]) == ""
        assert await world.workers.add_pod(bad, [NULL]) == "no room"
        assert await world.workers.query_connections() == ([], 0)
        world.workers.broadcast(ASK)
        await eventually(lambda: world.gauges(0) and world.gauges(1))
        expected = {"Configure": 1, "AddPod": 2, "fd_inode": os.fstat(NULL).st_ino, "QueryConnections": 1, "RemovePod": 1}
        assert world.gauges(0) == world.gauges(1) == {**expected, "openssl.cnf": True, "leads a session": True}

    run(scenario)


def test_a_worker_that_hangs_is_named_until_it_speaks_again(run: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await eventually(lambda: len(world.workers.alive) == 2)
        world.workers.broadcast(ASK)
        await eventually(lambda: world.gauges(0) and world.gauges(1))
        now, hung = time.monotonic(), world.workers.pids[1]
        assert world.workers.silent(now) == []
        assert [line[:8] for line in world.workers.silent(now + 11)] == ["worker 0", "worker 1"]
        monkeypatch.setattr(workers, "_SILENT_AFTER_S", 0.05)
        with frozen([hung]):
            named = f"worker 1, process {hung}, silent for "
            world.heard.clear()
            mend = f" s: it is stopped: kill -CONT {hung}"
            await eventually(
                lambda: any(line.startswith(named) and line.endswith(mend) for line in world.workers.silent(time.monotonic()))
            )
        world.workers.broadcast(ASK)
        await eventually(lambda: world.gauges(1))
        assert not any(line.startswith(named) for line in world.workers.silent(world.workers._workers[1].heard_at))

    run(scenario)


def test_a_dead_worker_is_replaced_with_all_it_must_know(run: Any, eventually: Any) -> None:
    async def scenario(world: World) -> None:
        await eventually(lambda: len(world.workers.alive) == 2)
        pids = world.workers.pids
        world.state = [(channel.AddPod("1", "ns", "pod", "sa"), [NULL])]
        seen = Headroom(world.workers.headroom_fd, 0)
        seen.renew(now := time.monotonic(), 0.0, full=False)
        assert seen.has_time(0, now)
        world.workers.broadcast(channel.RemovePod("die"))
        await eventually(lambda: sorted(world.deaths) == [0, 1] and len(world.workers.alive) == 2)
        assert not seen.has_time(0, now), "it promised to take connections"
        assert set(world.workers.pids.values()).isdisjoint(pids.values()) and world.workers.restarts == 2
        world.workers.broadcast(ASK)
        await eventually(lambda: world.gauges(0) and world.gauges(1))
        assert world.gauges(1)["AddPod"] == 1 and world.gauges(1)["fd_inode"] == os.fstat(NULL).st_ino

    run(scenario)


def test_a_large_state_is_told_in_pieces_and_what_changes_meanwhile_before_the_pods(
    tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_PIECE_BYTES", 1000)
    (tmp_path / "program.py").write_text(PROGRAM)
    large, turns, seen = channel.UpdateInventory([], ["x" * 1000]), [0], list[int]()

    def state(index: int) -> Iterator[workers.Statement]:
        yield channel.Configure("n", "", "c", "td", index), ()
        for _ in range(3):
            seen.append(turns[0])
            yield large, ()
        world.workers.broadcast(channel.SetLogLevels({}))
        world.workers.broadcast(channel.RemovePod("die"))  # of no concern to who has no pods yet
        yield channel.AddPod("1", "ns", "pod", "sa"), [NULL]
        seen.append(turns[0])
        yield channel.AddPod("2", "ns", "pod", "sa"), [NULL]
        assert seen[-1] == turns[0], "nobody can say anything from the first pod on"

    async def others() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def main() -> None:
        running = [asyncio.ensure_future(world.workers.run()), asyncio.ensure_future(others())]
        await eventually(lambda: world.workers.alive == [0])
        assert seen[0] < seen[1] < seen[2], "others have their turn"
        world.workers.broadcast(ASK)
        await eventually(lambda: world.gauges(0))
        told = {name: count for name, count in world.gauges(0).items() if name[0].isupper()}
        expected = {"Configure": 1, "UpdateInventory": 3, "SetLogLevels": 1, "AddPod": 2, "RemovePod": 1}
        assert list(told.items()) == list(expected.items()), "in this order"
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    world = World(tmp_path / "program.py")
    world.workers = workers.Workers(
        1, state, lambda index, message: world.heard.append((index, message)), world.deaths.append, world.command
    )
    asyncio.run(asyncio.wait_for(main(), 60))


def test_who_does_not_answer_in_time_is_an_error(run: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_ANSWER_TIMEOUT_S", 0.05)

    async def scenario(world: World) -> None:
        mute = channel.AddPod("1", "ns", "mute", "sa")
        await eventually(lambda: len(world.workers.alive) == 2)
        assert await world.workers.add_pod(mute, [NULL] * 4) == "the data workers do not answer"
        nobody = workers.Workers(1, lambda _: [], lambda *_: None, lambda _: None)
        assert await nobody.add_pod(mute, [NULL] * 4) == "no data worker is running"

    run(scenario)


def test_who_has_come_in_a_workers_place_owes_no_answer_to_what_that_one_was_asked(
    run: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_ANSWER_TIMEOUT_S", 600)

    async def scenario(world: World) -> None:
        await eventually(lambda: len(world.workers.alive) == 2)
        slow, dies = world.workers.pids.values()
        with frozen([slow]):
            os.kill(dies, signal.SIGSTOP)
            answered = asyncio.ensure_future(world.workers.query_connections())
            await asyncio.sleep(0)
            os.kill(dies, signal.SIGKILL)
            await eventually(lambda: world.workers.restarts == 1 and len(world.workers.alive) == 2)
            assert not answered.done(), "the other one lives, and will answer"
        assert await answered == ([], 0)

    run(scenario)


def test_workers_serve_when_they_answer_not_when_they_are_there(
    run: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_ANSWER_TIMEOUT_S", 600)

    async def scenario(world: World) -> None:
        await eventually(lambda: len(world.workers.alive) == 2)
        with frozen(list(world.workers.pids.values())):
            serving = asyncio.ensure_future(world.workers.await_serving())
            await eventually(lambda: world.workers._queries)
            assert not serving.done()
        await serving

    run(scenario)


def test_an_answer_that_comes_too_late_is_none_to_the_next_attempt(
    run: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_ANSWER_TIMEOUT_S", 0.05)

    async def scenario(world: World) -> None:
        await eventually(lambda: len(world.workers.alive) == 2)
        late = channel.AddPod("1", "ns", "mute", "sa", number=1)
        assert await world.workers.add_pod(late, [NULL]) == "the data workers do not answer"
        monkeypatch.setattr(workers, "_ANSWER_TIMEOUT_S", 60)
        assert await world.workers.add_pod(channel.AddPod("1", "ns", "bad", "sa", number=2), [NULL]) == "no room"

    run(scenario)


def test_a_worker_that_cannot_start_is_tried_again_ever_more_slowly(
    tmp_path: Path, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        pool = workers.Workers(1, lambda _: [], lambda *_: None, lambda _: None, (str(tmp_path / "absent"),))
        running = asyncio.ensure_future(pool.run())
        await eventually(lambda: pool.restarts >= 3)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
    assert "worker 0 cannot be started: " in caplog.text and "starting another in 0.4 s" in caplog.text


def test_where_the_system_starts_no_threads_the_other_workers_go_on(run: Any, eventually: Any) -> None:
    async def scenario(world: World) -> None:
        await eventually(lambda: len(world.workers.alive) == 2)
        other, usual = world.workers.pids[1], threading.stack_size()
        threading.stack_size(1 << 46)  # no thread finds room for that: Python 3.11 needs one for each child process
        try:
            os.kill(world.workers.pids[0], signal.SIGKILL)
            await eventually(lambda: world.deaths == [0])
            await eventually(lambda: world.workers.restarts > 1 or world.workers.alive == [0, 1])
        finally:
            threading.stack_size(usual)
        await eventually(lambda: world.workers.alive == [0, 1])
        assert world.workers.pids[1] == other

    run(scenario)


def test_a_worker_that_reads_nothing_is_replaced(tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "_MAX_PENDING_BYTES", 1 << 20)

    async def main() -> None:
        sleeper = tmp_path / "sleeper.py"
        sleeper.write_text("import time\ntime.sleep(1000)\n")
        pool = workers.Workers(1, lambda _: [], lambda *_: None, lambda _: None, (sys.executable, str(sleeper)))
        running = asyncio.ensure_future(pool.run())
        await eventually(lambda: pool.alive)
        pool.broadcast(channel.UpdateInventory([], ["x" * (2 << 20)]))
        await eventually(lambda: pool.restarts == 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_a_worker_of_which_memory_loses_bytes_is_replaced(
    run: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it says next would be read from the middle of something."""
    feed = FrameReader.feed
    failing = [True]

    def broken(self: FrameReader, data: bytes, fds: Sequence[int] = ()) -> list[tuple[object, list[int]]]:
        if failing:
            failing.pop()
            raise MemoryError
        return feed(self, data, fds)

    async def scenario(world: World) -> None:
        await eventually(lambda: len(world.workers.alive) == 2)
        monkeypatch.setattr(FrameReader, "feed", broken)
        world.workers.broadcast(ASK)
        await eventually(lambda: world.workers.restarts == 1 and world.workers.alive == [0, 1])
        assert not failing and MEND in caplog.text

    run(scenario)


@pytest.mark.parametrize("where", ["push_packed", "flush"])
def test_a_worker_that_cannot_be_told_for_want_of_memory_is_replaced_and_the_others_are_told(
    run: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """It would go on without a policy that the others have, or read the same bytes twice."""
    whole = getattr(FrameWriter, where)
    failing = [True]

    def broken(self: FrameWriter, *arguments: Any) -> Any:
        if failing:
            failing.pop()
            raise MemoryError
        return whole(self, *arguments)

    async def scenario(world: World) -> None:
        await eventually(lambda: len(world.workers.alive) == 2)
        before = world.workers.pids
        monkeypatch.setattr(FrameWriter, where, broken)
        world.workers.broadcast(ASK)
        await eventually(lambda: world.workers.restarts == 1 and world.workers.alive == [0, 1])
        (stayed,) = (index for index, pid in world.workers.pids.items() if pid == before[index])
        await eventually(lambda: world.gauges(stayed))
        assert not failing and MEND in caplog.text

    run(scenario)


def test_nobody_is_started_in_a_dead_workers_place_once_all_are_to_end(
    tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_FIRST_PAUSE_S", 600.0)
    monkeypatch.setattr(workers, "_LONGEST_PAUSE_S", 600.0)
    (tmp_path / "program.py").write_text(PROGRAM)

    async def main() -> None:
        world = World(tmp_path / "program.py")
        running = asyncio.ensure_future(world.workers.run())
        await eventually(lambda: len(world.workers.alive) == 2)
        os.kill(world.workers.pids[1], signal.SIGKILL)
        await eventually(lambda: world.workers.restarts == 1)
        await world.workers.shut_down(40)
        await running  # by itself
        assert world.deaths == [1, 0]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_shutdown_hears_last_words_and_leaves_no_process(run: Any, eventually: Any) -> None:
    async def scenario(world: World) -> None:
        await eventually(lambda: len(world.workers.alive) == 2)
        pids = world.workers.pids
        await world.workers.shut_down(40)
        await eventually(lambda: world.gauges(0) == world.gauges(1) == {"last words": 1})
        await eventually(lambda: not world.workers.alive and world.workers.restarts == 0)
        for pid in pids.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    run(scenario)
