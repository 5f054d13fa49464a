"""Sockets that are made ahead in a pod's namespace: where they are wanted again and again, and no longer than that.

And what a connection that never came is called.
"""

import errno
import math
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.descriptors import open_descriptors
from wire.netns import open_home
from ztunnel.dial import Dial
from ztunnel.loop import Deadlines, Loop
from ztunnel.pod_netns import STOCK, Netns
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

CLIENT = ip_address("127.0.0.5")


@pytest.fixture
def netns() -> Iterator[Netns]:
    home_fd = open_home()
    made = Netns(Loop(), open_home(), home_fd, 0x539, Tuning())
    yield made
    made.close()
    os.close(home_fd)


def open_sockets() -> set[tuple[str, str]]:
    """Those with the proxy's mark: others are made by threads that other tests have left here."""
    return {one for one in open_descriptors() if one[1].startswith("socket:") and mark_of(int(one[0])) == 0x539}


def mark_of(fd: int) -> int:
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
    except OSError:  # its thread has closed it meanwhile
        return 0


def take(netns: Netns, count: int, source: bool = False) -> list[socket.socket]:
    taken = []
    for _ in range(count):
        taken.append(netns.make_socket(socket.AF_INET, str(CLIENT) if source else None))
        netns._loop.turn(0)
    return taken


@pytest.mark.parametrize("source", [False, True], ids=["our own address", "the client's address"])
def test_one_is_made_alone_and_those_after_it_ahead(netns: Netns, source: bool) -> None:
    before = open_sockets()
    first = take(netns, 1, source)
    assert len(open_sockets() - before) == 1
    second = take(netns, 1, source)
    assert len(open_sockets() - before) == 1 + STOCK
    rest = take(netns, STOCK - 1, source)
    assert len(open_sockets() - before) == 1 + 2 * STOCK, "made again when the last was taken, for who comes next"
    for sock in first + second + rest:
        assert not sock.getblocking() and sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x539
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == (0 if source else 1)
        assert sock.getsockname()[0] == (str(CLIENT) if source else "0.0.0.0")
        sock.close()


def test_what_is_made_ahead_goes_when_nothing_is_taken_for_a_while(netns: Netns) -> None:
    before = open_sockets()
    for sock in take(netns, 2) + take(netns, 2, source=True):
        sock.close()
    assert len(open_sockets() - before) == 2 * (STOCK - 1)
    netns.release_idle()
    take(netns, 1)[0].close()
    netns.release_idle()
    assert len(open_sockets() - before) == STOCK - 2, "of each kind for itself"
    netns.release_idle()
    assert open_sockets() <= before


def test_nothing_is_made_for_a_pod_that_is_gone() -> None:
    home_fd = open_home()
    before = open_sockets()
    netns = Netns(Loop(), open_home(), home_fd, 0x539, Tuning())
    taken = [netns.make_socket(socket.AF_INET, None) for _ in range(1 + STOCK)]
    netns.close()
    netns._loop.turn(0)  # which would have made more
    for sock in taken:
        sock.close()
    assert open_sockets() <= before
    os.close(home_fd)


class Unanswered(socket.socket):
    """Connects to where nobody says anything."""

    def connect_ex(self, _: object) -> int:
        return errno.EINPROGRESS


class Owner:
    """Hears what became of it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def connected(self, sock: socket.socket) -> None:
        raise AssertionError(sock)

    def not_connected(self, flag: str, error: str) -> None:
        self.heard.append((flag, error))


@pytest.mark.parametrize(("port", "what"), [(15008, "HBONE port 15008"), (8080, "port 8080")])
def test_a_timeout_has_the_words_that_istios_documentation_explains(port: int, what: str) -> None:
    owner, deadlines = Owner(), Deadlines(10.0)
    Dial(Loop(), deadlines, owner, Unanswered(), ("10.0.0.9", port)).start()
    assert not owner.heard
    deadlines.expire(math.inf)
    assert owner.heard == [("NETWORK_POLICY", f"connection timed out, maybe a NetworkPolicy is blocking {what}: 10.0.0.9")]
