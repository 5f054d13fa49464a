"""agent.sock: one socket for two kinds of callers, told apart by their first bytes.

Runtimes speak HTTP/1.1 (`POST /cmdadd`, `POST /cmddel`), operators' tools gRPC, whose connections begin with `PRI `. gRPC
servers take no connection from elsewhere, so such a connection is joined to a private socket beside.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent import plugin
from agent.enrolment import Enrolment, EnrolmentFailed
from wire.http_messages import HttpError, Request, Response
from wire.http_server import HttpServer
from wire.unix_socket import bind

GRPC_PREFACE = b"PRI "
_FIRST_BYTES_TIMEOUT_S = 10.0
_PIECE_BYTES = 64 << 10


class Door:
    """Serves agent.sock; `run` until cancelled."""

    def __init__(self, path: Path, grpc_path: Path, enrolment: Enrolment) -> None:
        self._path = path
        self._grpc_path = grpc_path
        self._enrolment = enrolment
        self._http = HttpServer({"POST /cmdadd": self._add, "POST /cmddel": self._remove, "GET /healthz": _healthy})

    async def run(self) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_unix_server(self._meet, sock=bind(self._path))
        try:
            async with server:
                await server.serve_forever()
        finally:
            await self._http.close()

    async def _add(self, request: Request) -> Response:
        return await _done(lambda: self._enrolment.add(plugin.parse_add(request.body)))

    async def _remove(self, request: Request) -> Response:
        return await _done(lambda: self._enrolment.remove(plugin.parse_delete(request.body)))

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_FIRST_BYTES_TIMEOUT_S):
                first = await reader.readexactly(len(GRPC_PREFACE))
            if first == GRPC_PREFACE:
                await self._join(reader, writer, first)
            else:
                await self._http.handle(reader, writer, first)
        except (OSError, EOFError, TimeoutError):
            pass  # the caller went away, or never said anything
        except asyncio.CancelledError:
            pass  # the agent stops: asyncio's server would report this task as failed
        finally:
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(str(self._grpc_path))
        inner_writer.write(first)
        try:
            forth = asyncio.ensure_future(_copy(reader, inner_writer))
            back = asyncio.ensure_future(_copy(inner_reader, writer))
            try:
                await asyncio.wait([forth, back], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copying in (forth, back):
                    copying.cancel()
                await asyncio.gather(forth, back, return_exceptions=True)
        finally:
            inner_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()


async def _done(step: Callable[[], Awaitable[None]]) -> Response:
    try:
        await step()
    except ValueError as error:
        raise HttpError(400, str(error)) from error
    except EnrolmentFailed as error:
        raise HttpError(503, str(error)) from error
    except OSError as error:
        raise HttpError(500, str(error)) from error
    return Response()


async def _healthy(_: Request) -> Response:
    return Response(body=b"ok\n")
