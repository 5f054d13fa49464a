"""Accepting: who comes alone is not looked for twice, a crowd is taken in batches, and a pod's home comes first."""

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ztunnel import listener as listener_module
from ztunnel.headroom import Headroom, make_table
from ztunnel.ledger import SocketAddress
from ztunnel.listener import ACCEPTS_BEFORE_CLOCK, ACCEPTS_PER_EVENT, COURTESY_S, MOST_COURTESY, Listener
from ztunnel.loop import Loop
from ztunnel.pod import Pod
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.unit


def in_line(listener: Any) -> int:
    """How many connections wait to be accepted: of a listening socket TCP_INFO says that as tcpi_unacked."""
    found: int = struct.unpack_from("I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28), 24)[0]
    return found


def queue_up(listener: Any, address: SocketAddress, count: int) -> list[socket.socket]:
    """So many new connections wait: a client is connected before the last packet of its handshake has made it one of them."""
    before = in_line(listener)
    clients = [socket.create_connection(address) for _ in range(count)]
    while in_line(listener) < before + count:
        time.sleep(0.001)
    return clients


class Counting:
    """A listening socket that counts how often it was asked for a connection."""

    def __init__(self, sock: Any) -> None:
        self._sock, self.asked = sock, 0

    def _accept(self) -> Any:
        self.asked += 1
        return self._sock._accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Place:
    """A listener on the loopback address, and clients of it."""

    def __init__(self) -> None:
        self.taken: list[socket.socket] = []
        self.clients: list[socket.socket] = []
        own = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = own.getsockname()
        node = SimpleNamespace(
            loop=Loop(), config=SimpleNamespace(tuning=Tuning()), headroom=None, last_accepts={}, complains_at=0.0
        )
        pod = SimpleNamespace(node=node, uid="pod", has_room=lambda: True)
        self.listener = Listener(cast("Pod", pod), own.detach(), self._take, at_once=8)
        self.sock = Counting(self.listener._sock)
        self.listener._sock = cast("socket.socket", self.sock)

    def _take(self, _pod: Pod, sock: socket.socket, _peer: SocketAddress) -> None:
        self.taken.append(sock)

    def queue_up(self, count: int) -> None:
        """So many connections wait."""
        self.clients += queue_up(self.sock, self.address, count)

    def come(self, count: int) -> None:
        """So many connections wait, and the loop says so once."""
        self.queue_up(count)
        self.listener.on_event(1)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.listener.close()
    for sock in (*made.taken, *made.clients):
        sock.close()


def test_one_connection_at_a_time_is_asked_for_once(place: Place) -> None:
    for _ in range(10):
        place.come(1)
    assert (len(place.taken), place.sock.asked) == (10, 10)
    assert not any(sock.getblocking() for sock in place.taken), "one that is slow would stop all others"


def test_a_crowd_is_taken_in_batches_that_double_up_to_a_bound(place: Place) -> None:
    place.come(200)
    sizes = []
    while len(place.taken) < 200:
        before = len(place.taken)
        place.listener.on_event(1)
        sizes.append(len(place.taken) - before)
    assert sizes[:15] == [1] * 15
    assert sizes[15:18] == [2, 4, 8]
    assert max(sizes) == 8


def test_a_crowd_has_no_longer_turn_than_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pod's connections cost 0.1 ms each, and its neighbours' wait in the same worker."""
    place.listener._at_once = place.listener._expected = ACCEPTS_PER_EVENT
    monkeypatch.setattr("ztunnel.loop.LATE_S", 0.0)
    place.come(100)
    assert len(place.taken) == ACCEPTS_BEFORE_CLOCK
    monkeypatch.setattr("ztunnel.loop.LATE_S", 60.0)
    place.listener.on_event(1)
    assert len(place.taken) == ACCEPTS_BEFORE_CLOCK + ACCEPTS_PER_EVENT


def test_who_waits_when_the_listener_drains_is_taken_some_a_turn(place: Place) -> None:
    """In one go 1,024 of each pod, for a tenth of a second and more, in which what is open stands still."""
    node = place.listener._pod.node
    place.queue_up(100)
    node.loop.overtime_s = 0.0
    place.listener.drain()
    sizes = [len(place.taken)]
    while node.last_accepts:
        before = len(place.taken)
        node.loop.turn(0)
        sizes.append(len(place.taken) - before)
    assert sum(sizes) == len(place.taken) == 100 and max(sizes) == ACCEPTS_BEFORE_CLOCK
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place.address)


def test_a_listener_that_drains_is_bounded_and_not_back_in_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "LAST_ACCEPTS", 2 * ACCEPTS_BEFORE_CLOCK)
    node, fd = place.listener._pod.node, place.sock.fileno()
    place.queue_up(100)
    place.listener.drain()
    place.listener.drain()
    place.listener._watch()  # as after a pause, for want of descriptors, that was begun before
    place.listener._come_back()
    assert node.last_accepts and not node.loop.watches(fd)
    while node.last_accepts:
        node.loop.turn(0)
    assert len(place.taken) == 2 * ACCEPTS_BEFORE_CLOCK


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().rpartition(": ")[2] for record in caplog.records if record.filename == "listener.py"]


def test_a_bad_connection_keeps_a_listener_that_drains_from_no_other(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does it end the worker, with all that is open."""
    take, bad = place.listener._accept, [3, 5]

    def take_most(pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
        take(pod, sock, peer)
        if bad and len(place.taken) == bad[0]:
            raise KeyError(f"connection {bad.pop(0)}")

    place.listener._accept = take_most
    place.queue_up(20)
    place.listener.drain()
    while place.listener._pod.node.last_accepts:
        place.listener._pod.node.loop.turn(0)
    assert len(place.taken) == 20 and not place.listener._open
    assert complaints(caplog) == ["'connection 3'", "'connection 5'"]


def test_who_comes_when_there_is_no_room_is_reset(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.listener._pod, "has_room", lambda: False)
    place.come(1)
    place.clients[0].settimeout(40)
    with pytest.raises(ConnectionResetError):
        place.clients[0].recv(1)
    assert not place.taken


def test_who_was_gone_before_we_looked_keeps_out_nobody(place: Place) -> None:
    take, looked = place.listener._accept, list[SocketAddress]()

    def take_all_but_one(pod: Pod, sock: socket.socket, peer: SocketAddress) -> None:
        looked.append(peer)
        if len(looked) == 1:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        take(pod, sock, peer)

    place.listener._accept = take_all_but_one
    place.queue_up(2)
    while len(place.taken) < 1:
        place.listener.on_event(1)
    place.clients[0].settimeout(40)
    assert place.clients[0].recv(1) == b"", "closed"


def test_a_listener_that_cannot_accept_while_it_drains_gives_up(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError(errno.ENETDOWN, "the network is down")

    monkeypatch.setattr(listener_module, "LAST_ACCEPTS", 3 * ACCEPTS_PER_EVENT)
    monkeypatch.setattr(place.sock, "_accept", fail)
    place.listener.drain()
    while place.listener._pod.node.last_accepts:
        place.listener._pod.node.loop.turn(0)
    assert len(complaints(caplog)) == 3 and not place.listener._open


def test_a_listener_that_finds_nothing_left_twice_goes_on_after_the_pause(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for who was left to the home, and once for who has come since."""
    loop = place.listener._pod.node.loop
    monkeypatch.setattr(listener_module, "PAUSE_S", 0.0)
    with monkeypatch.context() as full:
        full.setattr(place.sock, "_accept", exhausted)
        place.come(1)
        place.listener._left = 1
        place.listener.go_on()
    while not place.taken:
        loop.turn(10)
    said = "connections wait: cannot accept: Too many open files: raise the limit (RLIMIT_NOFILE)"
    assert caplog.messages == [said], "once for all"


def exhausted() -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Line:
    """Two workers in line at one listener: the pod's home, and another one that was there first."""

    def __init__(self, has_home: bool = True) -> None:
        own = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = own.getsockname()
        self.table = make_table(2)
        views = [Headroom(self.table, own) for own in range(2)]
        self.home = views[0].home_of("pod")
        self.loops = [Loop(), Loop()]
        self.taken: list[list[socket.socket]] = [[], []]
        self.clients: list[socket.socket] = []
        self.views = views
        self.listeners: dict[int, Listener] = {}
        for worker in (1 - self.home, self.home):
            config = SimpleNamespace(tuning=Tuning())
            node = SimpleNamespace(
                loop=self.loops[worker], config=config, headroom=views[worker], last_accepts={}, complains_at=0.0
            )
            pod = SimpleNamespace(node=node, uid="pod", has_room=lambda: True)
            take = self._take(self.taken[worker])
            self.listeners[worker] = Listener(cast("Pod", pod), os.dup(own.fileno()), take, has_home=has_home)
        own.close()

    @staticmethod
    def _take(taken: list[socket.socket]) -> Callable[[Pod, socket.socket, SocketAddress], None]:
        return lambda _pod, sock, _peer: taken.append(sock)

    def promise(self) -> None:
        """The home has time, for the rest of the test."""
        self.views[self.home].renew(time.monotonic() + 60, 0.0, full=False)

    def settle(self) -> None:
        """The other one goes behind the home, as it does when the pod is no longer new."""
        other, listener = self.loops[1 - self.home], self.listeners[1 - self.home]
        while not listener._behind_since:
            other.turn(0.1)
            listener.stand_behind()

    def lapse(self) -> None:
        """The home has no time for a moment, in which it takes a connection and goes to the end; the other one sees that."""
        self.promise()
        self.settle()
        self.views[self.home].take_back()
        self.come()
        self.loops[self.home].turn(1.0)
        assert self.counts == (1, 0)
        self.views[1 - self.home].renew(time.monotonic(), 0.0, full=False)
        self.promise()

    def come(self) -> None:
        self.clients += queue_up(self.listeners[self.home]._sock, self.address, 1)

    @property
    def counts(self) -> tuple[int, int]:
        """At the home, and elsewhere."""
        return len(self.taken[self.home]), len(self.taken[1 - self.home])

    def close(self) -> None:
        for listener in self.listeners.values():
            listener.close()
        for sock in (*self.taken[0], *self.taken[1], *self.clients):
            sock.close()
        os.close(self.table)


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def serve_one_by_one(line: Line, count: int) -> None:
    """Both workers wait for connections, each of which comes when the one before is taken."""
    threads, before = [threading.Thread(target=loop.run) for loop in line.loops], sum(line.counts)
    for loop, thread in zip(line.loops, threads, strict=True):
        loop.running = True
        thread.start()
    try:
        for number in range(1, count + 1):
            line.clients.append(socket.create_connection(line.address))
            deadline = time.monotonic() + 40
            while sum(line.counts) < before + number and time.monotonic() < deadline:
                time.sleep(0.0001)
    finally:
        for loop in line.loops:
            loop.running = False
        for loop, thread in zip(line.loops, threads, strict=True):
            loop.call_at(0.0, lambda: None)  # wakes it
            thread.join(40)
    assert sum(line.counts) == before + count


def take_turns(line: Line) -> bool:
    """Whether each worker takes a fifth at least, of fifty, or of all until then where a busy machine lets one of them wait."""
    for _ in range(20):
        serve_one_by_one(line, 50)
        if min(line.counts) >= sum(line.counts) / 5:
            return True
    return False


def test_a_pods_home_takes_all_who_come_while_it_has_time(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "COURTESY_S", 60.0)  # however late a busy machine lets the home have its turn
    line.promise()
    line.settle()
    serve_one_by_one(line, 50)
    assert line.counts == (50, 0)


def test_without_a_home_that_has_time_workers_take_turns(line: Line) -> None:
    assert take_turns(line)


def test_workers_take_turns_with_who_has_no_home() -> None:
    """The tunnels of a hundred peers, that come one after the other, must not be in one worker."""
    line = Line(has_home=False)
    try:
        line.promise()  # to nobody of these
        assert take_turns(line)
    finally:
        line.close()


def test_who_comes_in_the_middle_of_the_homes_turn_waits_for_its_end(line: Line) -> None:
    line.promise()
    line.settle()
    line.come()
    home, other = line.loops[line.home], line.loops[1 - line.home]
    other.turn(1.0)
    assert line.counts == (0, 0)
    home.turn(1.0)
    other.turn(1.0)
    assert line.counts == (1, 0)


def test_another_worker_takes_who_waits_when_the_home_does_not_come(line: Line) -> None:
    line.promise()
    line.settle()
    line.come()
    other = line.loops[1 - line.home]
    begin = time.monotonic()
    while not sum(line.counts):
        other.turn(1.0)
    assert line.counts == (0, 1)
    assert time.monotonic() - begin >= COURTESY_S


def test_a_home_that_took_all_who_were_left_to_it_is_trusted_for_longer(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look costs another worker two wake-ups, in the middle of the home's turn."""
    line.promise()
    line.settle()
    home, other = line.loops[line.home], line.loops[1 - line.home]
    waits: list[float] = []
    monkeypatch.setattr(other, "call_at", lambda when, call: (waits.append(round(when - other.now, 6)), calls.append(call)))
    calls: list[Callable[[], None]] = []
    for taken_by in (home, home, home, home, None, home):
        line.come()
        other.turn(1.0)
        if taken_by is not None:
            taken_by.turn(1.0)
        calls.pop()()
    assert waits == [COURTESY_S * times for times in (1, 2, 4, MOST_COURTESY, MOST_COURTESY, 1)]
    assert line.counts == (5, 1)


def test_nobody_is_left_to_a_home_that_went_to_the_end_meanwhile(line: Line) -> None:
    line.lapse()
    line.come()
    line.loops[1 - line.home].turn(1.0)
    assert line.counts == (1, 1)


def test_who_stood_before_a_home_without_time_goes_behind_it_before_somebody_comes(line: Line) -> None:
    line.lapse()
    home, other = line.loops[line.home], line.loops[1 - line.home]
    other.turn(0)
    line.listeners[1 - line.home].stand_behind()
    line.come()
    other.turn(1.0)
    assert line.counts == (1, 0)
    home.turn(1.0)
    assert line.counts == (2, 0)


def test_a_crowd_is_left_to_the_home_once_and_not_one_after_the_other(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is then taken some at a time: in one turn it would keep the neighbours waiting for 5 ms."""
    line.promise()
    line.settle()
    for _ in range(50):
        line.come()
    other, sizes = line.loops[1 - line.home], []
    other.overtime_s = 0.0
    while sum(sizes) < 50:
        before = sum(line.counts)
        other.turn(1.0)
        sizes.append(sum(line.counts) - before)
        if sum(sizes):
            monkeypatch.setattr(listener_module, "COURTESY_S", 60.0)
    assert line.counts == (0, 50) and max(sizes) <= 2 * ACCEPTS_BEFORE_CLOCK


def test_who_was_left_to_the_home_is_taken_when_its_listener_closes(line: Line) -> None:
    line.promise()
    line.settle()
    line.come()
    line.loops[1 - line.home].turn(1.0)
    assert line.counts == (0, 0)
    listener = line.listeners[1 - line.home]
    listener.drain()
    time.sleep(COURTESY_S)
    line.loops[1 - line.home].turn(0)  # when it would have come back
    assert line.counts == (0, 1)


def test_who_was_in_line_before_the_home_leaves_nobody_waiting_for_that(line: Line) -> None:
    line.promise()
    line.come()
    line.loops[1 - line.home].turn(1.0)
    assert line.counts == (0, 1)
    line.come()
    line.loops[1 - line.home].turn(1.0)
    assert line.counts == (0, 1)
    line.loops[line.home].turn(1.0)
    assert line.counts == (1, 1)


def test_who_stands_aside_leaves_all_who_come_to_the_others(line: Line) -> None:
    home, other = line.loops[line.home], line.loops[1 - line.home]
    listener = line.listeners[line.home]
    listener.stand_aside(True)
    home.turn(0)  # nobody is here
    for number in range(1, 4):
        line.come()
        home.turn(0)
        other.turn(1.0)
        assert line.counts == (0, number)
    listener.stand_aside(False)
    line.come()
    home.turn(1.0)
    assert line.counts == (1, 3)


def test_who_came_before_we_stood_aside_is_taken(line: Line) -> None:
    """The kernel may have told nobody else."""
    line.come()
    line.listeners[line.home].stand_aside(True)
    line.loops[line.home].turn(0)
    assert line.counts == (1, 0)


def test_who_stands_aside_is_back_in_line_after_a_pause_only_when_that_is_over(line: Line) -> None:
    listener, loop = line.listeners[line.home], line.loops[line.home]
    fd = listener._sock.fileno()
    listener.stand_aside(True)
    listener._watch()  # as after a pause, for want of descriptors, that was begun before
    assert not loop.watches(fd)
    listener.stand_aside(False)
    assert loop.watches(fd)


def test_who_waits_for_a_worker_that_hangs_is_taken_by_who_is_back_in_line(line: Line) -> None:
    """Its promise lapses, and who stood aside sees that: the kernel tells then of who is there already."""
    line.listeners[line.home].stand_aside(True)
    line.loops[line.home].turn(0)
    for _ in range(3):
        line.come()
    line.loops[line.home].turn(0)
    assert line.counts == (0, 0)
    line.listeners[line.home].stand_aside(False)
    for _ in range(3):
        line.loops[line.home].turn(1.0)
    assert line.counts == (3, 0)
