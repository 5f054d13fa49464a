"""Who of a node's workers has time: each promises for itself, and all see it."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import cast

import pytest

from ztunnel.channel import OUTBOUND, AddPod, Configure, RemovePod
from ztunnel.headroom import Headroom, make_table, withdraw
from ztunnel.inbound_tunnels import InboundTunnels
from ztunnel.loop import MANY_BULKY_TURNS, Loop
from ztunnel.pod import Pod
from ztunnel.session_nice import BEHIND, SessionNice
from ztunnel.worker import Worker

pytestmark = pytest.mark.unit


class Table:
    """A table, and three workers' views of it."""

    def __init__(self) -> None:
        self.fd = make_table(3)
        self.views = [Headroom(self.fd, own) for own in range(3)]

    def with_time(self, now: float) -> list[list[int]]:
        """Who has time, as each of them sees it."""
        return [[worker for worker in range(3) if view.has_time(worker, now)] for view in self.views]


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    yield made
    os.close(made.fd)


def test_nobody_has_time_who_has_not_said_so(table: Table) -> None:
    assert table.with_time(1000.0) == [[], [], []]
    table.views[1].renew(1000.0, 0.5, full=False)
    assert table.with_time(1000.0) == [[1], [1], [1]]


def test_a_promise_that_is_not_renewed_ends(table: Table) -> None:
    table.views[1].renew(1000.0, 0.5, full=False)
    table.views[2].renew(1000.0, 0.5, full=False)
    table.views[2].renew(1000.25, 0.5, full=False)
    assert table.with_time(1000.5) == [[1, 2]] * 3
    assert table.with_time(1000.75) == [[2]] * 3
    assert table.with_time(1001.0) == [[]] * 3


def test_who_is_busy_or_nearly_full_promises_nothing_until_that_is_over(table: Table) -> None:
    worker = table.views[0]
    worker.renew(1000.0, 5.0, full=False)
    worker.renew(1000.25, 5.2, full=False)  # four fifths of a CPU
    assert table.with_time(1000.25) == [[]] * 3
    worker.renew(1000.5, 5.3, full=False)
    assert table.with_time(1000.5) == [[0]] * 3
    worker.renew(1000.75, 5.3, full=True)
    assert table.with_time(1000.75) == [[]] * 3
    worker.renew(1001.0, 5.3, full=False)
    assert table.with_time(1001.0) == [[0]] * 3


def test_who_begins_to_move_bulk_takes_its_promise_back(table: Table) -> None:
    for worker in table.views:
        worker.renew(1000.0, 0.5, full=False)
    table.views[1].take_back()
    assert table.with_time(1000.0) == [[0, 2]] * 3


def test_each_worker_sees_whether_another_one_has_time(table: Table) -> None:
    for own in (0, 2):
        table.views[own].renew(1000.0, 0.5, full=False)
    assert [view.others_have_time(1000.0) for view in table.views] == [True, True, True]
    table.views[2].take_back()
    assert [view.others_have_time(1000.0) for view in table.views] == [False, True, True]
    assert [view.others_have_time(1001.0) for view in table.views] == [False] * 3


class Idle:
    """A tunnel that is beside bulk of the same source."""

    drained = False

    def drain(self) -> None:
        self.drained = True


class Aside:
    """A listener that remembers whether it is in line."""

    aside = False

    def stand_aside(self, aside: bool) -> None:
        self.aside = aside

    def stand_behind(self) -> None:
        pass


def test_who_moves_bulk_is_out_of_line_while_another_worker_has_time(table: Table) -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        loop, neighbour, listener = Loop(), table.views[1], Aside()
        worker = Worker(loop, ours)
        worker._take(Configure("n1", "", "Kubernetes", "cluster.local", 0), [os.dup(table.fd)])
        pod = SimpleNamespace(
            listeners=[listener],
            outliers=SimpleNamespace(tick=lambda now: None),
            holder=SimpleNamespace(half_full=lambda connections: False),
            held_connections=0,
        )
        worker._pods["pod"] = cast("Pod", pod)

        tunnel = Idle()
        assert worker._node is not None
        worker._node.inbound_tunnels = cast("InboundTunnels", SimpleNamespace(beside_busy=lambda: [tunnel]))

        loop.on_bulk()
        assert not listener.aside and not tunnel.drained, "there is nobody to leave it to"
        neighbour.renew(loop.now, 0.0, full=False)
        loop.on_bulk()
        assert listener.aside and tunnel.drained
        loop.bulky_turns = MANY_BULKY_TURNS
        worker._tick()
        assert listener.aside
        neighbour.take_back()
        loop.bulky_turns = MANY_BULKY_TURNS
        worker._tick()
        assert not listener.aside, "both move bulk"
        neighbour.renew(loop.now, 0.0, full=False)
        loop.bulky_turns = MANY_BULKY_TURNS
        worker._tick()
        assert listener.aside
        worker._tick()
        assert not listener.aside, "bulk is over"


