"""Whose sockets are the proxy's, over a rolling upgrade; with real processes that come and go."""

import asyncio
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.trusted_proxies import TrustedProxies
from agent.zds_connection import ProxyPeer

pytestmark = pytest.mark.unit


class Cgroups:
    """The kernel's list."""

    def __init__(self, room: int = 16) -> None:
        self.listed: set[int] = set()
        self.remove_proxy = self.listed.remove
        self._room = room

    def add_proxy(self, cgroup_id: int) -> None:
        if len(self.listed) >= self._room:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        self.listed.add(cgroup_id)

    def proxies(self) -> frozenset[int]:
        return frozenset(self.listed)


@pytest.fixture
def start() -> Iterator[Callable[[int], tuple[ProxyPeer, "subprocess.Popen[bytes]"]]]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(cgroup: int) -> tuple[ProxyPeer, "subprocess.Popen[bytes]"]:
        started.append(subprocess.Popen(["sleep", "60"]))
        return ProxyPeer(started[-1].pid, cgroup), started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def test_a_proxy_that_drains_is_trusted_until_it_ends(start: Any, eventually: Any) -> None:
    async def run() -> None:
        cgroups = Cgroups()
        trusted = TrustedProxies(cgroups)
        old, process = start(1)
        new, _ = start(2)
        trusted.connected([old])
        trusted.connected([old, new])
        trusted.connected([new])
        assert cgroups.listed == {1, 2}
        process.kill()
        await eventually(lambda: cgroups.listed == {2})
        trusted.close()

    asyncio.run(run())


def test_the_last_one_stays_trusted_and_a_successor_takes_its_place(start: Any, eventually: Any) -> None:
    async def run() -> None:
        cgroups = Cgroups()
        trusted = TrustedProxies(cgroups)
        old, process = start(1)
        trusted.connected([old])
        trusted.connected([])
        process.kill()
        process.wait()
        trusted.connected([])
        assert cgroups.listed == {1}
        trusted.connected([ProxyPeer(process.pid, 2)])
        assert 2 in cgroups.listed, "connected is enough, even if it is gone by now"
        await eventually(lambda: cgroups.listed == {2})
        trusted.close()

    asyncio.run(run())


def test_what_an_agent_before_trusted_is_judged_when_a_proxy_comes(start: Any) -> None:
    async def run() -> None:
        cgroups = Cgroups()
        cgroups.listed.update((7, 8))
        trusted = TrustedProxies(cgroups)
        assert cgroups.listed == {7, 8}
        peer, _ = start(8)
        trusted.connected([peer])
        assert cgroups.listed == {8}
        trusted.close()

    asyncio.run(run())


def test_a_full_list_of_proxies_that_have_ended_has_room_for_a_new_one(start: Any) -> None:
    async def run() -> None:
        cgroups = Cgroups(room=2)
        cgroups.listed.update((7, 8))
        trusted = TrustedProxies(cgroups)
        peer, _ = start(9)
        trusted.connected([peer])
        assert cgroups.listed == {9}
        trusted.close()

    asyncio.run(run())
