import pytest

from control import rate
from control.rate import Rate

pytestmark = pytest.mark.unit


def test_a_burst_and_then_the_average() -> None:
    bucket = Rate(per_second=2, burst=3)
    assert [bucket.take("n1", 0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take("n2", 0.0), "each caller has a bucket of its own"
    assert [bucket.take("n1", 0.5), bucket.take("n1", 0.5)] == [True, False]
    assert [bucket.take("n1", 100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take("n1", 50.0), "a clock that goes back gives nothing"


def test_idle_callers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MAX_CALLERS", 10)
    bucket = Rate(per_second=1, burst=1)
    for number in range(1000):
        assert bucket.take(str(number), float(number))
    assert len(bucket._buckets) <= 11
