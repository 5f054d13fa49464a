"""Accepting: who comes alone is not looked for twice, who comes in a crowd is taken in batches."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ztunnel.ledger import SocketAddress
from ztunnel.listener import Listener
from ztunnel.loop import Loop
from ztunnel.pod import Pod
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.unit


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
        node = SimpleNamespace(loop=Loop(), config=SimpleNamespace(tuning=Tuning()))
        pod = SimpleNamespace(node=node, uid="pod", has_room=lambda: True)
        self.listener = Listener(cast("Pod", pod), own.detach(), self._take, at_once=8)
        self.sock = Counting(self.listener._sock)
        self.listener._sock = cast("socket.socket", self.sock)

    def _take(self, _pod: Pod, sock: socket.socket, _peer: SocketAddress) -> None:
        self.taken.append(sock)

    def come(self, count: int) -> None:
        """So many connections wait, and the loop says so once."""
        self.clients += [socket.create_connection(self.address) for _ in range(count)]
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


def test_who_waits_when_the_listener_closes_is_taken(place: Place) -> None:
    place.come(100)
    place.listener.accept_rest()
    assert len(place.taken) == 100
