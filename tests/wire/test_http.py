"""HTTP/1.1 over unix and TCP sockets: what is served, what is refused, and that nothing is left behind."""

import asyncio
import gc
import gzip
import os
import select
import shutil
import socket
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ports import unused_port
from wire import http_server
from wire.http_client import open_stream, read_lines, request
from wire.http_messages import MAX_BODY_BYTES, MAX_HEAD_BYTES, HttpError, Request, Response, Target, parse_request
from wire.http_server import HttpServer

pytestmark = pytest.mark.unit


class World:
    """A server with one route of each kind, and what its stream saw."""

    def __init__(self) -> None:
        self.stream_closed = asyncio.Event()
        self.is_endless = True
        """Whether the stream that says one thing waits for a second one."""
        self.begun, self.given = asyncio.Event(), 0
        """The large stream, and its pieces."""
        self.server = HttpServer(
            {
                "GET /hello": self.hello,
                "POST /echo": self.echo,
                "GET /fail": self.fail,
                "GET /refuse": self.refuse,
                "GET /count": self.count,
                "GET /once": self.once,
                "GET /large": self.large,
            },
            max_connections=3,
        )

    async def hello(self, request: Request) -> Response:
        return Response.json({"name": request.query.get("name", "")})

    async def echo(self, request: Request) -> Response:
        return Response(200, request.body)

    async def fail(self, _: Request) -> Response:
        raise RuntimeError("a secret detail")

    async def refuse(self, _: Request) -> Response:
        raise HttpError(409, "pod demo/web: already there")

    async def count(self, _: Request) -> Response:
        async def numbers() -> AsyncGenerator[bytes, None]:
            try:
                for number in range(10**9):
                    yield b"%d\n" % number
                    await asyncio.sleep(0)
            finally:
                self.stream_closed.set()

        return Response(200, stream=numbers())

    async def once(self, _: Request) -> Response:
        async def piece() -> AsyncGenerator[bytes, None]:
            try:
                yield b"one"
                if self.is_endless:
                    await asyncio.Event().wait()
            finally:
                self.stream_closed.set()

        return Response(200, stream=piece())

    async def large(self, _: Request) -> Response:
        async def pieces() -> AsyncGenerator[bytes, None]:
            while True:
                yield bytes(64 << 10)
                self.given += 1
                self.begun.set()
                await asyncio.sleep(0)

        return Response(200, stream=pieces())


