"""Small messages beside bulk: with and without it by turns, and never beside bulk that had ended."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import alone
from bench.contenders import DIRECT, WEFT, Contender
from bench.stage import LoadError

pytestmark = pytest.mark.unit


class _Bulk:
    """The client that makes bulk, and a clock."""

    def __init__(self) -> None:
        self.flows = False
        self.now = 0.0

    def order(self, load: str, **_: Any) -> None:
        assert load == "flood" and not self.flows
        self.flows = True

    def answer(self) -> dict[str, float]:
        return {}


def _measure(bulk: _Bulk, took_s: float, times: Iterator[float]) -> Callable[..., dict[str, float]]:
    def measure(self: Contender, load: str, **_: Any) -> dict[str, float]:
        assert load == "paced"
        bulk.now += took_s
        beside, bulk.flows = bulk.flows, False
        return {"p99_us": next(times) * (3 if beside else 1)}

    return measure


def _rows(monkeypatch: pytest.MonkeyPatch, took_s: float) -> list[str]:
    bulk = _Bulk()

    @contextmanager
    def load_client(_: Any) -> Iterator[_Bulk]:
        yield bulk

    found = [Contender(name, cast(Any, SimpleNamespace(place=None)), "10.0.0.1", 9000, list) for name in (DIRECT, WEFT)]
    with monkeypatch.context() as patch:
        patch.setattr(alone, "load_client", load_client)
        patch.setattr("bench.alone.time", SimpleNamespace(monotonic=lambda: bulk.now))
        patch.setattr(Contender, "measure", _measure(bulk, took_s, iter([200.0] * 100)))
        return [f"{row.measured} {row.verdict}" for row in alone.beside_bulk(found, 3, 1.5, lambda _: None)]


def test_each_window_beside_bulk_is_compared_to_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "3 x of alone (3.00 to 3.00) [3.00 to 3.00], 600 us, alone 200 us "
    assert _rows(monkeypatch, 1.9) == [said, said + "missed"]


def test_bulk_that_ended_is_no_company(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="bulk ended before"):
        _rows(monkeypatch, 2.6)
