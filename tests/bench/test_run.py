"""A run: who is measured when, what a failed load leaves, and that the lab goes down whenever the run ends."""

import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import Any, cast

import pytest

from bench import accounts
from bench.contenders import ACROSS, JUDGED, NEAR, Contender, Load, in_turn, loads, takes_part
from bench.report import Results
from bench.run import Run
from bench.stage import LoadError

pytestmark = pytest.mark.unit
_INTERRUPTED = """
import sys, time
import bench.__main__ as bench
def run(*_):
    try:
        print("up", flush=True)
        time.sleep(60)
    finally:
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
        print("down", flush=True)
bench._run = run
bench.envoy_pair.envoy_binary = lambda: None
sys.argv[1:] = []
bench.main()
"""


class _Client:
    """A load client that writes down what it is ordered."""

    def __init__(self, log: list[str], answers: Any) -> None:
        self._log = log
        self._answers = answers

    def order(self, load: str, **_: Any) -> None:
        self._log.append(load)

    def answer(self) -> Any:
        return next(self._answers)


def _contender(name: str, log: list[str], answers: Any = ()) -> Contender:
    def pids() -> list[int]:
        log.append("pids")
        return []

    return Contender(name, cast(Any, _Client(log, iter(answers))), "10.0.0.1", 9000, pids)


@pytest.mark.parametrize("load", ["round_trips", "upload"])
def test_nothing_is_under_way_while_processes_are_looked_for(load: str) -> None:
    log: list[str] = []
    _contender("weft", log, [{"count": 1}, {"count": 1}]).measure(load)
    assert log == ["pids", load]


def test_what_a_load_costs_from_its_first_moment_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def read() -> float:
        log.append("clock")
        return 0.0

    monkeypatch.setattr(accounts, "machine_cpu_s", read)
    _contender("weft", log, [{"count": 1}]).measure("exchanges")
    assert log == ["pids", "clock", "exchanges", "clock"]


def test_the_order_changes_and_everybody_has_a_turn() -> None:
    everybody = [_contender(name, []) for name in ACROSS]
    orders = [[one.name for one in in_turn(everybody, str(number))] for number in range(40)]
    assert all(sorted(order) == sorted(ACROSS) for order in orders)
    before = {(order[place - 1], order[place]) for order in orders for place in range(1, len(order))}
    assert len(before) == len(ACROSS) * (len(ACROSS) - 1), "nobody always follows the same one"
    assert orders[0] == [one.name for one in in_turn(everybody, "0")]


def test_who_is_judged_is_measured_more_often() -> None:
    everybody = [_contender(name, []) for name in (*ACROSS, *NEAR)]
    load = next(one for one in loads(quick=False) if one.times > 1 and one.near)
    first, second = ([one.name for one in everybody if takes_part(one, load, turn)] for turn in (0, 1))
    assert first == [*ACROSS, *NEAR] and set(second) == set(JUDGED)


def _run(results: Results) -> Run:
    return Run(cast(Any, None), (), ExitStack(), results, 1, True, None, lambda _: None)


def test_a_load_that_failed_is_said_and_the_others_are_measured() -> None:
    def answers() -> Any:
        yield {"count": 1.0}
        raise LoadError("reset")

    results = Results()
    found = [_contender("weft", [], [{"count": 2.0}] * 2), _contender("Envoy HBONE (E2)", [], answers())]
    _run(results).paired(found, [Load("crr", "exchanges", {}, times=2)], 1)
    assert [set(one) for one in results.rounds] == [{("weft", "crr"), ("Envoy HBONE (E2)", "crr")}, {("weft", "crr")}]
    assert results.failures == ["Envoy HBONE (E2), exchanges: reset"]


def test_many_that_fail_end_the_run() -> None:
    def refuse(self: Contender, load: str, **_: Any) -> None:
        raise LoadError("refused")

    results = Results()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(LoadError):
        patch.setattr(Contender, "measure", refuse)
        _run(results).paired([_contender("weft", [])], [Load("crr", "exchanges", {}, times=9)], 1)
    assert 1 < len(results.failures) < 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_told_to_end_takes_the_lab_down(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _INTERRUPTED], stdout=-1, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stdout.read() == "down\n", "another signal meanwhile ends nothing early"
        assert process.wait(100) == 128 + number
