"""Who has a node's admin endpoints when proxies take over from each other."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mesh.resources import ADDRESS_TYPE
from wire.http_client import request
from wire.mesh_cache import MeshCache
from ztunnel import succession
from ztunnel.admin import Admin, Proxy
from ztunnel.front import Front
from ztunnel.succession import succeed
from ztunnel.supervisor import Supervisor

pytestmark = pytest.mark.unit


class Generation:
    """One of several proxies of a node, as far as its endpoints go."""

    def __init__(self, name: str, path: Path) -> None:
        self._path = path
        self._predecessor = AsyncExitStack()
        self.steps: list[str] = []
        proxy = SimpleNamespace(
            waits_for=lambda: [name],
            step_aside=lambda: self.steps.append("aside"),
            step_back=lambda: self.steps.append("back"),
        )
        self.admin = Admin(cast("Proxy", proxy))

    async def start(self) -> bool:
        """Whether there is one that takes connections."""
        serves = await succeed(self._path, self._predecessor)
        await self.admin.listen(self._path, 0, 0, 0)
        return serves

    async def end(self) -> None:
        await self.admin.close()
        await self._predecessor.aclose()


async def who_answers(path: Path) -> str:
    """The proxy behind the admin socket."""
    body = (await request(path, "GET", "/healthz/ready")).body.decode()
    return body.removeprefix("not ready, pending: ").strip()


def test_a_successor_that_ends_gives_the_endpoints_back(tmp_path: Path, eventually: Callable[..., Awaitable[None]]) -> None:
    async def scenario() -> None:
        path = tmp_path / "admin.sock"
        first, second = (Generation(name, path) for name in ("first", "second"))
        assert [await first.start(), await second.start()] == [False, True]
        assert await who_answers(path) == "second" and first.steps == ["aside"] and not second.steps
        await second.end()
        await eventually(lambda: not first.admin._local._connections)
        assert await who_answers(path) == "first" and first.steps == ["aside", "back"]
        await first.end()

    asyncio.run(scenario())


def test_who_succeeds_one_that_drains_has_its_endpoints_and_listens_at_once(tmp_path: Path) -> None:
    """Nobody else takes its pods' connections."""

    async def scenario() -> None:
        path = tmp_path / "admin.sock"
        first, second = (Generation(name, path) for name in ("first", "second"))
        await first.start()
        first.admin.retire()
        assert not await second.start()
        assert await who_answers(path) == "second"
        for one in (second, first):
            await one.end()

    asyncio.run(scenario())


@pytest.mark.parametrize("asked_before", [0, 1])
def test_where_a_proxy_is_there_and_silent_nobody_takes_its_pods_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asked_before: int
) -> None:
    """Its workers may serve them: a successor whose ports that one holds would take them along when it ends.

    However many have asked it in vain: those stay in its queue, which is full then.
    """
    monkeypatch.setattr(succession, "_TIMEOUT_S", 0.05)

    async def scenario() -> bool:
        path = tmp_path / "admin.sock"
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(path))
            silent.listen(0)
            async with AsyncExitStack() as stack:
                for _ in range(asked_before):
                    stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
                return await succeed(path, stack)

    assert asyncio.run(scenario())
    assert "does not answer" in caplog.text and "continue or kill it" in caplog.text


def test_a_proxy_whose_port_is_taken_is_never_asked_whether_it_is_ready(tmp_path: Path) -> None:
    """It would say yes, be given the node, and end."""

    async def scenario() -> None:
        path = tmp_path / "admin.sock"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            generation = Generation("only", path)
            with pytest.raises(OSError, match="set ADMIN_PORT to another one"):
                await generation.admin.listen(path, taken.getsockname()[1], 0, 0)
            assert not path.exists()
            await generation.end()

    asyncio.run(scenario())


def test_what_came_beside_a_successor_is_on_disk_once_that_is_gone(
    tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    """Whatever comes later: a policy may be the last news for days, and the next start the one without a control plane."""

    async def scenario() -> None:
        cache, later = MeshCache(tmp_path / "mesh.sqlite"), MeshCache(tmp_path / "mesh.sqlite")
        proxy = cast("Supervisor", SimpleNamespace(_cache=cache))
        Supervisor.step_aside(proxy)
        cache.apply(ADDRESS_TYPE, b"")
        assert not later.answered(ADDRESS_TYPE)
        Supervisor.step_back(proxy)
        await eventually(lambda: later.answered(ADDRESS_TYPE))
        cache.close()
        later.close()

    asyncio.run(scenario())


def test_one_that_drains_does_not_take_them_from_its_successors_successor(
    tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    async def scenario() -> None:
        path = tmp_path / "admin.sock"
        first, second, third = (Generation(name, path) for name in ("first", "second", "third"))
        await first.start()
        await second.start()
        first.admin.retire()
        await third.start()
        second.admin.retire()
        await second.end()
        await eventually(lambda: not first.admin._local._connections)  # it has heard of that
        assert await who_answers(path) == "third" and first.steps == second.steps == ["aside"]
        await first.end()
        assert await who_answers(path) == "third"
        await third.end()

    asyncio.run(scenario())


@pytest.mark.parametrize(("first", "expected"), [(False, ["workers serve", "listens"]), (True, ["listens"])])
def test_a_successor_listens_when_its_workers_serve_and_the_first_proxy_at_once(first: bool, expected: list[str]) -> None:
    done: list[str] = []

    async def does(what: str) -> None:
        await asyncio.sleep(0)
        done.append(what)

    async def scenario() -> None:
        workers = SimpleNamespace(await_serving=lambda: does("workers serve"))
        zds = SimpleNamespace(run=lambda: does("listens"))
        orders = asyncio.ensure_future(zds.run()) if first else None
        await Front.obey(cast("Front", SimpleNamespace(_orders=orders, workers=workers, zds=zds)))

    asyncio.run(scenario())
    assert done == expected
