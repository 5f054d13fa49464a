"""Passes over all that is open: each goes on to its end, and what is asked for meanwhile is done for everybody once more."""

import pytest

from ztunnel.loop import Loop
from ztunnel.walk import PER_TURN, Walk

pytestmark = pytest.mark.unit


def test_a_pass_visits_everybody_once_and_some_at_once() -> None:
    loop, seen = Loop(), list[int]()
    walk = Walk(loop, lambda: list(range(2 * PER_TURN + 1)), seen.extend)
    walk.begin()
    assert len(seen) == PER_TURN and walk.unfinished
    while walk.unfinished:
        loop.turn(1)
    assert sorted(seen) == list(range(2 * PER_TURN + 1)) and not walk.unfinished


def test_a_visit_that_has_done_enough_finds_the_rest_in_the_next_turn() -> None:
    loop, seen = Loop(), list[list[int]]()

    def visit(part: list[int]) -> None:
        seen.append(part[:2])
        walk.put_back(part[2:])

    walk = Walk(loop, lambda: list(range(5)), visit, per_turn=3)
    walk.begin()
    assert seen == [[2, 3]] and walk.unfinished
    loop.turn(1)
    loop.turn(1)
    assert seen == [[2, 3], [0, 1], [4]] and not walk.unfinished
    loop.turn(0)
    assert len(seen) == 3


def test_who_has_no_more_turns_finishes_at_once() -> None:
    loop, seen = Loop(), list[int]()
    walk = Walk(loop, lambda: list(range(3 * PER_TURN)), seen.extend)
    walk.begin()
    walk.finish()
    assert sorted(seen) == list(range(3 * PER_TURN)) and not walk.unfinished
    loop.turn(0)
    assert len(seen) == 3 * PER_TURN


class Busy:
    """A peer that always has more to do."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.go_on()

    def go_on(self) -> None:
        self._loop.rota.add(self, self)

    def crashed(self, error: Exception) -> None:
        raise error


def test_hundreds_of_busy_peers_hold_up_no_pass() -> None:
    loop, seen = Loop(), list[int]()
    loop.overtime_s = 0.0  # one of them each turn
    peers = [Busy(loop) for _ in range(300)]
    walk = Walk(loop, lambda: list(range(10 * PER_TURN)), seen.extend)
    walk.begin()
    turns = 0
    while walk.unfinished:
        loop.turn(0)
        turns += 1
    assert len(seen) == 10 * PER_TURN and turns < 1000 < 10 * len(peers)


def test_nobody_is_there() -> None:
    visits = list[list[int]]()
    walk = Walk(Loop(), list, visits.append)
    walk.begin()
    assert visits == [[]] and not walk.unfinished


def test_who_is_asked_for_again_and_again_comes_to_an_end_and_then_once_more() -> None:
    """Else the last would never be judged, while policies change faster than a pass is over."""
    loop, seen = Loop(), list[int]()
    everybody = list(range(3 * PER_TURN))
    walk = Walk(loop, everybody.copy, seen.extend)
    for _ in everybody[::PER_TURN]:
        walk.begin()
        loop.turn(1)
    assert set(seen[: len(everybody)]) == set(everybody), "a pass is over"
    while walk.unfinished:
        loop.turn(1)
    assert sorted(seen) == sorted(3 * everybody), "and one more each time that somebody asked while one was on its way"


def test_a_visit_that_fails_ends_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    """Who does not know whom its policies allow must not go on with who is connected."""
    loop = Loop()

    def visit(part: list[int]) -> None:
        if 0 in part:
            raise ValueError("broken")

    Walk(loop, lambda: list(range(PER_TURN + 1)), visit).begin()
    assert loop.running
    loop.turn(1)
    assert not loop.running and "broken" in caplog.text
