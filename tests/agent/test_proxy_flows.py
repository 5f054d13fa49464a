"""The proxy's events: read from its stream as they come, and read again when it comes back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent import proxy_flows
from agent.proxy_flows import ProxyFlows
from mesh.event_line import EventLine, write_event, write_lost
from mesh.flows import ConnectionEvent, FlowEndpoint
from wire.http_messages import HttpError, Request, Response
from wire.http_server import HttpServer

pytestmark = pytest.mark.unit

EVENT = ConnectionEvent(
    time_ns=1_700_000_000_000_000_123,
    node="a",
    phase="denied",
    direction="inbound",
    source=FlowEndpoint("world", ip_address("10.0.0.2"), 4000),
    destination=FlowEndpoint("workload", ip_address("10.0.0.3"), 80, "demo", "web"),
)


def node_of(event: ConnectionEvent | EventLine) -> str:
    assert isinstance(event, ConnectionEvent)
    return event.node


def test_reads_a_proxy_that_drains_beside_its_successor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_flows, "WATCH_S", 0.01)
    path = tmp_path / "admin.sock"

    async def scenario() -> None:
        events: asyncio.Queue[ConnectionEvent | EventLine] = asyncio.Queue()
        reader = ProxyFlows(path, events.put_nowait, lambda count: None)
        task = asyncio.create_task(reader.run())
        feeds: list[asyncio.Queue[bytes]] = [asyncio.Queue(), asyncio.Queue()]
        servers = []
        for feed in feeds:

            async def answer(_: Request, feed: "asyncio.Queue[bytes]" = feed) -> Response:
                async def pieces() -> AsyncIterator[bytes]:
                    while True:
                        yield await feed.get()

                return Response(content_type="application/x-ndjson", stream=pieces())

            server = HttpServer({"GET /flows": answer})
            await server.listen_unix(path)
            servers.append(server)
            feed.put_nowait(write_event(EVENT))
            assert await asyncio.wait_for(events.get(), 60) == EVENT
        feeds[0].put_nowait(write_event(replace(EVENT, node="old")))
        feeds[1].put_nowait(write_event(replace(EVENT, node="new")))
        assert {node_of(await asyncio.wait_for(events.get(), 60)) for _ in feeds} == {"old", "new"}
        await servers[0].close()
        feeds[1].put_nowait(write_event(EVENT))
        assert await asyncio.wait_for(events.get(), 60) == EVENT and reader.connected
        feeds[1].put_nowait(write_event(replace(EVENT, phase="closed")))
        line = await asyncio.wait_for(events.get(), 60)
        assert isinstance(line, EventLine) and line.whole() == replace(EVENT, phase="closed")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await servers[1].close()

    asyncio.run(scenario())


def test_follows_the_stream_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_flows, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(proxy_flows, "RETRY_LONGEST_S", 0.05)
    path = tmp_path / "admin.sock"

    async def pieces() -> AsyncIterator[bytes]:
        whole = write_event(EVENT) + b"\nnonsense\n"
        yield whole[:100]
        yield whole[100:]
        yield write_lost(7)

    async def answer(_: Request) -> Response:
        return Response(content_type="application/x-ndjson", stream=pieces())

    async def refuse(_: Request) -> Response:
        asked.set()
        raise HttpError(404, "not here")

    asked = asyncio.Event()

    async def scenario() -> None:
        events: asyncio.Queue[ConnectionEvent | EventLine] = asyncio.Queue()
        lost: asyncio.Queue[int] = asyncio.Queue()
        reader = ProxyFlows(path, events.put_nowait, lost.put_nowait)
        task = asyncio.create_task(reader.run())
        for without in (False, True, False):  # a proxy, one without flows, and a proxy again
            server = HttpServer({"GET /flows": refuse if without else answer})
            await server.listen_unix(path)
            if not without:
                assert await events.get() == EVENT
                assert await lost.get() == 7 and reader.unreadable >= 1
            else:
                await asked.wait()
            await server.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
