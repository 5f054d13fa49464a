"""Those who wait for one tunnel are told in parts what became of it, each once, and nobody who has gone."""

import select
import socket
from contextlib import suppress
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.identity import Identity
from ztunnel.closing import reset_on_close
from ztunnel.connection_record import Flag
from ztunnel.limits import Held
from ztunnel.outbound import Outbound
from ztunnel.pool import _STALLED_S, WAITERS_PER_TURN, Key, Pool, _Making
from ztunnel.rota import Rota
from ztunnel.tuning import Tuning
from ztunnel.tunnel import Tunnel

pytestmark = pytest.mark.unit

WEB = Identity("cluster.local", "demo", "web")


class Waiting:
    """Hears of it."""

    def __init__(self, gone: bool = False) -> None:
        self.told: list[str] = []
        self.gone = gone

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        self.told.append("ready")

    def no_tunnel(self, flag: Flag, error: str) -> None:
        self.told.append(error)

    def is_there(self) -> bool:
        return not self.gone


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


def test_who_is_told_may_take_others_away() -> None:
    last = Waiting()

    class Leaving(Waiting):
        """Takes another one along."""

        def no_tunnel(self, flag: Flag, error: str) -> None:
            super().no_tunnel(flag, error)
            pool.cancel(cast("Any", "key"), last)

    first = Leaving()
    pool, making, rota = pool_of([first, last])
    pool.failed(making, "CONNECT", "gone")
    assert (first.told, last.told, rota.take()) == (["gone"], [], None)


def test_a_crowd_is_served_in_parts_by_a_tunnel_that_came_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waiters = [Waiting() for _ in range(20)]
    pool, making, rota = pool_of(waiters)
    monkeypatch.setattr(Pool, "request", lambda _pool, _key, _credentials, waiter: waiter.tunnel_ready(cast("Any", None)))
    pool.made(making)
    assert [len(one.told) for one in waiters] == [1] * WAITERS_PER_TURN + [0] * (20 - WAITERS_PER_TURN)
    while (one := rota.take()) is not None:
        one.go_on()
    assert all(one.told == ["ready"] for one in waiters)
    pool.failed(making, "-", "")
    assert not pool._ready and not pool.members(), "peers come and go: nothing is left of one that is gone"


def test_who_has_gone_meanwhile_asks_for_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    waiters = [Waiting(gone=number % 2 == 0) for number in range(20)]
    pool, making, rota = pool_of(waiters)
    monkeypatch.setattr(Pool, "request", lambda _pool, _key, _credentials, waiter: waiter.tunnel_ready(cast("Any", None)))
    pool.made(making)
    while (one := rota.take()) is not None:
        one.go_on()
    assert [one.told for one in waiters] == [[], ["ready"]] * 10


def test_who_waits_alone_is_served_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mostly so, and it is a call to the kernel; the tunnel bears one stream in vain."""
    alone = Waiting()
    monkeypatch.setattr(alone, "is_there", lambda: pytest.fail("asked"))
    pool, making, rota = pool_of([alone])
    monkeypatch.setattr(Pool, "request", lambda _pool, _key, _credentials, waiter: waiter.tunnel_ready(cast("Any", None)))
    pool.made(making)
    assert alone.told == ["ready"] and rota.take() is None


def test_nor_does_who_went_while_it_waited_for_a_tunnel_beside_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    waiters = [Waiting(gone=number % 2 == 0) for number in range(20)]
    pool, making, _ = pool_of(waiters)
    pool._ready[making.key] = [cast("Any", SimpleNamespace(room=lambda _most: True, content_until=0.0))]
    monkeypatch.setattr(Pool, "request", lambda _pool, _key, _credentials, waiter: waiter.tunnel_ready(cast("Any", None)))
    pool._impatient(making)
    assert [one.told for one in waiters] == [[], ["ready"]] * 10 and not making.waiting


@pytest.mark.parametrize("manner", ["waits", "speaks", "ends", "resets"])
def test_a_client_has_gone_when_it_has_reset_its_connection(monkeypatch: pytest.MonkeyPatch, manner: str) -> None:
    ended: list[tuple[str, str]] = []
    monkeypatch.setattr(Outbound, "ended", lambda _, flag, error: ended.append((flag, error)))
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as client:
        own, _ = door.accept()
        with own:
            own.setblocking(False)
            if manner == "speaks":
                client.sendall(b"x")
            elif manner == "ends":
                client.shutdown(socket.SHUT_WR)
            elif manner == "resets":
                reset_on_close(client)
                client.close()
            if manner != "waits":
                assert select.select([own], [], [], 10)[0]
            connection = Outbound.__new__(Outbound)
            connection._sock = own
            assert connection.is_there() is (manner != "resets")
    assert ended == ([("-", "")] if manner == "resets" else [])


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


class Made:
    """A tunnel of which only its end is of interest."""

    open = True
    http = SimpleNamespace(streams=("one",))

    def __init__(self) -> None:
        self.ends: list[str] = []

    def end(self, error: str) -> None:
        self.ends.append(error)


def test_a_tunnel_is_with_whoever_has_the_address_when_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that was dialled in vain goes, and another with its identity and its address takes the call."""
    pool, *_ = pool_of([])
    node = cast("Any", pool.node)
    node.hellos, node.client_handshakes, node.add_tunnel = SimpleNamespace(take=lambda _: None), None, lambda _: None
    address = ip_address("10.0.0.1")
    key = Key(WEB, frozenset({str(WEB)}), address, address, 15008)
    names = ["a"]
    monkeypatch.setattr(
        Pool,
        "owner_of",
        lambda _pool, _key: SimpleNamespace(is_pod=True, namespace="demo", name=names[-1], node="n", identity=WEB),
    )
    tunnel = Made()
    monkeypatch.setattr("ztunnel.pool.Tunnel", lambda *_: tunnel)
    making = _Making(pool, key, cast("Any", None))
    names.append("b")
    making.connected(cast("Any", None))
    pool._ready[key] = [making]
    pool.inventory_changed()
    assert not tunnel.ends
    names.append("c")
    pool.inventory_changed()
    assert tunnel.ends == ["10.0.0.1 belongs to demo/c now"]


