"""What a node's prober asks of pods, and what those cannot do to it."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from lab.prober import probe
from wire.http_messages import Request

pytestmark = pytest.mark.unit
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(said: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /a%20b?c=d HTTP/1.1\r\nhost: web.shop\r\n"), request
        writer.write(said)
        writer.close()

    return serve


async def asked(port: int, timeout_s: float = 60.0) -> str:
    order = {"address": "127.0.0.1", "port": port, "http_path": "/a b?c=d", "http_host": "web.shop", "timeout_s": timeout_s}
    return str(json.loads((await probe(Request("POST", "/probe", {}, {}, json.dumps(order).encode()))).body)["reason"])


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 302\r\n\r\n", ""),
        (b"HTTP/1.1 503 Not yet\r\n\r\n", "GET /a b?c=d on port {port} answered 503"),
        (b"SSH-2.0-x\r\n", "127.0.0.1 port {port} does not speak HTTP: it says b'SSH-2.0-x\\r\\n'"),
        (b"", "127.0.0.1 port {port} does not speak HTTP: it says b''"),
        (b"x" * (1 << 20), "127.0.0.1 port {port} does not speak HTTP: "),
    ],
)
def test_the_status_decides(said: bytes, reason: str) -> None:
    async def scenario() -> None:
        async with await asyncio.start_server(answering(said), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            found = await asked(port)
            assert found.startswith(reason.format(port=port)) and bool(found) == bool(reason)

    asyncio.run(scenario())


def test_pods_that_answer_by_drops_hold_up_no_other_pods_probe() -> None:
    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"H")
            await asyncio.sleep(0.05)

    async def scenario() -> None:
        async with (
            await asyncio.start_server(drop, "127.0.0.1", 0) as slow,
            await asyncio.start_server(answering(b"HTTP/1.1 200 OK\r\n\r\n"), "127.0.0.1", 0) as good,
        ):
            waiting = [asyncio.ensure_future(asked(slow.sockets[0].getsockname()[1], 200.0)) for _ in range(100)]
            await asyncio.sleep(0)
            assert await asked(good.sockets[0].getsockname()[1], 60.0) == ""
            assert not any(one.done() for one in waiting)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())