def test_who_lacks_pods_promises_nothing(table: Table) -> None:
    """Others would leave it connections that it hears nothing of."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs), socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as none:
        loop = Loop()
        worker = Worker(loop, ours)
        worker._take(Configure("n1", "", "Kubernetes", "cluster.local", 0), [os.dup(table.fd)])

        def promises() -> bool:
            loop.now += 60  # in which it was not busy
            worker._tick()
            return table.views[1].has_time(0, loop.now)

        def add(uid: str, sock: socket.socket) -> None:
            message = AddPod(uid, "demo", uid, "default", ports=(OUTBOUND,))
            worker._take(message, [os.open("/proc/self/ns/net", os.O_RDONLY), os.dup(sock.fileno())])

        assert not promises(), "it is told of none yet"
        add("one", listener)
        assert promises()
        add("two", none)
        assert not promises()
        worker._take(RemovePod("two"), [])
        assert promises()
        worker._take(AddPod("one", "demo", "one", "default", ports=(OUTBOUND,)), [])
        assert not promises(), "descriptors were lost on the way"
        worker._close_pod("one")


def test_who_lapsed_for_a_while_is_remembered(table: Table) -> None:
    first, second, _ = table.views
    second.renew(1000.0, 0.5, full=False)
    first.renew(1000.0, 0.5, full=False)
    assert first.lapsed_at == [1000.0, 0.0, 1000.0]
    second.take_back()
    first.renew(1000.25, 0.5, full=False)
    second.renew(1000.25, 0.5, full=False)
    first.renew(1000.5, 0.5, full=False)
    assert first.lapsed_at == [1000.0, 1000.25, 1000.5]


def test_each_worker_hears_of_small_messages_of_others_that_go_on(table: Table) -> None:
    first, second, third = table.views
    assert [second.small_elsewhere_at(now, now - 0.01) for now in (1000.0, 1000.25)] == [0.0, 0.0]
    assert [view.small_elsewhere_at(1000.3, 0.0) for view in table.views if view is not second] == [1000.24, 1000.24]
    assert third.small_elsewhere_at(1000.4, 1000.3) == 1000.24
    assert third.small_elsewhere_at(1000.6, 1000.5) == 1000.24
    assert second.small_elsewhere_at(1000.6, 1000.24) == 1000.5  # no more of its own
    assert first.small_elsewhere_at(1000.7, 0.0) == 1000.5
    assert second.small_elsewhere_at(1002.0, 1001.9) == 1000.5  # after a while without any: the beginning of bulk, perhaps
    assert first.small_elsewhere_at(1002.1, 0.0) == 1000.5
    assert table.with_time(1000.0) == [[]] * 3  # which promises nothing


def test_a_worker_tells_of_its_small_messages_as_time_goes_by_and_of_none_while_it_moves_bulk(table: Table) -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        loop = Loop()
        worker = Worker(loop, ours)
        worker._take(Configure("n1", "", "Kubernetes", "cluster.local", 0), [os.dup(table.fd)])
        neighbour = table.views[1]
        for ago_s in (0.2, 0.1):
            loop.small_at = loop.now - ago_s
            assert neighbour.small_elsewhere_at(loop.now, loop.small_at) == 0.0
            worker._tick()
        assert loop.small_elsewhere_at == neighbour.small_elsewhere_at(loop.now, 0.0) == loop.small_at
        loop.small_at, loop.bulky_turns = loop.now, MANY_BULKY_TURNS
        worker._tick()
        assert neighbour.small_elsewhere_at(loop.now, 0.0) == 0.0, "what follows bulk may be remains of it"


def test_a_worker_that_moves_bulk_gives_way_while_small_messages_go_on_elsewhere(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(SessionNice, "set", lambda _, nice: asked.append(nice))
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        loop, neighbour = Loop(), table.views[1]
        worker = Worker(loop, ours)
        worker._take(Configure("n1", "", "Kubernetes", "cluster.local", 0), [os.dup(table.fd)])
        bulky = MANY_BULKY_TURNS
        for small_at, turns in ((0.0, bulky), (loop.now, bulky), (loop.now, 0), (0.0, bulky)):
            for before_s in (0.1, 0.0):
                neighbour.small_elsewhere_at(loop.now, small_at - before_s)
            loop.bulky_turns = turns
            worker._tick()
        assert asked == [0, BEHIND, 0, 0], "not without neighbours, not without bulk, and no longer than they go on"


def test_the_promise_of_a_worker_that_is_gone_goes_with_it(table: Table) -> None:
    for view in table.views:
        view.renew(1000.0, 0.0, full=False)
    withdraw(table.fd, 1)
    assert table.with_time(1000.1) == [[0, 2]] * 3


def test_all_workers_agree_on_a_pods_home_and_pods_spread_over_them(table: Table) -> None:
    uids = [f"7d0c7f5e-{number:04x}-4d5e-8f00-1b2c3d4e5f60" for number in range(300)]
    homes = [[view.home_of(uid) for uid in uids] for view in table.views]
    assert homes[0] == homes[1] == homes[2]
    assert all(60 < homes[0].count(worker) < 140 for worker in range(3))
