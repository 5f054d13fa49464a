"""What a process does, and what its memory is for, as it says itself."""

import inspect
import os
import signal
import time

import pytest

from ztunnel import sampling
from ztunnel.channel import Stack

pytestmark = pytest.mark.unit


def spin(seconds: float) -> int:
    until, turns = time.process_time() + seconds, 0
    while time.process_time() < until:
        turns += 1
    return turns


def functions(stack: Stack) -> list[str]:
    return [function for function, _, _, _ in stack[0]]


def test_who_uses_the_cpu_is_seen_with_its_callers_and_the_time_that_it_took() -> None:
    begun = time.process_time()
    end = sampling.begin("cpu", 250)
    spin(0.3)
    time.sleep(0.1)
    stacks = end()
    spent_s = time.process_time() - begun
    spinning = [one for one in stacks if functions(one)[0] == "spin"]
    assert all("test_who_uses_the_cpu_is_seen_with_its_callers_and_the_time_that_it_took" in functions(one) for one in spinning)
    _, file, first_line, line = spinning[0][0][0]
    assert file == __file__ and first_line < line <= first_line + 4
    assert sum(count for _, count, _ in spinning) >= 10, "of 30 to 75, as the kernel ticks"
    assert 0.25e9 < sum(spent_ns for _, _, spent_ns in stacks) <= spent_s * 1e9, "the wait costs nothing"
    os.kill(os.getpid(), signal.SIGPROF)  # one that was on its way


def test_stacks_are_bounded_in_number_and_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_STACKS", 1)
    monkeypatch.setattr(signal, "setitimer", lambda *_: None)  # each sample is one of ours

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        else:
            os.kill(os.getpid(), signal.SIGPROF)

    sampler = sampling.CPUSampler(1)
    for depth in (3, 4, 90):
        deep(depth)
    stacks = sampler.stop()
    assert len(stacks) == 2 and max(len(stack) for stack, _, _ in stacks) < sampling.MAX_DEPTH
    assert sum(count for _, count, _ in stacks) == 3


def test_what_memory_is_for_is_told_by_line() -> None:
    end = sampling.begin("heap", 100)
    kept = bytearray(1 << 20)
    gone = bytearray(1 << 20)
    del gone
    ((stack, _, held),) = [one for one in end() if one[2] > 1 << 19]
    assert stack[0] == ("", __file__, 0, inspect.getsourcelines(test_what_memory_is_for_is_told_by_line)[1] + 2)
    assert len(kept) <= held < 2 * len(kept)
