"""Pods as the supervisor holds them: a pod's DNS that could not be served is tried again, and the pod alone waits for it."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.ztunnel.world import run
from wire.netns import entered, open_home
from ztunnel.channel import AddDNS, AddPod, RemovePod
from ztunnel.dns_config import dns_places
from ztunnel.pod_sockets import Openings
from ztunnel.pods import Pods
from ztunnel.zds_session import PodInfo, StartError

pytestmark = pytest.mark.kernel


class Told:
    """Workers that agree to everything."""

    have_begun = True
    exhausted = False
    """No descriptors are left to hand on."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, list[tuple[str, int]]]] = []

    async def add_pod(self, message: AddPod, fds: Sequence[int]) -> str:
        if self.exhausted:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return ""

    def broadcast(self, message: Any, fds: Sequence[int] = ()) -> None:
        if fds and self.exhausted:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        places = []
        for fd in fds:
            with socket.socket(fileno=os.dup(fd)) as sock:
                places.append(sock.getsockname()[:2])
        self.messages.append((message, places))


@pytest.fixture
def netns_fd() -> Iterator[int]:
    name = f"weft-test-{os.getpid()}-pods"
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    yield fd
    os.close(fd)
    run("ip", "netns", "del", name)


def test_dns_is_served_as_soon_as_its_port_is_free(netns_fd: int) -> None:
    told, home_fd = Told(), open_home()
    pods = Pods(told, home_fd, Openings(0x539, dns_places({}, ipv6=True)), lambda: None, lambda: None)  # type: ignore[arg-type]
    with entered(netns_fd, home_fd):
        v4, v6 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    v4.bind(("127.0.0.1", 15053))
    v6.bind(("::1", 15053))
    asyncio.run(pods.start(PodInfo("u1", "shop", "web", "web"), netns_fd))
    assert pods.dns_troubles().keys() == {"u1"} and list(pods.running()) == ["u1"]
    pods.retry_dns()
    assert not told.messages and pods.dns_troubles()
    v6.close()
    pods.retry_dns()
    assert told.messages.pop() == (AddDNS("u1"), [("::1", 15053)] * 2)
    assert pods.dns_troubles() == {"u1": "127.0.0.1:15053: Address already in use"}
    v4.close()
    pods.retry_dns()
    pods.retry_dns()
    assert told.messages == [(AddDNS("u1"), [("127.0.0.1", 15053)] * 2)] and not pods.dns_troubles()
    (_, fds), *others = pods.statements()
    assert len(fds) == 8 and not others, "a worker that starts later is told of all"
    pods.close()
    os.close(home_fd)


def test_a_pod_of_which_workers_cannot_be_told_is_not_served(netns_fd: int) -> None:
    """The agent hears why, and it is tried again: some workers may know it, others would let its connections wait for ever."""
    told, home_fd = Told(), open_home()
    pods = Pods(told, home_fd, Openings(0x539), lambda: None, lambda: None)  # type: ignore[arg-type]
    told.exhausted = True
    with pytest.raises(StartError, match="Too many open files"):
        asyncio.run(pods.start(PodInfo("u1", "shop", "web", "web"), netns_fd))
    assert not pods.running() and told.messages == [(RemovePod("u1"), [])]
    told.exhausted = False
    asyncio.run(pods.start(PodInfo("u1", "shop", "web", "web"), netns_fd))
    assert list(pods.running()) == ["u1"]
    pods.close()
    os.close(home_fd)


def test_dns_of_which_workers_cannot_be_told_is_reported_and_costs_nobody_else(
    netns_fd: int, caplog: pytest.LogCaptureFixture
) -> None:
    told, home_fd = Told(), open_home()
    pods = Pods(told, home_fd, Openings(0x539, dns_places({}, ipv6=False)), lambda: None, lambda: None)  # type: ignore[arg-type]
    with entered(netns_fd, home_fd):
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind(("127.0.0.1", 15053))
    asyncio.run(pods.start(PodInfo("u1", "shop", "web", "web"), netns_fd))
    taken.close()
    told.exhausted = True
    pods.retry_dns()
    assert "pod shop/web: its DNS is not served by every worker: [Errno 24] Too many open files" in caplog.text
    assert list(pods.running()) == ["u1"] and not told.messages
    pods.close()
    os.close(home_fd)


def test_an_own_pod_of_which_workers_cannot_be_told_is_reported(netns_fd: int, caplog: pytest.LogCaptureFixture) -> None:
    told, home_fd = Told(), open_home()
    pods = Pods(told, netns_fd, Openings(0x539), lambda: None, lambda: None)  # type: ignore[arg-type]
    told.exhausted = True
    with entered(netns_fd, home_fd):
        asyncio.run(pods.start_own(PodInfo("own", "istio-system", "ztunnel", "ztunnel")))
    assert "the proxy's own pod is not served by every worker: [Errno 24] Too many open files" in caplog.text
    pods.close()
    os.close(home_fd)
