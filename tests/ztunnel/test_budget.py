"""What a peer may have us do: a part of it is left to an offender, and who only answers to what we did is excused."""

import pytest

from ztunnel.allowance import Allowance
from ztunnel.budget import Budget

pytestmark = pytest.mark.unit

NOW = 5.0


def left(allowance: Allowance, now: float = NOW) -> int:
    """How often it can be spent from at once; it is used up then."""
    count = 0
    while allowance.spend(now):
        count += 1
    return count


@pytest.mark.parametrize(
    ("kind", "burst", "rate_per_s"),
    [
        ("control", 256, 32),
        ("empty", 128, 16),
        ("resets", 200, 20),
        ("refusals", 128, 16),
        ("answers", 1280, 160),
        ("windows", 4096, 256),
    ],
)
def test_so_much_is_allowed_at_once_and_comes_back_in_time(kind: str, burst: int, rate_per_s: int) -> None:
    allowance = getattr(Budget(), kind)
    assert left(allowance) == burst
    assert left(allowance, NOW + 5) == 5 * rate_per_s - 1, "one was overdrawn"
    assert left(allowance, NOW + 1000) == burst, "and never more"


def test_an_offender_has_a_part_of_every_allowance() -> None:
    kinds = ("control", "empty", "resets", "refusals", "answers", "windows")
    whole, part = Budget(), Budget()
    part.shrink(1 / 4)
    for kind in kinds:
        assert left(getattr(part, kind)) == left(getattr(whole, kind)) // 4 > 0, kind


def test_who_is_sent_bytes_may_acknowledge_them_in_pieces() -> None:
    budget = Budget()
    left(budget.windows)
    budget.sent(100 * 256 + 10_000)
    budget.sent(100 * 256 + 10_000)  # the same bytes earn nothing again
    assert left(budget.windows) == (100 * 256 + 10_000) // 256 - 1, "one was overdrawn"


def test_what_may_cross_a_reset_is_excused() -> None:
    budget = Budget()
    left(budget.control)
    for _ in range(20):
        budget.excuse_crossing(window=4 << 20)
    assert left(budget.control) == 20 * (0.1 + 0.01 * (4 << 20) / 16384) // 1 - 1
