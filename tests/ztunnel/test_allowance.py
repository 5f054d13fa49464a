"""Allowances: a burst, a rate, and something back for useful work."""

import pytest

from ztunnel.allowance import Allowance

pytestmark = pytest.mark.unit


def test_a_burst_and_then_a_rate() -> None:
    allowance = Allowance(10, 2)
    assert all(allowance.spend(5.0) for _ in range(10)) and not allowance.spend(5.0)
    assert not allowance.spend(5.1)
    assert allowance.spend(7.0) and allowance.spend(7.0) and not allowance.spend(7.0)


def test_a_smaller_burst_at_the_same_rate() -> None:
    allowance = Allowance(8, 2)
    allowance.shrink(0.5)
    assert all(allowance.spend(5.0) for _ in range(4)) and not allowance.spend(5.0)
    assert allowance.spend(6.0) and not allowance.spend(6.0)


def test_earning_fills_it_up_to_the_burst() -> None:
    allowance = Allowance(2, 0)
    allowance.earn(100)
    assert allowance.spend(1.0, 2) and not allowance.spend(1.0)
    allowance.earn(3)
    assert allowance.spend(1.0)