async def reply_to(path: Path, sent: bytes) -> bytes:
    """All that a server says to this until it closes."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    reply = await reader.read()
    writer.close()
    return reply


def with_server(tmp_path: Path, scenario: Callable[[World, Path], Awaitable[None]]) -> None:
    troubles: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        world = World()
        path = tmp_path / "admin.sock"
        await world.server.listen_unix(path)
        async with asyncio.timeout(60):
            await scenario(world, path)
            await world.server.close()
        gc.collect()  # a task that failed says so when it goes

    asyncio.run(run())
    assert not troubles


def test_requests_and_refusals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World, path: Path) -> None:
        assert (await request(path, "GET", "/hello?name=a%20b")).check() == b'{"name": "a b"}\n'
        assert (await request(path, "POST", "/echo", b"x" * 1_000_000)).body == b"x" * 1_000_000
        port = await world.server.listen_tcp("127.0.0.1", 0)
        assert (await request(("127.0.0.1", port), "POST", "/echo", b"tcp")).body == b"tcp"
        for method, target, status, words in [
            ("GET", "/nowhere", 404, "/nowhere: not here"),
            ("GET", "/echo", 405, "/echo: use POST"),
            ("GET", "/refuse", 409, "pod demo/web: already there"),
            ("GET", "/fail", 500, "internal error: see the log"),
        ]:
            with pytest.raises(HttpError) as refusal:
                (await request(path, method, target)).check()
            assert (refusal.value.status, refusal.value.reason) == (status, words)
        with pytest.raises(HttpError, match=r"413.*at most"):
            (await request(path, "POST", "/echo", b"x" * (MAX_BODY_BYTES + 1))).check()
        assert os.stat(path).st_mode & 0o777 == 0o600

    with_server(tmp_path, scenario)
    assert "a secret detail" in caplog.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"G-T /hello HTTP/1.1\r\n\r\n", 400),
        (b"GET hello HTTP/1.1\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\ncontent-length : 5\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST /echo HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n", 413),
        (b"POST /echo HTTP/1.1\r\ncontent-length: 30\r\nContent-Length: 0\r\n\r\nGET /hello HTTP/1.1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 501),
        (b"GET /hello HTTP/1.1\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_good_request_is_answered_and_closed(tmp_path: Path, sent: bytes, status: int) -> None:
    async def scenario(_: World, path: Path) -> None:
        assert (await reply_to(path, sent)).startswith(b"HTTP/1.1 %d " % status)

    with_server(tmp_path, scenario)


def test_who_speaks_the_older_protocol_is_answered_and_left(tmp_path: Path) -> None:
    async def scenario(_: World, path: Path) -> None:
        answer = await asyncio.wait_for(reply_to(path, b"GET /hello HTTP/1.0\r\n\r\n"), 50)
        assert answer.startswith(b"HTTP/1.1 200 ") and b"\r\nconnection: close\r\n" in answer

    with_server(tmp_path, scenario)


def test_a_connection_serves_several_requests_and_gives_way_when_it_says_no_more(tmp_path: Path) -> None:
    async def scenario(_: World, path: Path) -> None:
        peers = [await asyncio.open_unix_connection(str(path)) for _ in range(3)]
        for reader, writer in peers:
            for _ in range(2):
                writer.write(b"GET /hello HTTP/1.1\r\naccept-encoding: gzip\r\n\r\n")
                answer = await reader.readuntil(b'""}\n')  # too short to be packed
                assert answer.startswith(b"HTTP/1.1 200 OK") and b"connection: close" not in answer
        peers[0][1].write(b"GET /he")  # the beginning of a request is none
        assert (await request(path, "GET", "/hello")).status == 200
        assert await peers[0][0].read() == b"", "who waited longest was cut"
        for reader, writer in peers[1:]:
            writer.write(b"GET /hello HTTP/1.1\r\n\r\n")
            assert (await reader.readuntil(b'""}\n')).startswith(b"HTTP/1.1 200 OK")
            writer.close()

    with_server(tmp_path, scenario)


def test_what_a_head_alone_was_asked_for_is_not_taken_for_the_next_answer(tmp_path: Path) -> None:
    async def scenario(_: World, path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"HEAD /hello HTTP/1.1\r\n\r\nGET /hello HTTP/1.1\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()

    with_server(tmp_path, scenario)


def test_only_so_many_connections_are_served(tmp_path: Path) -> None:
    async def scenario(world: World, path: Path) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                _, _, pieces = await stack.enter_async_context(open_stream(path, "GET", "/count"))
                await anext(pieces)
            assert (await request(path, "GET", "/hello")).status == 503
        async with asyncio.timeout(50):
            while (await request(path, "GET", "/hello")).status == 503:
                pass

    with_server(tmp_path, scenario)


LARGE = b"x" * MAX_BODY_BYTES


async def deaf(path: Path, body: bytes = LARGE) -> socket.socket:
    """A peer that asks for a long answer and does not read it."""
    loop, sock = asyncio.get_running_loop(), socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    await loop.sock_connect(sock, str(path))
    await loop.sock_sendall(sock, b"POST /echo HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    return sock


async def rest(sock: socket.socket, most: int = 1 << 30) -> int:
    """How much is there for it to read by now, to the end, or up to so much."""
    size = 0
    while size < most and (data := await asyncio.get_running_loop().sock_recv(sock, min(1 << 20, most - size))):
        size += len(data)
    return size


def hung_up(sock: socket.socket) -> bool:
    """Whether the other end has closed, now or soon."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(50_000))


