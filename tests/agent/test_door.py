"""The agent's one socket: runtimes' requests reach enrolment, operators' gRPC reaches its server, byte for byte."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from agent import door
from agent.door import GRPC_PREFACE, Door
from agent.enrolment import Enrolment, EnrolmentFailed
from agent.pod import PodRequest

pytestmark = pytest.mark.unit

ADD = {"Netns": "/run/netns/web", "PodName": "web", "PodNamespace": "demo", "IPs": [], "UID": "uid-1"}


class Pods:
    """Who enrols; fails where it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failure: Exception | None = None

    async def add(self, request: PodRequest) -> None:
        await self._do(f"add {request.uid} {request}")

    async def remove(self, uid: str) -> None:
        await self._do(f"remove {uid}")

    async def _do(self, what: str) -> None:
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure


def served(folder: Path, scenario: Callable[[Path, Pods], Awaitable[None]]) -> None:
    async def run() -> None:
        pods = Pods()
        serving = asyncio.create_task(Door(folder / "agent.sock", folder / "grpc.sock", cast(Enrolment, pods)).run())
        while not (folder / "agent.sock").exists():  # noqa: ASYNC110  it has no event for that
            await asyncio.sleep(0.001)
        await scenario(folder / "agent.sock", pods)
        assert not serving.done()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(run())


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_unix_connection(str(path))
        except ConnectionRefusedError:  # it is bound, and listens a moment later
            await asyncio.sleep(0.001)


async def ask(path: Path, line: str, body: object = None) -> tuple[int, str]:
    reader, writer = await connect(path)
    data = json.dumps(body).encode() if body is not None else b""
    writer.write(f"{line} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    head, _, text = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), text.decode()


def test_runtimes_are_told_what_became_of_their_pods(tmp_path: Path) -> None:
    async def scenario(path: Path, pods: Pods) -> None:
        assert await ask(path, "GET /healthz") == (200, "ok\n")
        assert await ask(path, "POST /cmdadd", ADD) == await ask(path, "POST /cmddel", {"UID": "uid-1"}) == (200, "")
        assert pods.asked == ["add uid-1 demo/web", "remove uid-1"]
        for failure, code in (
            (EnrolmentFailed("pod demo/web is pending"), 503),
            (ValueError("pod demo/web: no namespace"), 400),
            (OSError("Input/output error"), 500),
        ):
            pods.failure = failure
            for line in ("POST /cmdadd", "POST /cmddel"):
                status, text = await ask(path, line, ADD)
                assert status == code and str(failure) in text
        assert (await ask(path, "POST /cmdadd", {}))[0] == (await ask(path, "POST /cmddel", {}))[0] == 400
        assert (await ask(path, "GET /cmdadd"))[0] in (404, 405) and len(pods.asked) == 8

    served(tmp_path, scenario)


def test_grpc_is_joined_to_its_own_server_until_either_side_ends(tmp_path: Path) -> None:
    async def scenario(path: Path, _pods: Pods) -> None:
        met: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await met.put((reader, writer))

        inner = await asyncio.start_unix_server(meet, str(path.with_name("grpc.sock")))
        bulk = bytes(range(256)) * 2048
        for client_ends in (True, False):
            reader, writer = await connect(path)
            writer.write(GRPC_PREFACE[:2])
            writer.write(GRPC_PREFACE[2:] + b"* HTTP/2.0" + bulk)
            their_reader, their_writer = await met.get()
            assert await their_reader.readexactly(14 + len(bulk)) == GRPC_PREFACE + b"* HTTP/2.0" + bulk
            their_writer.write(bulk)
            assert await reader.readexactly(len(bulk)) == bulk
            ends, other = (writer, their_reader) if client_ends else (their_writer, reader)
            ends.close()
            assert await other.read() == b""
            for one in (writer, their_writer):
                one.close()
        inner.close()

    served(tmp_path, scenario)


def test_who_says_nothing_and_who_finds_no_grpc_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(path: Path, _pods: Pods) -> None:
        reader, writer = await connect(path)
        writer.write(GRPC_PREFACE)
        assert await reader.read() == b"", "its server is not there"
        writer.close()
        with monkeypatch.context() as impatient:
            impatient.setattr(door, "_FIRST_BYTES_TIMEOUT_S", 0.01)
            reader, writer = await connect(path)
            assert await reader.read() == b""
            writer.close()
        assert await ask(path, "GET /healthz") == (200, "ok\n")

    served(tmp_path, scenario)


def test_an_end_of_the_agent_ends_what_is_open(tmp_path: Path, caplog: Any) -> None:
    async def scenario(path: Path, _pods: Pods) -> None:
        _, writer = await connect(path)
        writer.write(b"GET ")
        await writer.drain()

    served(tmp_path, scenario)
    assert not caplog.records
