"""The event loop: order within a turn, time, and one crash that stays one crash."""

import logging
import math
import os
import select
import time
from collections.abc import Iterator

import pytest

from ztunnel.alarm import Alarm
from ztunnel.loop import IN, LOOKUPS_PER_TURN, MANY_BULKY_TURNS, OVERTIME_S, Deadlines, Loop

pytestmark = pytest.mark.unit


class Reader:
    """Reads a pipe; does what the test says."""

    def __init__(self, loop: Loop, fd: int, crash: bool = False) -> None:
        self.loop, self.fd, self.crash = loop, fd, crash
        self.log: list[str] = []

    def on_event(self, _events: int) -> None:
        self.log.append(os.read(self.fd, 10).decode())
        self.loop.dirty[self] = None
        if self.crash:
            raise RuntimeError("a bug")

    def flush(self) -> None:
        self.log.append("flush")

    def crashed(self, error: Exception) -> None:
        self.log.append(f"crashed: {error}")
        self.loop.forget(self.fd)


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe(), os.pipe()]
    yield made
    for pair in made:
        for fd in pair:
            os.close(fd)


def test_a_turn_flushes_once_after_all_events(pipes: list[tuple[int, int]]) -> None:
    loop = Loop()
    readers = [Reader(loop, read) for read, _ in pipes]
    for reader, (_, write) in zip(readers, pipes, strict=True):
        loop.watch(reader.fd, IN, reader)
        os.write(write, b"x")
    loop.turn(1.0)
    assert [reader.log for reader in readers] == [["x", "flush"], ["x", "flush"]]