def test_a_tunnel_is_idle_from_the_end_of_its_last_stream_on() -> None:
    """Not from when it was made: one that was in use all day is kept for the next request."""
    pool, *_ = pool_of([])
    loop, tunnel = cast("Any", pool.node.loop), Made()
    making = _Making(pool, cast("Any", "key"), cast("Any", None))
    making.tunnel = cast("Any", tunnel)
    pool.made(making)
    idle_s = Tuning().pool_idle_s
    tunnel.http = SimpleNamespace(streams=("one", "two"), bulk_bytes=0, window=1, receive_window=1, room=True)
    for loop.now, tunnel.http.streams in ((2 * idle_s, ("one",)), (3 * idle_s, ())):
        making.retired(cast("Any", tunnel))
        pool.release_idle()
    for loop.now in (4 * idle_s - 1, 4 * idle_s):
        assert not tunnel.ends
        pool.release_idle()
    assert tunnel.ends == [""]


def test_a_tunnel_whose_window_stays_full_has_no_room_while_any_stream_fills_it() -> None:
    loop = SimpleNamespace(now=5.0)
    http = SimpleNamespace(
        room=True, streams={1: object()}, window=0, receive_window=1, granted=1 << 24, widened=0, bulk_bytes=0
    )
    member = _Making(cast(Any, SimpleNamespace(node=SimpleNamespace(loop=loop))), cast(Any, None), cast(Any, None))
    member.tunnel = cast(Any, SimpleNamespace(http=http))
    assert member.room(100) and not member.calm(loop.now), "it may open in this moment"
    loop.now += _STALLED_S
    assert not member.room(100)
    for granted, window, receive_window in (("granted", 1, 0), ("widened", 0, 0)):
        setattr(http, granted, 1 << 25)
        http.window, http.receive_window = window, receive_window
        assert member.room(100), "somebody reads: what was granted is in use again"
        loop.now += _STALLED_S
        assert not member.room(100)
    http.streams.clear()
    assert member.room(100) and member.calm(loop.now), "the next tunnel would be no better"
    http.streams[3], http.window, http.receive_window = object(), 1, 1
    assert member.room(100) and member.calm(loop.now)


def full_pool(count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Pool, list[_Making], list[_Making]]:
    """One whose so many tunnels are full, all of them seen for the first time; and what it dials."""
    pool, *_ = pool_of([])
    pool._making.clear()
    cast("Any", pool.node.loop).call_at = lambda _when, _call: None
    dialled: list[_Making] = []
    monkeypatch.setattr(Pool, "_dial", lambda _, making: dialled.append(making))
    members = []
    for _ in range(count):
        member = _Making(pool, cast("Any", "key"), cast("Any", None))
        http = SimpleNamespace(
            room=True, streams={1: object()}, window=0, receive_window=1, granted=1 << 24, widened=0, bulk_bytes=0
        )
        member.tunnel = cast("Any", SimpleNamespace(http=http, end=lambda _error: None))
        members.append(member)
    pool._ready[cast("Any", "key")] = members
    cast("Any", pool.node.loop).now = 5.0
    return pool, members, dialled


@pytest.mark.parametrize("moved", [0, 1 << 16], ids=["long ago", "just now"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_who_finds_all_tunnels_full_waits_for_another_however_lately_they_filled_up(
    count: int, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether anybody reads is not known yet: who is put into one of them may wait for ever."""
    pool, members, dialled = full_pool(count, monkeypatch)
    waiter = Waiting()
    for member in members:
        cast("Any", member.tunnel).http.bulk_bytes = moved
    pool.request(cast("Any", "key"), cast("Any", None), waiter)
    assert not waiter.told and len(dialled) == 1 and waiter in dialled[0].waiting


def test_of_tunnels_with_bulk_one_with_an_open_window_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, members, dialled = full_pool(2, monkeypatch)
    taken: list[object] = []
    waiter = Waiting()
    monkeypatch.setattr(waiter, "tunnel_ready", taken.append)
    for member in members:
        cast("Any", member.tunnel).http.bulk_bytes = 1 << 24
    cast("Any", members[1].tunnel).http.window = 1
    pool.request(cast("Any", "key"), cast("Any", None), waiter)
    assert taken == [members[1].tunnel] and not dialled


def test_who_waits_beside_a_full_window_is_told_where_no_other_tunnel_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and without another attempt, which would fail as soon: without descriptors at once, again and again."""
    pool, _, dialled = full_pool(1, monkeypatch)
    monkeypatch.setattr(
        Pool, "_dial", lambda pool, making: (dialled.append(making), pool.failed(making, "CONNECT", "none left"))
    )
    waiter = Waiting()
    pool.request(cast("Any", "key"), cast("Any", None), waiter)
    assert waiter.told == ["ready"] and len(dialled) == 1
    cast("Any", pool.node.loop).now += _STALLED_S
    pool.request(cast("Any", "key"), cast("Any", None), waiter)
    assert waiter.told == ["ready", "none left"], "nobody reads: there is nothing to wait for"


def test_a_window_that_fills_up_is_known_to_be_full_before_anybody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, members, _ = full_pool(1, monkeypatch)
    pool.release_idle()
    cast("Any", pool.node.loop).now += _STALLED_S
    assert not members[0].room(100)
