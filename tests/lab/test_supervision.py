import pytest

from lab.supervision import pause_s

pytestmark = pytest.mark.unit


def test_pauses_double_up_to_a_limit() -> None:
    assert [pause_s(failures, 0.5, 4.0) for failures in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert pause_s(10_000, 0.5, 4.0) == 4.0
