"""The tables say what was measured, what was asked, and whether it was met."""

import pytest

from bench.contenders import ENVOY_HBONE, WEFT, ZTUNNEL
from bench.figures import Figure, Round
from bench.tables import across, costs, markdown, near
from bench.targets import CPU, ROWS, SIZE_BYTES, Judged, Row, is_met

pytestmark = pytest.mark.unit
_BULK = next(row for row in ROWS if row.load == "up1" and row.figure == "gb_per_s")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def _rounds(weft: float, envoy: float, ztunnel: float | None) -> list[Round]:
    samples = {(WEFT, "rr1_64"): {"p50_us": weft}, (ENVOY_HBONE, "rr1_64"): {"p50_us": envoy}}
    if ztunnel is not None:
        samples[ZTUNNEL, "rr1_64"] = {"p50_us": ztunnel}
    return [samples, samples]


def test_a_row_is_judged_against_both_references() -> None:
    lines = across(_rounds(100.0, 125.0, 90.0), in_image=False).splitlines()
    assert _cells(lines[0])[2:5] == ["E2", "Z", "U"]
    assert _cells(lines[2]) == [
        "round trip, 1 connection, 64 B, p50",
        "us",
        *("125", "90", "100"),
        *("0.80 (0.80 to 0.80) [0.80 to 0.80]", "at most 1", "met"),
        *("1.11 (1.11 to 1.11) [1.11 to 1.11]", "at most 1.08", "missed"),
    ]


def test_a_contender_that_did_not_run_has_no_columns() -> None:
    heads = _cells(across(_rounds(100.0, 125.0, None), in_image=False).splitlines()[0])
    assert heads == ["", "unit", "E2", "U", "U/E2", "target", ""]


def test_targets_of_bulk_depend_on_whose_tls_library_it_is() -> None:
    assert (_BULK.target(True, in_image=True), _BULK.target(True, in_image=False)) == (0.95, None)
    assert (_BULK.target(False, in_image=True), _BULK.target(False, in_image=False)) == (1.1, 1.0)
    assert _BULK.verdict(Figure.of([1.02, 1.05, 1.08]), 1.1) == "missed"
    assert _BULK.verdict(Figure.of([1.02, 1.05, 1.08]), 1.0) == "met"
    assert _BULK.verdict(None, 1.0) == "not measured" and _BULK.verdict(None, None) == ""


def test_every_load_that_is_judged_has_one_name() -> None:
    assert len({(row.load, row.figure) for row in ROWS}) == len(ROWS) == len({row.name for row in ROWS})
    assert all(isinstance(row, Row) for row in ROWS)


def test_cpu_and_both_latencies_are_judged_at_one_connection_of_every_size() -> None:
    judged = {(row.load, row.figure) for row in ROWS if row.envoy and row.ztunnel}
    assert judged >= {(f"rr1_{size}", figure) for size in SIZE_BYTES for figure in ("p50_us", "p99_us", CPU)}


def test_verdicts_are_of_what_is_printed() -> None:
    assert is_met(1.004, 1.0, more_is_better=False) and not is_met(1.006, 1.0, more_is_better=False)
    assert is_met(1.196, 1.2, more_is_better=True) and not is_met(1.194, 1.2, more_is_better=True)
    assert Judged.at_most("idle worker", 31.2, 30.0, "MB").verdict == "missed"
    assert Judged.at_most("idle worker", 12.0, None, "MB").verdict == ""


def test_a_verdict_that_the_next_run_may_turn_has_a_question_mark() -> None:
    row = next(row for row in ROWS if row.load == "rr1_64" and row.figure == "p99_us")
    swinging, steady = Figure.of([0.7, 0.9, 1.05, 1.2, 1.4, 0.8]), Figure.of([1.04, 1.05, 1.06] * 3)
    assert row.verdict(swinging, 1.1) == "met?" and row.verdict(swinging, 0.9) == "missed?"
    assert row.verdict(steady, 1.1) == "met" and row.verdict(steady, 1.0) == "missed"
    assert row.verdict(Figure.of([0.5]), 1.1) == "met?", "one round says nothing of its spread"
    assert _BULK.verdict(Figure.of([1.2, 1.1, 0.9, 1.3]), 1.0) == "met?"
    assert Judged.of("start", Figure.of([180, 190, 230]), 200.0, "ms").verdict == "met?"
    assert Judged.of("start", Figure.of([150, 160, 170]), 200.0, "ms").verdict == "met"
    assert Judged.of("start", Figure.of([1.0, 2.0]), None, "ms").verdict == ""


def test_costs_are_divided_among_processes() -> None:
    sample = {"proxy_cpu_us_per_request": 30.0, "cpu_us_per_request": 40.0, "cpu_s": 4.0}
    sample |= {"cpu_s of ztunnel.worker": 2.5, "cpu_s of ztunnel": 0.5, "cpu_s of agent": 1.0}
    (line,) = costs([{(WEFT, "rr64"): sample}]).splitlines()[2:]
    assert _cells(line)[2:] == ["40", "ztunnel.worker 25, agent 10, ztunnel 5"]


def test_columns_are_even_and_nothing_makes_no_table() -> None:
    assert markdown(["a"], []) == "" and near([]) == ""
    lines = markdown(["", "unit"], [["long name", "us"], ["x", "requests/s"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
