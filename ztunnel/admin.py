"""What an operator, kubelet and Prometheus may ask: HTTP on admin.sock, and on TCP 15000, 15020 and 15021."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from wire.http_messages import HttpError, Request, Response
from wire.http_server import HttpServer
from wire.seldom import Seldom
from ztunnel import succession
from ztunnel.channel import ProfileKind
from ztunnel.config_dump import JSON, dump_connection_fully
from ztunnel.dns_sockets import has_ipv6_loopback
from ztunnel.flow_feed import FlowFeed
from ztunnel.log_levels import LogLevels
from ztunnel.metrics import Family, render
from ztunnel.profiler import MAX_FREQUENCY, MAX_SECONDS, USUAL_FREQUENCY, USUAL_SECONDS, Profiler
from ztunnel.workers import OpenConnections

_log = logging.getLogger(__name__)
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Proxy(Protocol):
    """What the endpoints show and do."""

    flows: FlowFeed
    log_levels: LogLevels
    profiler: Profiler

    def waits_for(self) -> list[str]:
        """What is missing for readiness."""

    def families(self) -> list[Family]:
        """The metrics."""

    async def connections(self) -> OpenConnections:
        """The open connections, with their workers."""

    async def config_dump(self) -> JSON:
        """Everything that is known."""

    async def dashboard(self) -> str:
        """The page for a browser."""

    def step_aside(self) -> None:
        """A successor takes over: leave it what only one may write. Blocks."""

    def step_back(self) -> None:
        """It ended before its time."""

    def quit(self) -> None:
        """Drain and end."""


class Admin:
    """The endpoints of one proxy."""

    def __init__(self, proxy: Proxy, ipv6: bool = True) -> None:
        """Without `ipv6`: on IPv4 alone."""
        self._proxy = proxy
        self._loopbacks = ("127.0.0.1", "::1") if ipv6 and has_ipv6_loopback() else ("127.0.0.1",)
        self._everywhere = "" if ipv6 else "0.0.0.0"
        every: Mapping[str, Callable[[Request], Awaitable[Response]]] = {
            "GET /": self._dashboard,
            "GET /config_dump": self._config_dump,
            "GET /debug/pprof/heap": partial(self._profile, "heap"),
            "GET /debug/pprof/profile": partial(self._profile, "cpu"),
            "GET /connections": self._connections,
            "GET /flows": self._flows,
            "GET /healthz/ready": self._ready,
            "GET /logging": self._logging,
            "POST /logging": self._logging,
            "GET /metrics": self._metrics,
            "GET /stats/prometheus": self._metrics,
            "POST /quitquitquit": self._quit,
        }
        self._local = HttpServer({**every, f"POST {succession.PATH}": self._succeed})
        self._all = HttpServer(every)
        self._scraped = Seldom(self._render)
        scrapes = dict.fromkeys(("GET /metrics", "GET /stats/prometheus"), self._scrape)
        self._only_metrics = HttpServer(scrapes, max_body_bytes=0)
        self._only_ready = HttpServer({"GET /healthz/ready": self._ready}, max_body_bytes=0)
        self._where: tuple[Path, int, int, int] | None = None

    @property
    def _servers(self) -> tuple[HttpServer, ...]:
        return self._local, self._all, self._only_metrics, self._only_ready

    async def listen(self, path: Path, admin_port: int, metrics_port: int, readiness_port: int) -> None:
        """Open all sockets, last the one by which others judge us; port 0 leaves one out. OSError when a port is taken."""
        self._where = (path, admin_port, metrics_port, readiness_port)
        for server, host, port, name in (
            *((self._all, loopback, admin_port, "ADMIN_PORT") for loopback in self._loopbacks),
            (self._only_metrics, self._everywhere, metrics_port, "STATS_PORT"),
            (self._only_ready, self._everywhere, readiness_port, "READINESS_PORT"),
        ):
            try:
                if port:
                    await server.listen_tcp(host, port)
            except OSError as error:
                reason = os.strerror(error.errno or 0).lower()
                where = f"port {port} of {host or 'all addresses'}"
                raise OSError(f"{where}: {reason}: set {name} to another one, or to 0 for none") from error
        try:
            await self._local.listen_unix(path)
        except OSError as error:
            raise OSError(f"{path}: {error.strerror}: name a folder that can be written (WEFT_RUN_DIR)") from error

    async def _release(self) -> None:
        """Leave all to a successor; who is connected is served on."""
        for server in self._servers:
            server.stop_listening()
        await asyncio.to_thread(self._proxy.step_aside)

    def retire(self) -> None:
        """Never take them back: a successor that ends from now on has a successor itself, whose they are."""
        self._where = None

    async def close(self) -> None:
        """Close everything, streams too."""
        self._where = None
        for server in self._servers:
            await server.close()

    async def _succeed(self, _: Request) -> Response:
        return Response(stream=succession.hand_over(self._release, self._take_back, serves=self._where is not None))

    async def _take_back(self) -> None:
        if self._where is not None:
            self._proxy.step_back()
            try:
                await self.listen(*self._where)
            except OSError as error:
                _log.warning("the successor is gone, and its endpoints are taken: %s", error)

    async def _dashboard(self, _: Request) -> Response:
        return Response(200, (await self._proxy.dashboard()).encode(), "text/html; charset=utf-8")

    async def _config_dump(self, _: Request) -> Response:
        return Response.json(await self._proxy.config_dump())

    async def _profile(self, kind: ProfileKind, request: Request) -> Response:
        if self._proxy.profiler.busy:
            raise HttpError(503, "a profile is being taken: ask again when it is done")
        seconds = _whole(request, "seconds", USUAL_SECONDS, MAX_SECONDS)
        frequency = _whole(request, "frequency", USUAL_FREQUENCY, MAX_FREQUENCY)
        return Response(200, await self._proxy.profiler.take(kind, seconds, frequency), "application/octet-stream")

    async def _connections(self, _: Request) -> Response:
        rows, silent = await self._proxy.connections()
        headers = {"silent-workers": str(silent)} if silent else {}
        return Response.json([dump_connection_fully(*row) for row in rows], headers=headers)

    async def _flows(self, _: Request) -> Response:
        if not self._proxy.flows.has_room:
            raise HttpError(503, "too many readers of flows are served already: close one")
        return Response(content_type="application/x-ndjson", stream=self._proxy.flows.stream())

    async def _ready(self, _: Request) -> Response:
        missing = self._proxy.waits_for()
        if missing:
            return Response(500, ("not ready, pending: " + ", ".join(missing) + "\n").encode())
        return Response(200, b"ready\n")

    async def _render(self) -> bytes:
        return render(self._proxy.families())

    async def _metrics(self, request: Request) -> Response:
        return _exposition(request, await self._render())

    async def _scrape(self, request: Request) -> Response:
        return _exposition(request, await self._scraped.get())

    async def _logging(self, request: Request) -> Response:
        levels = self._proxy.log_levels
        if request.method != "POST" and request.query:
            raise HttpError(405, "/logging: use POST to change levels")
        try:
            if "reset" in request.query:
                levels.reset(request.query.get("level", ""))
            elif level := request.query.get("level"):
                levels.set(level)
        except ValueError as error:
            raise HttpError(400, str(error)) from error
        return Response(200, f"current log level is {levels.text}\n".encode())

    async def _quit(self, _: Request) -> Response:
        self._proxy.quit()
        return Response(200, b"shutdown now\n")


def _exposition(request: Request, metrics: bytes) -> Response:
    asked = "application/openmetrics-text" in request.headers.get("accept", "")
    return Response(200, metrics, _OPENMETRICS if asked else "text/plain; charset=utf-8")


def _whole(request: Request, name: str, usual: int, most: int) -> int:
    """A number of the query, from 1 to `most`."""
    text = request.query.get(name, str(usual))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise HttpError(400, f"invalid {name} value {text[:40]!r}: expected 1-{most}")
    return int(text)
