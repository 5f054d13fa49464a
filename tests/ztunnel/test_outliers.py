"""Endpoints that keep failing stand aside for a while, never too many of them, and one success forgives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.inventory import Endpoint
from mesh.workload import Workload
from ztunnel.outliers import ASIDE_S, LONGEST_S, MAX_KNOWN, Outliers, without

pytestmark = pytest.mark.unit


def endpoints(count: int) -> list[Endpoint]:
    return [Endpoint(Workload(f"e{number}", "n", "ns"), {}) for number in range(count)]


def test_failures_in_a_row_set_an_endpoint_aside_ever_longer() -> None:
    outliers, now = Outliers(3), 100.0
    for times in range(1, 15):
        outliers.failed("e0", now)
        outliers.failed("e0", now)
        assert not outliers.aside
        outliers.failed("e0", now)
        assert outliers.aside == {"e0"}
        wait_s = min(ASIDE_S * times, LONGEST_S)
        outliers.tick(now + wait_s - 0.1)
        assert outliers.aside == {"e0"}
        outliers.tick(now + wait_s)
        assert not outliers.aside
        now += wait_s


def test_a_success_forgives_everything() -> None:
    outliers = Outliers(2)
    outliers.failed("e0", 1)
    outliers.succeeded("e0")
    outliers.failed("e0", 2)
    assert not outliers.aside
    outliers.failed("e0", 3)
    assert outliers.aside == {"e0"}
    outliers.succeeded("e0")  # one that was begun before
    assert not outliers.aside


def test_zero_means_never_and_what_is_known_is_bounded() -> None:
    never, outliers = Outliers(0), Outliers(1)
    for number in range(MAX_KNOWN + 10):
        never.failed("e", 1)
        outliers.failed(f"e{number}", 1)
    assert not never.aside and len(outliers.aside) == MAX_KNOWN and "e0" not in outliers.aside


@given(st.integers(0, 8), st.sets(st.integers(0, 8)))
def test_never_more_than_half_stand_aside(count: int, aside: set[int]) -> None:
    candidates = endpoints(count)
    left = without(candidates, frozenset(f"e{number}" for number in aside))
    assert 2 * len(left) >= count
    if 2 * len(aside & set(range(count))) > count:
        assert left == candidates, "something else is broken"
    else:
        assert not {one.workload.uid for one in left} & {f"e{number}" for number in aside}
