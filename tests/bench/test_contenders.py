"""What is measured covers what is asked, and a fixed rate is judged against the Envoys that speak HBONE."""

import pytest

from bench.alone import RATES, paced_loads, paced_rows
from bench.contenders import ENVOY_HBONE, WEFT, fresh, loads
from bench.figures import Round
from bench.targets import ROWS

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("quick", [True, False])
def test_every_row_has_its_load_and_every_load_a_row(quick: bool) -> None:
    measured = [load.key for load in (*loads(quick), fresh(quick))]
    assert set(measured) == {row.load for row in ROWS} and len(set(measured)) == len(measured)


def test_a_fixed_rate_is_judged_by_its_ratio() -> None:
    assert [load.key for load in paced_loads(quick=False)] == [f"paced{rate}" for rate in RATES]
    rounds: list[Round] = [
        {(WEFT, "paced500"): {"p99_us": 300.0 * noise}, (ENVOY_HBONE, "paced500"): {"p99_us": 250.0 * noise}}
        for noise in (1.0, 1.5, 2.0)
    ]
    (row,) = paced_rows(rounds)
    assert row.measured == "1.2 x of E2 (1.20 to 1.20) [1.20 to 1.20], 450 us" and row.target == "at most 1.1 x of E2"
    assert row.verdict == "missed"