def test_a_crash_ends_its_own_object_only(pipes: list[tuple[int, int]], caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    bad, good = Reader(loop, pipes[0][0], crash=True), Reader(loop, pipes[1][0])
    for reader, (_, write) in zip((bad, good), pipes, strict=True):
        loop.watch(reader.fd, IN, reader)
        os.write(write, b"x")
    with caplog.at_level(logging.CRITICAL):
        loop.turn(1.0)
        os.write(pipes[0][1], b"y")
        os.write(pipes[1][1], b"y")
        loop.turn(1.0)
    assert "crashed: a bug" in bad.log and "y" not in bad.log and good.log == ["x", "flush", "y", "flush"]


class Exhausted(Reader):
    """Meets the end of memory: at once, when it writes, or when it is to be closed for something else."""

    def __init__(self, loop: Loop, fd: int, where: str) -> None:
        super().__init__(loop, fd, crash=where == "crashed")
        self.where = where
        if where == "timer":
            loop.call_at(loop.now, self.go_on)
        if where == "afterwards":
            loop.afterwards.append((self.go_on, self))
        if where == "go_on":
            loop.rota.add(self, self)

    def on_event(self, events: int) -> None:
        super().on_event(events)
        if self.where == "event":
            raise MemoryError

    def flush(self) -> None:
        if self.where == "flush":
            raise MemoryError

    def go_on(self) -> None:
        raise MemoryError

    def crashed(self, error: Exception) -> None:
        assert self.where == "crashed", "what is closed after it takes memory, and is worth nothing"
        raise MemoryError


@pytest.mark.parametrize("where", ["event", "flush", "go_on", "afterwards", "timer", "crashed"])
def test_where_memory_ends_the_loop_does(where: str, pipes: list[tuple[int, int]], caplog: pytest.LogCaptureFixture) -> None:
    """It comes between two halves of a change: an account that is wrong from then on, a timer that never comes again."""
    loop = Loop()
    reader = Exhausted(loop, pipes[0][0], where)
    loop.watch(reader.fd, IN, reader)
    os.write(pipes[0][1], b"x")
    with caplog.at_level(logging.CRITICAL), pytest.raises(MemoryError):
        for _ in range(3):
            loop.turn(1.0)


def test_who_comes_behind_what_ends_the_loop_is_not_served(
    pipes: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    """A change of policies that breaks off ends the worker: nobody is let in by half of it in that turn."""

    class Channel(Reader):
        def crashed(self, error: Exception) -> None:
            self.loop.running = False

    loop = Loop()
    readers = [Channel(loop, pipes[0][0], crash=True), Channel(loop, pipes[1][0], crash=True)]
    for reader, (_, write) in zip(readers, pipes, strict=True):
        loop.watch(reader.fd, IN, reader)
        os.write(write, b"x")
    with caplog.at_level(logging.CRITICAL):
        loop.run()
    assert sorted(reader.log for reader in readers) == [[], ["x"]]


def test_timers_run_in_order_and_a_bad_one_is_contained(caplog: pytest.LogCaptureFixture) -> None:
    loop, log = Loop(), []
    loop.call_at(loop.now + 0.02, lambda: log.append("second"))
    loop.call_at(loop.now + 0.01, lambda: log.append("first"))
    loop.call_at(loop.now, lambda: 1 // 0)
    loop.every(0.015, lambda: log.append("again"))
    with caplog.at_level(logging.CRITICAL):
        while len(log) < 5:
            loop.turn(1.0)
    assert log[:3] == ["first", "again", "second"] and set(log[3:]) == {"again"}


def test_who_is_due_before_all_others_ends_a_wait_without_a_limit() -> None:
    loop, log = Loop(), []
    loop.call_at(loop.now + 3600, lambda: log.append("much later"))
    loop.call_at(loop.now + 0.01, lambda: log.append("soon"))
    loop.turn()
    loop.turn(0)
    assert log == ["soon"], "once, and nobody else"


def test_a_time_that_is_over_is_now_and_no_time_is_never() -> None:
    alarm, now = Alarm(), time.monotonic()
    with select.epoll() as poll:
        poll.register(alarm.fd, select.EPOLLIN)
        for when, due in (
            (None, False),
            (0.0, True),
            (None, False),
            (time.monotonic() - 1, True),
            (time.monotonic() + 60, False),
        ):
            alarm.set(when)
            assert bool(poll.poll(40 if due else 0)) == due, when
        alarm.set(now + 0.001)
        assert poll.poll(40)


def test_deadlines_expire_oldest_first_and_not_before_time() -> None:
    deadlines, log = Deadlines(10.0), []
    for place, name in enumerate("abcd"):
        deadlines.add(name, float(place), lambda name=name: log.append(name))  # type: ignore[misc]
    deadlines.discard("b")
    deadlines.add("a", 3.5, lambda: log.append("a again"))
    deadlines.expire(11.9)
    assert log == [] and len(deadlines) == 3
    deadlines.expire(12.0)
    assert log == ["c"]
    deadlines.evict_oldest()
    assert log == ["c", "d"]
    deadlines.expire(13.5)
    assert log == ["c", "d", "a again"] and len(deadlines) == 0
    deadlines.evict_oldest()


def test_what_lingers_is_flushed_in_time_and_once(pipes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    monkeypatch.setattr(time, "monotonic", lambda: loop.now)  # no time passes
    patient, hasty = (Reader(loop, read) for read, _ in pipes)
    for one in (patient, hasty, patient):
        loop.linger(one)
    loop.hurry(hasty)
    loop.turn(0)
    assert not patient.log, "not before its time"
    monkeypatch.undo()
    while not patient.log:
        loop.turn(1.0)
    loop.turn(0)
    assert patient.log == ["flush"] and not hasty.log


class Endless:
    """Has always more to do, 100 us at a time."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.pieces, self.now = loop, 0, 1000.0
        loop.rota.add("flooder", self)

    def go_on(self) -> None:
        self.pieces += 1
        self.now += 100e-6
        self.loop.rota.add("flooder", self)

    def crashed(self, error: Exception) -> None:
        raise error


def test_what_is_left_over_has_less_of_a_turn_that_others_take_part_in(
    pipes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    endless, good = Endless(loop), Reader(loop, pipes[0][0])
    monkeypatch.setattr(time, "monotonic", lambda: endless.now)
    loop.watch(good.fd, IN, good)
    loop.turn()
    alone, endless.pieces = endless.pieces, 0
    os.write(pipes[0][1], b"x")
    loop.turn()
    assert good.log == ["x", "flush"] and alone * 100e-6 == pytest.approx(OVERTIME_S, rel=0.2)
    assert 1 <= endless.pieces <= alone / 3


def test_what_nobody_waits_for_is_done_when_all_is_written(pipes: list[tuple[int, int]]) -> None:
    loop = Loop()
    reader = Reader(loop, pipes[0][0])
    loop.watch(reader.fd, IN, reader)
    os.write(pipes[0][1], b"x")
    loop.afterwards.append((lambda: reader.log.append("afterwards"), reader))
    loop.turn(60.0)
    assert reader.log == ["x", "flush", "afterwards"]


def test_what_is_left_to_be_done_keeps_no_turn_waiting_and_fails_alone(
    pipes: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop()
    reader = Reader(loop, pipes[0][0])

    def fail() -> None:
        raise RuntimeError("a bug")

    loop.afterwards += [(fail, reader), (lambda: reader.log.append("afterwards"), reader)]
    with caplog.at_level(logging.CRITICAL):
        loop.turn(60.0)  # nothing is ready: it would wait
    assert reader.log == ["crashed: a bug", "afterwards"] and not loop.afterwards


def test_what_comes_again_and_again_waits_for_the_next_turn_however_late_this_one_is() -> None:
    loop = Loop()
    calls: list[float] = []
    loop.now -= 1000  # the machine stood still since the turn began
    loop.every(100, lambda: calls.append(loop.now))
    loop._timers.on_event(IN)
    assert len(calls) == 1
    loop.turn(60.0)  # as soon as the kernel says that it is due
    assert len(calls) == 2
    loop.turn(0)
    assert len(calls) == 2, "once in its time, as soon as turns are in time again"


def test_what_was_told_of_a_closed_descriptor_is_not_said_to_who_has_its_number_now() -> None:
    """Of two that are ready the first one called closes the other, and something new gets its number."""
    loop = Loop()
    pipes = [os.pipe(), os.pipe()]
    log: list[str] = []
    fresh: list[int] = []

    class Closing:
        def __init__(self, own: int, other: int) -> None:
            self.own, self.other = own, other

        def on_event(self, _events: int) -> None:
            os.read(self.own, 10)
            loop.forget(self.other)
            read, write = os.pipe()
            os.dup2(read, self.other)  # closes it and takes its number, whatever else is free in this process
            os.close(read)
            fresh.append(write)
            loop.watch(self.other, IN, newcomer)

        def crashed(self, error: Exception) -> None:
            raise error

    newcomer = Reader(loop, 0)
    reads = [read for read, _ in pipes]
    for own, other in (reads, reads[::-1]):
        loop.watch(own, IN, Closing(own, other))
    for _, write in pipes:
        os.write(write, b"x")
    newcomer.on_event = lambda _events: log.append("told")  # type: ignore[method-assign]
    loop.turn(1.0)
    assert not log
    os.write(fresh[0], b"y")
    loop.turn(1.0)
    assert log == ["told"]
    for fd in (*fresh, *reads, *(write for _, write in pipes)):
        os.close(fd)


def test_bulk_is_told_of_once_it_lasts() -> None:
    loop, told = Loop(), list[int]()
    loop.on_bulk = lambda: told.append(loop.bulky_turns)
    for _ in range(2 * MANY_BULKY_TURNS):
        loop.bulky = True
        loop.turn(0)
    loop.turn(0)
    assert told == [MANY_BULKY_TURNS]


def test_bulk_gives_the_cpu_away_where_another_worker_carries_small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, given = Loop(), list[str]()
    monkeypatch.setattr("ztunnel.loop.sched_yield", lambda: given.append("away"))
    for ago_s, times in ((math.inf, 0), (-60.0, 1), (1.0, 1)):
        loop.small_elsewhere_at = time.monotonic() - ago_s
        loop.turn(0)  # nothing of it is bulk
        loop.bulky = True
        loop.turn(0)
        assert len(given) == times


def test_who_has_more_to_do_than_a_turn_allows_gives_the_cpu_away_when_all_is_written(
    pipes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It will not sleep, and whoever has got an answer, or waits to ask, may wait for its CPU."""
    loop, (read, write) = Loop(), pipes[0]
    reader = Reader(loop, read)
    monkeypatch.setattr("ztunnel.loop.sched_yield", lambda: reader.log.append("away"))

    class Flood:
        left = 2

        def go_on(self) -> None:
            self.left -= 1
            if self.left:
                loop.rota.add("flooder", self)

        def crashed(self, error: Exception) -> None:
            raise error

    loop.watch(read, IN, reader)
    loop.overtime_s = 0.0
    loop.rota.add("flooder", Flood())
    for _ in range(2):
        os.write(write, b"x")
        loop.turn(1.0)
    assert reader.log == ["x", "flush", "away", "x", "flush"], "not any more where nothing is left"
    reader.log.clear()
    for _ in range(2):
        os.write(write, b"x")
        for _ in range(LOOKUPS_PER_TURN + 2):
            loop.may_look_up()
        loop.turn(1.0)
    assert reader.log == ["x", "flush", "away"] * 2, "once for all the DNS that is too much"
