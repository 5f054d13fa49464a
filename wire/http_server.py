"""A small HTTP/1.1 server for admin endpoints, over unix and TCP sockets. Everything is bounded in size and time.

For a handful of readers (operators' tools, the agent, Prometheus, kubelet), whom others that reach the same port cannot keep
out: no TLS, no uploads, no chunked requests. A response body may be a stream without end: it is sent in chunks, and its source
is closed as soon as the reader goes away.
"""

import asyncio
import gzip
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

from wire.http_messages import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    HttpError,
    Request,
    Response,
    Target,
    content_length,
    parse_request,
    takes_gzip,
)
from wire.unix_socket import bind

_PACK_ABOVE_BYTES, _PACK_LEVEL = 1024, 1
HEAD_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 60.0
WRITE_TIMEOUT_S = 30.0
_MAX_CONNECTIONS = 128
"""More than asyncio accepts at a time: nobody is cut before it could be heard."""
_MAX_UNREAD = 16
"""Answers whose readers take their time."""

_log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """Serves routes, written `GET /path`, on any number of sockets, to at most `max_connections` peers at a time."""

    def __init__(
        self, routes: Mapping[str, Handler], max_connections: int = _MAX_CONNECTIONS, max_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        self._routes = routes
        self._max_connections = max_connections
        self._max_body_bytes = max_body_bytes
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._asking: dict[asyncio.Task[None], None] = {}
        """Those that have not said (all of) what they want, oldest first."""
        self._reading: dict[asyncio.Task[None], None] = {}
        """Those that have not read (enough of) the answer, oldest first."""

    async def listen_unix(self, path: Path, mode: int = 0o600) -> None:
        """Listen at `path`, in place of what is there; nobody but `mode` allows ever connects."""
        self._servers.append(await asyncio.start_unix_server(self.handle, sock=bind(path, mode), limit=MAX_HEAD_BYTES))

    async def listen_tcp(self, host: str, port: int) -> int:
        """Listen on a TCP port; the port that it is (for port 0). OSError when it is taken."""
        server = await asyncio.start_server(self.handle, host, port, limit=MAX_HEAD_BYTES)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = b"") -> None:
        """Serve one connection to its end and close it; `first` are bytes that were read from it already."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(0)  # what was sent is with the kernel
        try:
            if len(self._connections) > self._max_connections and not self._make_room():
                await _send(writer, Response(503, b"too many connections\n"), close=True)
                return
            while await self._serve_one(reader, writer, first):
                first = b""
        except EOFError:
            pass  # the peer asks no more
        except (OSError, TimeoutError):
            writer.transport.abort()  # it went away, or sits on the connection
        except asyncio.CancelledError:
            writer.transport.abort()  # close(): asyncio's server would report this task as failed
        finally:
            self._connections.discard(task)
            writer.close()

    @contextmanager
    def _waiting(self, among: dict[asyncio.Task[None], None]) -> Iterator[None]:
        """The body waits for the peer: the connection may have to make room for others."""
        task = asyncio.current_task()
        assert task is not None
        among[task] = None
        try:
            yield
        finally:
            among.pop(task, None)

    def _make_room(self) -> bool:
        return _cut_oldest(self._asking) or _cut_oldest(self._reading)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> bool:
        try:
            with self._waiting(self._asking):
                request = await _read_request(reader, first, self._max_body_bytes)
        except HttpError as error:
            with self._waiting(self._reading):
                await _send(writer, Response(error.status, error.reason.encode() + b"\n"), close=True)
                await _discard(reader, writer)
            return False
        response = await self._answer(request)
        if response.stream is not None:
            await _send_stream(reader, writer, response, response.stream)
            return False
        close = request.headers.get("connection", "").lower() == "close"
        packed = len(response.body) >= _PACK_ABOVE_BYTES and takes_gzip(request.headers.get("accept-encoding", ""))
        if packed:
            response = await asyncio.to_thread(_pack, response)
        if len(self._reading) >= _MAX_UNREAD:
            _cut_oldest(self._reading)
        with self._waiting(self._reading):
            await _send(writer, response, close, packed, request.method == "HEAD")
        return not close

    async def _answer(self, request: Request) -> Response:
        handler = self._routes.get(f"{request.method} {request.path}")
        if handler is None:
            methods = [route.split(" ")[0] for route in self._routes if route.split(" ")[1] == request.path]
            if methods:
                return Response(405, f"{request.path}: use {' or '.join(methods)}\n".encode())
            return Response(404, f"{request.path}: not here\n".encode())
        try:
            return await handler(request)
        except HttpError as error:
            return Response(error.status, error.reason.encode() + b"\n")
        except Exception:  # one bad request must not end the process that serves traffic
            _log.exception("%s %s failed", request.method, request.path)
            return Response(500, b"internal error: see the log\n")

    async def serve(self, target: Target) -> None:
        """Listen there until cancelled; then end every connection."""
        try:
            await (self.listen_unix(target) if isinstance(target, Path) else self.listen_tcp(*target))
            await asyncio.Event().wait()
        finally:
            await self.close()

    def stop_listening(self) -> None:
        """Take no new connections; those that are open go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def close(self) -> None:
        """Stop listening and end every connection, streams too."""
        self.stop_listening()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _cut_oldest(waiting: dict[asyncio.Task[None], None]) -> bool:
    """Cut whom we have waited for longest: who opens connections and says or reads nothing must not keep others out."""
    for task in waiting:
        del waiting[task]
        task.cancel()
        return True
    return False


