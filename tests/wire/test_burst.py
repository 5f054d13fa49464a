"""Bursts give the CPU away in time, and no more often than that."""

import os
import time

import pytest

from wire.burst import PIECE_NS, Burst

pytestmark = pytest.mark.unit


class _Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 10**9
        self.given_away_at_ns: list[int] = []
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(os, "sched_yield", lambda: self.given_away_at_ns.append(self.now_ns))


def test_a_burst_gives_the_cpu_away_as_soon_as_a_piece_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, burst = _Clock(monkeypatch), Burst()
    began_ns = clock.now_ns
    for _ in range(100):
        burst.give_way()
        clock.now_ns += 20_000
    assert clock.given_away_at_ns == [began_ns + piece * PIECE_NS for piece in range(20)]


def test_the_time_that_others_had_is_none_of_the_next_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, burst = _Clock(monkeypatch), Burst()

    def others_run() -> None:
        clock.given_away_at_ns.append(clock.now_ns)
        clock.now_ns += 5 * PIECE_NS

    monkeypatch.setattr(os, "sched_yield", others_run)
    burst.give_way()
    clock.now_ns += PIECE_NS - 1
    burst.give_way()
    assert len(clock.given_away_at_ns) == 1