@pytest.mark.parametrize("asks_more", [False, True])
def test_who_does_not_read_an_answer_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks_more: bool) -> None:
    monkeypatch.setattr(http_server, "WRITE_TIMEOUT_S", 0.5)

    async def scenario(_: World, path: Path) -> None:
        for body in (LARGE, LARGE[:280_000]):  # more, and a little more than the kernel takes
            with await deaf(path, body) as sock:
                if not asks_more:
                    sock.shutdown(socket.SHUT_WR)
                assert await asyncio.to_thread(hung_up, sock)
                assert await rest(sock) < len(body)

    with_server(tmp_path, scenario)


def test_who_does_not_read_keeps_nobody_out(tmp_path: Path) -> None:
    async def scenario(_: World, path: Path) -> None:
        with ExitStack() as stack:
            peers = [stack.enter_context(await deaf(path)) for _ in range(3)]
            assert (await request(path, "GET", "/hello")).status == 200
            assert await rest(peers[0]) < len(LARGE), "who was waited for longest was cut"

    with_server(tmp_path, scenario)


def test_who_is_refused_and_stays_keeps_nobody_out(tmp_path: Path) -> None:
    async def scenario(_: World, path: Path) -> None:
        peers = [await asyncio.open_unix_connection(str(path)) for _ in range(3)]
        for reader, writer in peers:
            writer.write(b"no request\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert (await request(path, "GET", "/hello")).status == 200
        for _, writer in peers:
            writer.close()

    with_server(tmp_path, scenario)


def test_a_server_that_takes_no_bodies_holds_none(tmp_path: Path) -> None:
    async def scenario(world: World, _: Path) -> None:
        server, path = HttpServer({"GET /hello": world.hello}, max_body_bytes=0), tmp_path / "open.sock"
        await server.listen_unix(path)
        assert (await request(path, "GET", "/hello")).status == 200
        with pytest.raises(HttpError, match=r"413.*at most 0"):
            (await request(path, "GET", "/hello", b"x")).check()
        await server.close()

    with_server(tmp_path, scenario)


def test_answers_that_nobody_reads_are_few(tmp_path: Path) -> None:
    async def scenario(world: World, _: Path) -> None:
        server, path = HttpServer({"POST /echo": world.echo}), tmp_path / "open.sock"
        await server.listen_unix(path)
        with ExitStack() as stack:
            peers = [stack.enter_context(await deaf(path)) for _ in range(20)]
            assert all([await asyncio.to_thread(hung_up, sock) for sock in peers[:4]])
            for sock in peers[4:]:
                assert await rest(sock, len(LARGE)) == len(LARGE)
        await server.close()

    with_server(tmp_path, scenario)


def test_who_asks_no_more_reads_all_of_the_answer(tmp_path: Path) -> None:
    async def scenario(_: World, path: Path) -> None:
        for body in (LARGE, LARGE[:280_000]):
            with await deaf(path, body) as sock:
                sock.shutdown(socket.SHUT_WR)
                for _ in range(100):  # until the server has done all that it can
                    await asyncio.sleep(0)
                assert await rest(sock) > len(body)

    with_server(tmp_path, scenario)


def test_a_stream_ends_with_its_reader(tmp_path: Path) -> None:
    async def scenario(world: World, path: Path) -> None:
        async with open_stream(path, "GET", "/count") as (status, _, pieces):
            assert status == 200
            lines = read_lines(pieces)
            assert [await anext(lines) for _ in range(3)] == [b"0", b"1", b"2"]
        await world.stream_closed.wait()

    with_server(tmp_path, scenario)


def test_a_stream_that_has_nothing_to_say_ends_with_its_reader_too(tmp_path: Path) -> None:
    async def scenario(world: World, path: Path) -> None:
        async with open_stream(path, "GET", "/once") as (_, _, pieces):
            assert await anext(pieces) == b"one"
        await world.stream_closed.wait()

    with_server(tmp_path, scenario)


def test_a_stream_that_ends_ends_its_connection(tmp_path: Path) -> None:
    async def scenario(world: World, path: Path) -> None:
        world.is_endless = False
        head, _, body = (await reply_to(path, b"GET /once HTTP/1.1\r\n\r\n")).partition(b"\r\n\r\n")
        assert b"connection: close" in head and body == b"3\r\none\r\n0\r\n\r\n"

    with_server(tmp_path, scenario)


def test_a_stream_waits_for_who_reads_slowly(tmp_path: Path) -> None:
    async def scenario(world: World, path: Path) -> None:
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET /large HTTP/1.1\r\n\r\n")
        await world.begun.wait()
        for _ in range(2000):
            await asyncio.sleep(0)
        assert world.given < 100, "the rest would be in memory"
        writer.close()

    with_server(tmp_path, scenario)


def test_close_ends_streams(tmp_path: Path) -> None:
    async def scenario(world: World, path: Path) -> None:
        async with open_stream(path, "GET", "/count") as (_, _, pieces):
            await anext(pieces)
            await world.server.close()
            with pytest.raises((HttpError, ConnectionError)):
                async for _ in pieces:
                    pass
        assert world.stream_closed.is_set()

    with_server(tmp_path, scenario)


@pytest.mark.parametrize("unix", [True, False])
def test_a_server_serves_until_it_is_cancelled(tmp_path: Path, unix: bool) -> None:
    async def scenario() -> None:
        world = World()
        target: Target = tmp_path / "serve.sock" if unix else ("127.0.0.1", unused_port())
        serving = asyncio.ensure_future(world.server.serve(target))

        async def answers() -> bool:
            try:
                return (await request(target, "GET", "/hello")).status == 200
            except OSError:
                return False

        while not await answers():  # noqa: ASYNC110  the server begins meanwhile
            await asyncio.sleep(0)
        async with open_stream(target, "GET", "/count") as (_, _, pieces):
            await anext(pieces)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert world.stream_closed.is_set() and not await answers()

    asyncio.run(scenario())


def test_curl_understands_it(tmp_path: Path) -> None:
    curl = shutil.which("curl")
    assert curl, "curl is not installed: ./setup.sh run"

    async def scenario(_: World, path: Path) -> None:
        run = await asyncio.to_thread(
            subprocess.run,
            [curl, "-sS", "--unix-socket", str(path), "-d", "body", "http://weft/echo"],
            capture_output=True,
            timeout=50,
        )
        assert (run.stdout, run.stderr) == (b"body", b"")

    with_server(tmp_path, scenario)


@given(st.binary(max_size=300))
def test_any_head_is_read_or_refused(head: bytes) -> None:
    for text in (head, b"GET /" + head + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + head + b"\r\n\r\n"):
        try:
            assert parse_request(text).path.startswith("/")
        except HttpError as error:
            assert error.status in (400, 501)


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("br, GZIP;q=0.5", True), ("gzip;q=0", False), ("gzip;q=0.000", False), ("br", False), ("", False)],
)
def test_a_long_body_is_packed_for_who_takes_it(tmp_path: Path, accepted: str, packed: bool) -> None:
    body = b"istio_tcp_connections_opened_total 1\n" * 100

    async def scenario() -> None:
        async def answer(_: Request) -> Response:
            return Response(200, body)

        server = HttpServer({"GET /metrics": answer})
        await server.listen_unix(tmp_path / "s")
        head = f"GET /metrics HTTP/1.1\r\naccept-encoding: {accepted}\r\nconnection: close\r\n\r\n"
        answered, _, content = (await reply_to(tmp_path / "s", head.encode())).partition(b"\r\n\r\n")
        assert (b"content-encoding: gzip" in answered) is packed
        assert (gzip.decompress(content) if packed else content) == body
        assert not packed or len(content) < len(body) // 5
        await server.close()

    asyncio.run(scenario())


def test_an_answer_may_take_as_long_as_who_asks_for_it_waits(tmp_path: Path) -> None:
    """Longer than those wait who do not say how long."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            clock = loop.time
            loop.time = lambda: clock() + 100  # type: ignore[method-assign]
            for _ in range(5):  # whoever's time is over has its turn
                await asyncio.sleep(0)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
            writer.close()

        async with await asyncio.start_unix_server(answer, tmp_path / "s.sock"):
            assert (await request(tmp_path / "s.sock", "GET", "/", timeout_s=1000)).check() == b"late"
            with pytest.raises(TimeoutError):
                await request(tmp_path / "s.sock", "GET", "/", timeout_s=99)

    asyncio.run(scenario())