async def _read_request(reader: asyncio.StreamReader, first: bytes, max_body_bytes: int) -> Request:
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S if first else IDLE_TIMEOUT_S):
            head = first + await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise HttpError(431, f"request head beyond {MAX_HEAD_BYTES} bytes") from error
    request = parse_request(head)
    length = content_length(request.headers, max_body_bytes)
    async with asyncio.timeout(HEAD_TIMEOUT_S):
        body = await reader.readexactly(length)
    return Request(request.method, request.path, request.query, request.headers, body)


async def _discard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # Closing with unread bytes resets the connection, and the peer would never read why it was refused.
    writer.write_eof()
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            for _ in range(64):
                if not await reader.read(64 << 10):
                    return


def _head(response: Response, framing: str) -> bytes:
    reason = HTTPStatus(response.status).phrase
    more = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    return f"HTTP/1.1 {response.status} {reason}\r\ncontent-type: {response.content_type}\r\n{more}{framing}\r\n".encode()


def _pack(response: Response) -> Response:
    return replace(response, body=gzip.compress(response.body, _PACK_LEVEL))


async def _send(
    writer: asyncio.StreamWriter, response: Response, close: bool, packed: bool = False, head_only: bool = False
) -> None:
    framing = f"content-length: {len(response.body)}\r\n" + ("connection: close\r\n" if close else "")
    framing += "content-encoding: gzip\r\nvary: accept-encoding\r\n" if packed else ""
    writer.write(_head(response, framing) + (b"" if head_only else response.body))
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await writer.drain()


async def _send_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, response: Response, stream: AsyncGenerator[bytes, None]
) -> None:
    # A slow reader may take its time: the stream's source bounds what waits for it.
    async def copy() -> None:
        with suppress(OSError):  # the reader went away
            async with aclosing(stream):
                async for piece in stream:
                    if piece:
                        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                        await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    async def until_gone() -> None:
        with suppress(OSError):
            while await reader.read(1024):
                pass
        copying.cancel()

    writer.write(_head(response, "transfer-encoding: chunked\r\nconnection: close\r\n"))
    async with asyncio.TaskGroup() as group:
        copying = group.create_task(copy())
        watching = group.create_task(until_gone())
        await asyncio.wait([copying])
        watching.cancel()
