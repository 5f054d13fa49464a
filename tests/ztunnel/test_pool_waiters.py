"""Those who wait for one tunnel are told in parts what became of it, each once, and nobody who has gone."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ztunnel.channel import Flag
from ztunnel.limits import Held
from ztunnel.pool import WAITERS_PER_TURN, Pool
from ztunnel.rota import Rota
from ztunnel.tuning import Tuning
from ztunnel.tunnel import Tunnel

pytestmark = pytest.mark.unit


class Waiting:
    """Hears of it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        self.told.append("ready")

    def no_tunnel(self, flag: Flag, error: str) -> None:
        self.told.append(error)


def pool_of(waiters: list[Waiting]) -> tuple[Pool, Any, Rota]:
    """One whose tunnel so many wait for."""
    rota = Rota()
    node = SimpleNamespace(loop=SimpleNamespace(rota=rota, now=0.0), config=SimpleNamespace(tuning=Tuning()))
    pool = Pool(cast("Any", node), cast("Any", None), Held(1 << 20))
    making = SimpleNamespace(
        key="key", credentials=None, waiting=dict.fromkeys(waiters), idle_since=0.0, tunnel=cast("Any", None), dial=None
    )
    pool._making[cast("Any", "key")] = cast("Any", making)
    return pool, making, rota


def test_a_crowd_that_waits_for_a_tunnel_is_told_in_parts() -> None:
    waiters = [Waiting() for _ in range(100)]
    pool, making, rota = pool_of(waiters)
    pool.failed(making, "CONNECT", "gone")
    assert sum(len(one.told) for one in waiters) == WAITERS_PER_TURN
    pool.cancel(cast("Any", "key"), waiters[50])
    while (one := rota.take()) is not None:
        before = sum(len(one.told) for one in waiters)
        one.go_on()
        assert sum(len(one.told) for one in waiters) - before <= WAITERS_PER_TURN
    assert [one.told for one in waiters] == [["gone"]] * 50 + [[]] + [["gone"]] * 49


def test_whoever_is_left_when_the_pod_closes_is_told_then() -> None:
    waiters = [Waiting() for _ in range(100)]
    pool, making, rota = pool_of(waiters)
    pool.failed(making, "CONNECT", "gone")
    pool.close("closed")
    assert [one.told for one in waiters] == [["gone"]] * 100 and rota.take() is None


def test_a_crowd_is_served_in_parts_by_a_tunnel_that_came_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waiters = [Waiting() for _ in range(20)]
    pool, making, rota = pool_of(waiters)
    monkeypatch.setattr(Pool, "request", lambda _pool, _key, _credentials, waiter: waiter.tunnel_ready(cast("Any", None)))
    pool.made(making)
    assert [len(one.told) for one in waiters] == [1] * WAITERS_PER_TURN + [0] * (20 - WAITERS_PER_TURN)
    while (one := rota.take()) is not None:
        one.go_on()
    assert all(one.told == ["ready"] for one in waiters)


class Failing(Waiting):
    """Must not, and does."""

    def no_tunnel(self, flag: Flag, error: str) -> None:
        raise AssertionError("a fault of ours")


def test_whoever_fails_to_hear_of_it_keeps_nobody_else_from_hearing() -> None:
    waiters = [Failing(), Waiting(), Failing(), Failing(), *(Waiting() for _ in range(20))]
    pool, making, rota = pool_of(waiters)
    with pytest.raises(AssertionError, match="a fault of ours"):
        pool.failed(making, "CONNECT", "gone")
    while (one := rota.take()) is not None:
        with suppress(AssertionError):
            one.go_on()
    assert [one.told for one in waiters] == [[] if isinstance(one, Failing) else ["gone"] for one in waiters]
