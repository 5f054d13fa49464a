"""From samples to figures."""

import json
from pathlib import Path

import pytest

from bench.figures import Figure, Round, client_busy, headroom, part_costs, ratio, values, with_cost
from bench.report import Results, markdown, processor, surroundings, verdict_counts, write
from bench.targets import Judged

pytestmark = pytest.mark.unit


def _rounds() -> list[Round]:
    """Three rounds on a machine that gets slower: absolute values halve, ratios stay."""
    return [
        {
            ("direct", "rr1"): {"p50_us": 50.0 * noise, "p99_us": 80.0 * noise},
            ("weft", "rr1"): {"p50_us": 100.0 * noise, "p99_us": 200.0 * noise},
            ("Envoy HBONE (E2)", "rr1"): {"p50_us": 125.0 * noise},
        }
        for noise in (1.0, 2.0, 4.0)
    ]


def test_ratios_are_taken_inside_rounds() -> None:
    found = ratio(_rounds(), "weft", "direct", "rr1", "p50_us")
    assert found == Figure(2.0, 2.0, 2.0, 3, (2.0, 2.0))
    figure = Figure.of(values(_rounds(), "weft", "rr1", "p50_us"))
    assert (figure.median, figure.low, figure.high, figure.rounds) == (200.0, 100.0, 400.0, 3)


def test_a_round_without_one_of_both_does_not_count() -> None:
    rounds = _rounds()
    rounds[1] = {key: sample for key, sample in rounds[1].items() if key[0] != "direct"}
    found = ratio(rounds, "weft", "direct", "rr1", "p50_us")
    assert found is not None and found.rounds == 2
    assert ratio(rounds, "weft", "nobody", "rr1", "p50_us") is None


def test_more_rounds_say_more_of_the_median() -> None:
    few, many = Figure.of([0.8, 0.9, 1.0, 1.1, 1.2]), Figure.of([0.8, 0.9, 1.0, 1.1, 1.2] * 5)
    assert few.low <= few.likely[0] <= many.likely[0] <= 1.0 <= many.likely[1] <= few.likely[1] <= few.high
    assert few.likely[1] - few.likely[0] > many.likely[1] - many.likely[0] > 0
    assert Figure.of([1.2, 0.8, 1.0, 0.9, 1.1]) == few, "it is the same each time, and in any order"
    assert few.spread.endswith("[0.80 to 1.20]")


def test_what_was_measured_later_is_kept_apart() -> None:
    results = Results()
    results.take(1, ("weft", "rr1"), {"p50_us": 2.0})
    results.take(0, ("weft", "rr1"), {"p50_us": 1.0})
    assert values(results.rounds, "weft", "rr1", "p50_us") == [1.0, 2.0]


def test_doubtful_verdicts_are_counted_twice() -> None:
    rounds = [
        {("weft", "rr1_64"): {"p50_us": one}, ("Envoy HBONE (E2)", "rr1_64"): {"p50_us": 1.0}} for one in (0.9, 0.95, 1.2)
    ]
    said = markdown({}, Results(rounds=[dict(one) for one in rounds]))
    assert "1 met, 31 not measured; of these chance may decide 1 met" in said


def test_cost_is_per_request_or_per_gigabyte_and_divided_among_processes() -> None:
    sample = with_cost({"count": 50_000.0}, {"agent": 0.25, "worker": 0.75}, 2.0, aside={"agent"})
    assert (sample["cpu_us_per_request"], sample["machine_cpu_us_per_request"]) == (20.0, 40.0)
    assert sample["proxy_cpu_us_per_request"] == 15.0
    assert with_cost({"bytes": 5e8}, {"worker": 0.5}, 1.0)["proxy_cpu_s_per_gb"] == 1.0
    shares = part_costs([{("weft", "rr1"): sample}], "weft", "rr1", "cpu_us_per_request")
    assert {name: figure.median for name, figure in shares.items()} == {"agent": 5.0, "worker": 15.0}


def test_the_bare_network_costs_only_the_machine() -> None:
    sample = with_cost({"count": 100_000.0}, {}, 3.0)
    assert sample["machine_cpu_us_per_request"] == 30.0 and "cpu_us_per_request" not in sample
    assert "machine_cpu_us_per_request" not in with_cost({"count": 0.0}, {}, 3.0)


def test_headroom_is_over_the_fastest_contender() -> None:
    rounds = [{("direct", "rr64"): {"per_s": 90.0}, ("a", "rr64"): {"per_s": 30.0}, ("b", "rr64"): {"per_s": 45.0}}]
    assert headroom(rounds, "direct", ("a", "b", "absent")) == 2.0
    assert headroom([], "direct", ("a",)) is None


def test_a_client_that_is_always_busy_is_told() -> None:
    rounds: list[Round] = [
        {("a", "rr64"): {"client_cpu_s": 0.9, "seconds": 1.0}},
        {("a", "rr1"): {"client_cpu_s": 0.1, "seconds": 1.0}},
    ]
    assert client_busy(rounds, "a") == 0.9 and client_busy(rounds, "b") is None


def test_what_a_run_leaves(tmp_path: Path) -> None:
    results = Results(
        rounds=[dict(one) for one in _rounds()],
        alone=[Judged.at_most("start to listening", 150.0, 200.0, "ms"), Judged.at_most("policies", 30.0, 20.0, "us")],
        memory=[{"process": "weft agent", "state": "idle, warm", "pss_bytes": 30_000_000}],
        events={"enrol a pod: request to answer": Figure(0.02, 0.01, 0.05, 20, (0.01, 0.03))},
        conditions=[{"loadavg": 1.5, "stolen_s": 0.25}, {"loadavg": 2.5, "stolen_s": 0.5}],
        notes=["the proxies' access logs are on"],
        failures=["restart: no proxy of node a is ready"],
    )
    text, data = write(tmp_path / "out", surroundings(2, 3, "free", False), results)
    written = text.read_text()
    assert "| weft agent | 30.0 " in written and "| 20.0 ms | 10.0 to 50.0 ms | 20 " in written
    assert "| start to listening | 150 us" not in written and "| met    |" in written and "| missed |" in written
    assert verdict_counts(results, in_image=False) == {"not measured": 32, "met": 1, "missed": 1}
    assert "load average 1.5 to 2.5, stolen 0.8 s" in written
    assert "- NOT MEASURED, restart: no proxy of node a is ready" in written
    document = json.loads(data.read_text())
    assert document["where"]["kernel"] and document["where"]["python"] and len(document["where"]["loadavg"]) == 3
    assert document["rounds"][0][0] == {"contender": "direct", "load": "rr1", "p50_us": 50.0, "p99_us": 80.0}


def test_the_report_names_the_processor_and_what_it_has_for_ciphers() -> None:
    one = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nflags\t\t: fpu aes vaes sse2\nbugs\t\t:\n"
    assert processor(f"{one}\n{one.replace('AMD EPYC', 'another')}\n") == "AMD EPYC, cpu family 25, model 17, aes, vaes"
    assert processor("CPU implementer\t: 0x41\n") == "unknown", "other kernels tell other things"
