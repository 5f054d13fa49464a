"""The ZDS client against a scripted agent on a real SOCK_SEQPACKET socket, with packets recorded from the originals."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.proto.zds_pb2 import WorkloadRequest
from tests.descriptors import few_descriptors, open_descriptors
from tests.zds_packets import (
    ADD_ONE,
    ADD_WEB,
    ADD_WITHOUT_INFO,
    BIND_ERROR,
    DEL_ONE,
    HELLO,
    IN_USE,
    KEEP_WEB,
    LATE_KEEP,
    NO_CONTROL,
    NO_INFO,
    NO_PAYLOAD,
    NOTHING,
    ONE_UID,
    SECOND_SNAPSHOT,
    SNAPSHOT,
    SUCCESS,
    WEB_UID,
)
from wire.fds import Packet, PacketStream
from wire.netns import netns_id
from ztunnel import zds, zds_session

pytestmark = pytest.mark.unit


def ack(text: str) -> bytes:
    body = text.encode()
    inner = b"\x0a" + bytes([len(body)]) + body
    return b"\x0a" + bytes([len(inner)]) + inner


class Host:
    """Keeps books about pods; a uid in `broken` cannot be started."""

    def __init__(self) -> None:
        self.pods: dict[str, tuple[zds_session.PodInfo, tuple[int, int]]] = {}
        self.broken: set[str] = set()
        self.attempts: Counter[str] = Counter()
        self.steps: list[str] = []

    def running(self) -> Iterable[str]:
        return self.pods

    def serves(self, uid: str, netns: tuple[int, int]) -> bool:
        return uid in self.pods and self.pods[uid][1] == netns

    async def start(self, pod: zds_session.PodInfo, netns_fd: int) -> None:
        self.attempts[pod.uid] += 1
        if pod.uid in self.broken:
            raise zds_session.StartError(BIND_ERROR)
        self.steps.append(f"start {pod.name}")
        self.pods[pod.uid] = (pod, netns_id(netns_fd))

    async def stop(self, uid: str) -> None:
        if self.pods.pop(uid, None):
            self.steps.append(f"stop {uid[:2]}")

    def complete(self) -> None:
        self.steps.append("complete")


class Agent:
    """The other end, packet by packet."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.setblocking(False)

    async def accept(self) -> None:
        accepted, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self.stream = PacketStream(accepted)
        assert (await self.stream.receive()).data == HELLO

    async def tell(self, packet: bytes, *netns: Path) -> bytes:
        fds = [os.open(path, os.O_RDONLY) for path in netns]
        await self.stream.send(packet, fds)
        for fd in fds:
            os.close(fd)
        return (await self.stream.receive()).data

    async def closed(self) -> None:
        assert await self.stream.receive() == Packet(b"", [])
        self.stream.close()


def converse(tmp_path: Path, scenario: Callable[[Agent, zds.ZdsClient, Host, "asyncio.Task[None]"], Awaitable[None]]) -> None:
    before = open_descriptors()

    async def run() -> None:
        agent, host = Agent(tmp_path / "zds"), Host()
        client = zds.ZdsClient(tmp_path / "zds", host)
        running = asyncio.ensure_future(client.run())
        await agent.accept()
        await scenario(agent, client, host, running)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        agent.stream.close()
        agent.listener.close()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert open_descriptors() <= before, "descriptors leaked"


@pytest.fixture
def spaces(tmp_path: Path) -> list[Path]:
    """Files whose (device, inode) stand for namespaces."""
    paths = [tmp_path / f"ns{number}" for number in range(3)]
    for path in paths:
        path.touch()
    return paths


def test_snapshot_then_live_and_every_add_idempotent(tmp_path: Path, spaces: list[Path]) -> None:
    async def scenario(agent: Agent, client: zds.ZdsClient, host: Host, _: Any) -> None:
        assert not client.ready
        assert await agent.tell(ADD_WEB, spaces[0]) == SUCCESS
        assert host.pods[WEB_UID][0] == zds_session.PodInfo(WEB_UID, "amb", "web-97958b57f-gsv6n", "websa")
        assert await agent.tell(ADD_ONE, spaces[1]) == SUCCESS
        assert not client.ready
        assert await agent.tell(SNAPSHOT) == SUCCESS
        assert client.ready
        assert await agent.tell(ADD_WEB, spaces[0]) == SUCCESS
        assert host.steps == ["start web-97958b57f-gsv6n", "start one", "complete"]
        assert await agent.tell(ADD_WEB, spaces[2]) == SUCCESS
        assert host.steps[3:] == ["stop 6b", "start web-97958b57f-gsv6n"]
        assert await agent.tell(DEL_ONE) == SUCCESS and await agent.tell(DEL_ONE) == SUCCESS
        assert host.steps[5:] == ["stop 99"]

    converse(tmp_path, scenario)


