"""A pod that is served no more begins nothing from that moment on; what is open ends piece by piece, and nobody else's does."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.workload import TunnelProtocol, Workload
from ztunnel.channel import AddPod, Closed, Configure, EarlyFailure, FromWorker
from ztunnel.connection_record import ConnectionRecord
from ztunnel.departure import accept_outbound, depart
from ztunnel.inbound_plain import InboundPlain
from ztunnel.inner_tunnel import InnerTunnel
from ztunnel.ledger import DRAINED, SocketAddress, Tracked
from ztunnel.loop import Loop
from ztunnel.node import Node
from ztunnel.outbound import Outbound
from ztunnel.pod import Pod
from ztunnel.route import Request
from ztunnel.walk import ENDINGS_PER_TURN
from ztunnel.ways import Way

pytestmark = pytest.mark.unit

CLIENT, APP = (ip_address("10.0.0.2"), 999), (ip_address("10.0.0.1"), 8080)
SERVER, STRANGER = (ip_address("10.0.0.3"), 8080), (ip_address("192.0.2.1"), 8080)
WEB = Workload("K//Pod/ns/web", "web", "ns", (APP[0],), service_account="web", node="n", cluster_id="K")


class Open:
    """A connection's pump, a tunnel, or a guest: whatever ends once."""

    sent = received = 0

    def __init__(self, order: list[str], what: str, forget: Callable[["Open"], object] = lambda _: None) -> None:
        self._order, self._what, self._forget = order, what, forget

    def end(self, error: str, _flag: str = "-") -> None:
        assert error == DRAINED
        self._order.append(self._what)
        self._forget(self)

    def abort(self, flag: str, error: str) -> None:
        self.end(error, flag)

    turn_away = abort


class Outer:
    """A stream to a gateway that does not end it."""

    sent = 0
    answered = False


class World:
    """A worker's node, and two of its pods."""

    def __init__(self) -> None:
        self.told: list[FromWorker] = []
        self.loop = Loop()
        self.node = Node(self.loop, Configure("n", "", "K", "cluster.local", 0), self.told.append)
        self.node.inventory.apply([WEB, replace(WEB, uid="K//Pod/ns/next", name="next")], [])
        self.order: list[str] = []
        self.pod, self.neighbour = self.add("web"), self.add("next")

    def add(self, name: str) -> Pod:
        return Pod(self.node, AddPod(name, "ns", name, "web"), os.dup(self.node.home_fd))

    def open(self, pod: Pod, count: int) -> list[Tracked]:
        made = []
        for _ in range(count):
            record = ConnectionRecord(self.node.ledger.next_number(), pod.uid, "inbound", "TCP", CLIENT, APP)
            tracked = Tracked(self.node.ledger, record)
            tracked.pump = cast("Any", Open(self.order, pod.uid))
            self.node.ledger.register(tracked)
            tracked.opened()
            made.append(tracked)
        return made

    def closed(self) -> list[ConnectionRecord]:
        return [one.record for one in self.told if isinstance(one, Closed)]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for pod in (made.pod, made.neighbour):
        if not pod.closed:
            pod.close()
            pod.finish()
    os.close(made.node.home_fd)


def test_tens_of_thousands_end_in_pieces_and_only_they(world: World) -> None:
    ours, theirs = world.open(world.pod, 100), world.open(world.neighbour, 100)
    for kind, place in (("tunnel", world.pod.tunnels), ("guest", world.pod.guests)):
        for _ in range(5):
            cast("Any", place)[Open(world.order, kind, lambda one, place=place: cast("Any", place).pop(one))] = None  # type: ignore[misc]
    world.pod.close()
    assert world.order == ["tunnel"] * 5 + ["guest"] * (ENDINGS_PER_TURN - 5), "peers hear of it first"
    anew = world.add("web")
    later = world.open(anew, 100)
    while world.pod.is_ending:
        before = len(world.order)
        world.loop.turn(1)
        assert len(world.order) - before <= ENDINGS_PER_TURN
    assert world.order[10:] == ["web"] * 100 and not world.pod.tunnels and not world.pod.guests
    assert list(world.node.ledger.open.values()) == [*theirs, *later]
    assert [one.number for one in world.closed()] == [one.record.number for one in reversed(ours)]
    anew.close()
    anew.finish()
    assert not anew.is_ending and list(world.node.ledger.open.values()) == theirs, "at once, where there are no more turns"


def test_of_a_pod_that_ends_nothing_is_known_and_no_socket_is_made(world: World) -> None:
    assert world.pod.workload() == WEB
    world.open(world.pod, 100)
    world.pod.close()
    assert world.pod.is_ending and world.pod.workload() is None
    world.node.inventory_changed()
    assert world.pod.workload() is None
    with open(os.devnull):  # gets the number that the pod's namespace had
        with pytest.raises(OSError, match="cannot enter the network namespace"):
            world.pod.netns.make_socket(socket.AF_INET, None)
        assert world.pod.netns.fd == -1


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def assert_ended(world: World, sockets: list[socket.socket], number: int) -> None:
    record = next(one for one in world.closed() if one.number == number)
    assert record.error == DRAINED and number not in world.node.ledger.open
    for sock in sockets:
        with sock:
            sock.setblocking(False)
            assert sock.recv(1) == b"", "the other end is closed"


def test_an_application_that_answers_a_pod_that_ends_is_not_served(world: World) -> None:
    (client, theirs), (application, ours) = pair(), pair()
    waiting = InboundPlain(world.pod, theirs, CLIENT, APP, WEB)
    world.pod.connections += 1
    world.node.ledger.register(waiting)
    world.open(world.pod, 100)
    world.pod.close()
    assert waiting.record.number in world.node.ledger.open, "its turn is to come"
    waiting.connected(ours)
    assert_ended(world, [client, application], waiting.record.number)


