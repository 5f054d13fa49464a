"""A small HTTP/1.1 client for admin endpoints, over unix and TCP sockets: whole replies, or bodies that go on for ever.

Everything is bounded in size and time, as is what wire.http_server serves.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

from wire.http_messages import HttpError, Reply, Target, parse_fields

MAX_REPLY_BYTES = 256 << 20
"""A config dump of a large mesh is tens of megabytes."""
_FULL_PAUSE_S = 0.05


async def request(
    target: Target, method: str, path: str, body: bytes = b"", timeout_s: float = 10.0, max_bytes: int = MAX_REPLY_BYTES
) -> Reply:
    """Send one request and read the whole reply.

    Raises: OSError when nobody listens; TimeoutError; HttpError 502 for a reply that is no HTTP or beyond `max_bytes`.
    """
    async with asyncio.timeout(timeout_s), open_stream(target, method, path, body, timeout_s) as (status, headers, pieces):
        whole = bytearray()
        async for piece in pieces:
            whole += piece
            if len(whole) > max_bytes:
                raise HttpError(502, f"{path}: reply beyond {max_bytes} bytes")
        return Reply(status, headers, bytes(whole))


@asynccontextmanager
async def open_stream(
    target: Target, method: str, path: str, body: bytes = b"", timeout_s: float = 10.0
) -> AsyncIterator[tuple[int, Mapping[str, str], AsyncIterator[bytes]]]:
    """Send one request; give status, headers and the body in pieces as they come, for as long as the server goes on.

    `timeout_s` bounds the time until the head of the reply. Raises: as `request`.
    """
    async with asyncio.timeout(timeout_s):
        reader, writer = await _connect(target)
    try:
        async with asyncio.timeout(timeout_s):
            writer.write(
                f"{method} {path} HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await writer.drain()
            status, headers = await _read_reply_head(reader)
        async with aclosing(_pieces(reader, headers)) as pieces:
            yield status, headers, pieces
    finally:
        writer.transport.abort()  # not close: that would wait for a server that does not read
        with suppress(OSError):
            await writer.wait_closed()


async def read_lines(pieces: AsyncIterator[bytes], max_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
    """Cut a stream at its line ends. Raises: HttpError 502 for a line beyond `max_bytes`."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > max_bytes:
            raise HttpError(502, f"line beyond {max_bytes} bytes")
    if rest:
        yield rest


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(target, Path):
        return await asyncio.open_unix_connection(sock=await _connect_unix(target))
    return await asyncio.open_connection(*target)


async def _connect_unix(path: Path) -> socket.socket:
    """Wait for a place in the queue of who hangs: asyncio takes a full one (EAGAIN) for a connection. Raises: OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                sock.connect(str(path))
            except BlockingIOError:
                await asyncio.sleep(_FULL_PAUSE_S)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


async def _read_reply_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        version, _, status = line.partition(" ")
        if not version.startswith("HTTP/1.") or not status[:3].isdigit():
            raise ValueError(f"not a reply: {line[:100]!r}")
        return int(status[:3]), parse_fields(fields)
    except (ValueError, EOFError, asyncio.LimitOverrunError) as error:
        raise HttpError(502, f"no HTTP reply: {error}") from error


async def _pieces(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
    try:
        if headers.get("transfer-encoding") == "chunked":
            while size := int((await reader.readline()).split(b";")[0], 16):
                if size > MAX_REPLY_BYTES:
                    raise HttpError(502, f"chunk of {size} bytes")
                yield await reader.readexactly(size)
                await reader.readexactly(2)
            return
        left = int(headers.get("content-length", MAX_REPLY_BYTES))
        while left > 0 and (piece := await reader.read(min(left, 64 << 10))):
            left -= len(piece)
            yield piece
        if left > 0 and "content-length" in headers:
            raise EOFError(f"{left} bytes are missing")
    except (ValueError, EOFError) as error:
        raise HttpError(502, f"reply broke off: {error}") from error