def test_a_new_snapshot_stops_who_is_not_named_and_keeps_who_is_kept(tmp_path: Path, spaces: list[Path]) -> None:
    async def scenario(agent: Agent, client: zds.ZdsClient, host: Host, _: Any) -> None:
        await agent.tell(ADD_WEB, spaces[0])
        await agent.tell(ADD_ONE, spaces[1])
        await agent.tell(SNAPSHOT)
        agent.stream.close()
        await agent.accept()
        assert not client.ready and set(host.pods) == {WEB_UID, ONE_UID}, "a lost agent stops nobody"
        assert await agent.tell(KEEP_WEB) == SUCCESS
        assert await agent.tell(ADD_ONE, spaces[1]) == SUCCESS
        assert await agent.tell(DEL_ONE) == SUCCESS
        assert set(host.pods) == {WEB_UID, ONE_UID}, "before the snapshot Del only forgets the name"
        assert await agent.tell(SNAPSHOT) == SUCCESS
        assert set(host.pods) == {WEB_UID} and client.ready

    converse(tmp_path, scenario)


def test_a_pod_that_does_not_start_is_pending_and_no_reason_for_the_node_to_wait(
    tmp_path: Path, spaces: list[Path], eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zds_session, "RETRY_S", 0.02)

    async def scenario(agent: Agent, client: zds.ZdsClient, host: Host, _: Any) -> None:
        host.broken = {WEB_UID}
        assert await agent.tell(ADD_WEB, spaces[0]) == IN_USE
        assert await agent.tell(SNAPSHOT) == SUCCESS
        assert [pod.uid for pod in client.pending] == [WEB_UID] and client.ready
        # The agent's messages keep no pod from its next attempt.
        while client.pending:
            assert await agent.tell(ADD_ONE, spaces[1]) == SUCCESS
            host.broken = set() if host.attempts[WEB_UID] > 2 else host.broken
        assert WEB_UID in host.pods
        host.broken = {ONE_UID}
        assert await agent.tell(ADD_ONE, spaces[2]) == IN_USE
        assert client.ready and client.pending
        assert await agent.tell(DEL_ONE) == SUCCESS and not client.pending

    converse(tmp_path, scenario)