@pytest.mark.parametrize("step", ["start", "connected", "tunnel_ready"])
def test_a_connection_of_a_pod_that_ends_goes_nowhere(world: World, step: str) -> None:
    (client, theirs), (server, ours) = pair(), pair()
    leaving = Outbound(world.pod, theirs, CLIENT, Request(WEB, CLIENT[0], *APP))
    if step != "start":
        world.pod.connections += 1
        world.node.ledger.register(leaving)
    world.open(world.pod, 100)
    world.pod.close()
    match step:
        case "start":
            leaving.start(cast("Way", None))
        case "connected":
            leaving.connected(ours)
        case _:
            leaving.tunnel_ready(cast("Any", None))
    if step != "connected":
        ours.close()
    assert_ended(world, [client, server], leaving.record.number)
    assert world.pod.connections == 0


class Held:
    """Of a dial: that nobody answers it."""

    def __init__(self, *_: object) -> None:
        self.cancelled = False

    def start(self) -> None:
        pass

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.parametrize("there", [True, False], ids=["a tunnel", "a certificate"])
def test_who_waits_for_a_tunnel_is_gone_from_the_queue_when_its_time_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The tunnel may come up later, and the queue is bounded."""
    monkeypatch.setattr("ztunnel.pool.Dial", Held)
    monkeypatch.setattr(type(world.pod.netns), "make_socket", lambda *_: None)
    server = replace(WEB, uid="K//Pod/ns/server", name="server", addresses=(SERVER[0],), protocol=TunnelProtocol.HBONE)
    world.node.inventory.apply([server], [])
    if there:
        world.node.vault._held[WEB.identity] = cast("Any", object())
    waiting = []
    for number in range(3):
        client, theirs = pair()
        depart(world.pod, WEB, theirs, (CLIENT[0], 1000 + number), SERVER)
        waiting.append((client, next(reversed(world.node.ledger.open))))
    world.node.ledger.abort(waiting[1][1], "-", DRAINED)
    assert_ended(world, [waiting[1][0]], waiting[1][1])
    queue = list(world.pod.pool.members()[0].waiting) if there else list(world.node.vault._waiting[WEB.identity])
    assert [cast("Outbound", one).number for one in queue] == [waiting[0][1], waiting[2][1]]
    for client, _ in waiting:
        client.close()


def test_who_is_dialled_in_plain_is_dialled_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dials: list[Held] = []
    monkeypatch.setattr("ztunnel.outbound.Dial", lambda *_: dials.append(Held()) or dials[-1])
    ours, theirs = socket.socket(), pair()
    monkeypatch.setattr(type(world.pod.netns), "make_socket", lambda *_: ours)
    depart(world.pod, WEB, theirs[1], CLIENT, STRANGER)
    assert len(world.node.in_plain) == 1
    world.pod.close()
    assert [one.cancelled for one in dials] == [True] and not world.node.in_plain
    assert world.closed()[-1].error == DRAINED
    for sock in (ours, theirs[0]):
        sock.close()


def test_a_connection_for_which_no_socket_can_be_made_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_socket(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(type(world.pod.netns), "make_socket", make_socket)
    client, theirs = pair()
    depart(world.pod, WEB, theirs, CLIENT, STRANGER)
    with client:
        client.setblocking(False)
        assert client.recv(1) == b"", "the other end is closed"
    record = world.closed()[-1]
    assert (record.flag, record.error) == ("CONNECT", "cannot make a socket: [Errno 24] Too many open files")


def test_a_tunnel_that_lingers_behind_its_connection_is_one_of_its_pods_connections(world: World) -> None:
    """Else a pod whose gateway reads nothing could have as many as the worker may."""
    inner = InnerTunnel(world.pod, cast("Any", None), frozenset(), APP[0])
    inner._outer = cast("Any", Outer())
    for _ in range(2):
        inner.closed(cast("Any", SimpleNamespace(offence="")), "-", "")
        assert (world.pod.held_connections, world.neighbour.held_connections) == (1, 0)
    inner.ended("-", "")
    assert world.pod.held_connections == 0


@pytest.mark.parametrize("moved", ["", "passes bytes on", "refuses"])
def test_a_gateway_whose_tunnel_was_full_has_looked_at_a_stream_once_it_says_so(world: World, moved: str) -> None:
    """Else it would be tried again and again, and its failures would not count."""
    heard: list[bool] = []
    owner = SimpleNamespace(inner_failed=lambda _flag, _error, untouched: heard.append(untouched))
    inner = InnerTunnel(world.pod, cast("Any", owner), frozenset(), APP[0])
    outer = inner._outer = cast("Any", Outer())
    inner._tunnel = cast("Any", SimpleNamespace(close=lambda _flag, _error: None))
    assert not inner.declined(outer, True)
    if moved == "refuses":
        outer.answered = True
    elif moved:
        inner.opened()
    inner.ended("CONNECT", "no")
    assert heard == [not moved]


@pytest.mark.parametrize("meant", [None, (APP[0], 0)], ids=["nowhere", "no port"])
def test_whom_no_redirect_sent_is_refused(world: World, monkeypatch: pytest.MonkeyPatch, meant: SocketAddress | None) -> None:
    if meant is not None:
        monkeypatch.setattr("ztunnel.departure.original_destination", lambda _: meant)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        sock, _ = listener.accept()
        accept_outbound(world.pod, sock, CLIENT)
        assert sock.fileno() == -1 and client.recv(1) == b""
    told = [one for one in world.told if isinstance(one, EarlyFailure)]
    assert [(one.flag, one.error) for one in told] == [("CONNECT", "no original destination: not sent by the redirect")]
    assert not world.node.ledger.open and not world.pod.held_connections
