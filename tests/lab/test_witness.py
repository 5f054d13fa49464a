"""What an honest peer beside attackers holds against a proxy: not what its machine did."""

import pytest

from tests.lab.witness import Span, length_s

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("pauses", "left_s"),
    [
        ([], 4.0),
        ([(0.0, 10.0), (14.0, 20.0)], 4.0),
        ([(11.0, 12.0)], 3.0),
        ([(9.0, 11.0), (13.0, 15.0)], 2.0),
        ([(12.0, 13.5), (11.0, 13.0), (11.5, 12.0)], 1.5),
        ([(9.0, 15.0)], 0.0),
    ],
)
def test_a_stream_is_not_charged_for_a_cpu_that_stood_still(pauses: list[Span], left_s: float) -> None:
    assert length_s((10.0, 14.0), pauses) == left_s