def test_an_agent_that_breaks_off_in_the_snapshot_is_not_stormed(
    tmp_path: Path, spaces: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, sleep = list[float](), asyncio.sleep

    async def note(pause_s: float) -> None:
        pauses.append(pause_s)
        await sleep(pause_s)

    async def scenario(agent: Agent, client: zds.ZdsClient, host: Host, _: Any) -> None:
        monkeypatch.setattr(zds.asyncio, "sleep", note)
        for _ in range(4):
            await agent.tell(ADD_WEB, spaces[0])
            agent.stream.close()
            await agent.accept()
        assert pauses == [0.02, 0.04, 0.08, 0.16]
        await agent.tell(SNAPSHOT)
        agent.stream.close()
        await agent.accept()
        assert len(pauses) == 4, "after a whole snapshot the next connection comes at once"

    converse(tmp_path, scenario)


def test_who_has_no_descriptor_left_says_so_once_and_waits(
    tmp_path: Path, spaces: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot that was complete before is no reason to begin anew at once: all pods are named again each time."""
    pauses, sleep = list[float](), asyncio.sleep

    async def note(pause_s: float) -> None:
        pauses.append(pause_s)
        await sleep(0)

    async def scenario(agent: Agent, client: zds.ZdsClient, host: Host, _: Any) -> None:
        monkeypatch.setattr(zds.asyncio, "sleep", note)
        with spaces[0].open() as netns:
            for _ in range(3):
                await agent.tell(SNAPSHOT)
                with few_descriptors(0):
                    await agent.stream.send(ADD_WEB, [netns.fileno()])
                    answer = (await agent.stream.receive()).data
                assert answer == ack("failure to read message : Too many open files: raise the limit (RLIMIT_NOFILE)")
                await agent.closed()
                await agent.accept()
        # Where none is left for a connection of its own either, that is one more pause.
        assert len(pauses) >= 3 and set(pauses) == {zds.RETRY_S} and host.attempts == Counter()
        assert sum("no descriptor is left for what it says" in line for line in caplog.messages) == 1

    converse(tmp_path, scenario)


@pytest.mark.parametrize(
    ("packet", "fds", "answer"),
    [
        (ADD_WEB, 0, NO_CONTROL),
        (NOTHING, 0, NO_PAYLOAD),
        (SNAPSHOT, 1, ack("failure to read message : Unexpected control message")),
        (ADD_WEB, 2, ack("failure to read message : Expected 1 FD, got 2")),
        (NOTHING, 2, ack("failure to read message : Expected 1 FD, got 2")),
        (b"\x0a" * 5000, 0, ack("failure to read message : received truncated message")),
    ],
)
def test_what_is_no_message_is_answered_and_ends_the_connection(
    tmp_path: Path, spaces: list[Path], packet: bytes, fds: int, answer: bytes
) -> None:
    async def scenario(agent: Agent, client: zds.ZdsClient, host: Host, _: Any) -> None:
        assert await agent.tell(packet, *spaces[:fds]) == answer
        await agent.closed()
        await agent.accept()
        assert not host.steps

    converse(tmp_path, scenario)


@pytest.mark.parametrize(
    ("packets", "fds", "answer", "words"),
    [
        ([SNAPSHOT, SNAPSHOT], 0, SECOND_SNAPSHOT, "pod snapshot received already"),
        ([SNAPSHOT, KEEP_WEB], 0, LATE_KEEP, "pod keep received after snapshot"),
        ([ADD_WITHOUT_INFO], 1, NO_INFO, "workload_info is required but not present"),
    ],
)
def test_a_broken_order_is_answered_and_ends_the_client(
    tmp_path: Path, spaces: list[Path], packets: list[bytes], fds: int, answer: bytes, words: str
) -> None:
    async def scenario(agent: Agent, client: zds.ZdsClient, host: Host, running: "asyncio.Task[None]") -> None:
        for packet in packets[:-1]:
            assert await agent.tell(packet) == SUCCESS
        assert await agent.tell(packets[-1], *spaces[:fds]) == answer
        with pytest.raises(zds_session.ZdsProtocolError, match=words):
            await running

    converse(tmp_path, scenario)


def test_an_agent_that_comes_later_is_found(tmp_path: Path) -> None:
    async def run() -> None:
        client = zds.ZdsClient(tmp_path / "late", Host())
        running = asyncio.ensure_future(client.run())
        await asyncio.sleep(0)
        agent = Agent(tmp_path / "late")
        await agent.accept()
        assert client.connected and not client.ready
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        agent.stream.close()
        agent.listener.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_an_agent_that_takes_no_word_is_greeted_again_ever_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def to_nobody(*_: object, **__: object) -> PacketStream:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        return PacketStream(ours)

    async def note(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 15:
            raise asyncio.CancelledError

    monkeypatch.setattr(zds.PacketStream, "connect", to_nobody)
    monkeypatch.setattr(zds.asyncio, "sleep", note)
    client = zds.ZdsClient(tmp_path / "agent", Host())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(client.run())
    assert client.last_error == "[Errno 32] Broken pipe"
    assert all(abs(pause_s / min(0.005 * 2**turn, 15) - 1) <= 0.2 for turn, pause_s in enumerate(pauses))
    assert len({round(pause_s / 0.005 / 2**turn, 6) for turn, pause_s in enumerate(pauses[:10])}) > 1, "no two nodes in step"


@given(st.one_of(st.binary(max_size=100), st.from_type(bytes).map(lambda tail: ADD_WEB + tail)), st.integers(0, 3))
def test_any_packet_is_a_message_or_refused_with_a_reason(data: bytes, count: int) -> None:
    try:
        request = zds_session.read_request(Packet(data, [-1] * count))
    except zds_session.ReadError as error:
        assert str(error)
    else:
        assert isinstance(request, WorkloadRequest)
        assert count == (request.WhichOneof("payload") == "add")
