"""The agent's end of ZDS against scripted proxies that speak the recorded bytes of the original."""

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent import zds, zds_connection
from agent.zds import ACCEPT_INTERVAL_S, ZdsServer
from agent.zds_connection import NoProxy, ProxyAway, ProxyPeer
from agent.zds_messages import Announcement, add, delete, keep, parse_ack, parse_hello, snapshot_sent
from mesh.proto import zds_pb2
from tests.descriptors import few_descriptors, open_descriptors
from tests.zds_packets import (
    ADD_ONE,
    ADD_WEB,
    DEL_ONE,
    HELLO,
    KEEP_WEB,
    NO_CONTROL,
    NOTHING,
    ONE_UID,
    SNAPSHOT,
    SUCCESS,
    WEB_UID,
)
from wire.fds import PacketStream

pytestmark = pytest.mark.unit

Trust = Callable[[list[ProxyPeer]], None]
WEB = Announcement(WEB_UID, "amb", "web-97958b57f-gsv6n", "websa")
ONE = Announcement(ONE_UID, "amb", "one", "default")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy is given up because the machine stood still; a test that is about this sets a time of its own."""
    for name in ("HELLO_TIMEOUT_S", "ACK_TIMEOUT_S"):
        monkeypatch.setattr(zds_connection, name, 60.0)


class Book:
    """Pods for a server, and what it was told of them; every namespace is this process's own."""

    def __init__(self, *pods: Announcement, kept: Sequence[str] = ()) -> None:
        self.pods, self.kept = list(pods), kept
        self.answers: list[tuple[str, str]] = []
        self.changes = 0
        self.netns = os.open("/proc/self/ns/net", os.O_RDONLY)

    def snapshot(self) -> tuple[Sequence[Announcement], Sequence[str]]:
        return list(self.pods), self.kept

    def netns_of(self, uid: str) -> int | None:
        return self.netns if uid in {pod.uid for pod in (WEB, ONE)} else None

    def told(self, uid: str, reason: str) -> None:
        self.answers.append((uid, reason))

    def proxy_changed(self) -> None:
        self.changes += 1


@asynccontextmanager
async def serving(path: Path, book: Book, trust: Trust | None = None) -> AsyncIterator[tuple[ZdsServer, list[list[ProxyPeer]]]]:
    peers: list[list[ProxyPeer]] = []
    server = ZdsServer(path, book, trust or peers.append)
    task = asyncio.create_task(server.serve())
    try:
        await until(path.exists)
        yield server, peers
    finally:
        task.cancel()
        [end] = await asyncio.gather(task, return_exceptions=True)
        os.close(book.netns)
        assert isinstance(end, asyncio.CancelledError), end
        await until(lambda: not path.exists())  # a proxy that comes back finds the next agent, or none


async def exchange(proxy: PacketStream, answer: bytes = SUCCESS) -> tuple[bytes, int]:
    packet = await proxy.receive()
    packet.close()
    if packet.data:
        await proxy.send(answer)
    return packet.data, len(packet.fds)


async def connect(path: Path) -> PacketStream:
    proxy = await PacketStream.connect(str(path))
    await proxy.send(HELLO)
    return proxy


async def until(condition: Callable[[], object]) -> None:
    for _ in range(10_000):  # the server has no event for everything a test wants to see
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


def test_packets_are_the_recorded_ones() -> None:
    parse_hello(HELLO)
    assert (add(WEB), add(ONE), keep(WEB_UID)) == (ADD_WEB, ADD_ONE, KEEP_WEB)
    assert (snapshot_sent(), delete(ONE_UID)) == (SNAPSHOT, DEL_ONE)
    assert parse_ack(SUCCESS) == "" and parse_ack(NO_CONTROL) == "failure to read message : No control message"
    for garbage in (b"", NOTHING, b"\xff"):
        with pytest.raises(ValueError, match="acknowledgement"):
            parse_ack(garbage)


async def snapshot_then_live(path: Path) -> None:
    book = Book(WEB, kept=["kept-uid"])
    async with serving(path, book) as (server, peers):
        assert (server.connected_unix_s, server.newest, server.synced, server.last_end) == (0, None, False, "")
        began_s = int(time.time())
        proxy = await connect(path)
        assert await exchange(proxy) == (ADD_WEB, 1)
        assert began_s <= server.connected_unix_s <= time.time()
        assert await exchange(proxy) == (b"\x2a\x0a\x0a\x08kept-uid", 0)
        assert not server.synced
        assert await exchange(proxy) == (SNAPSHOT, 0)
        await until(lambda: server.synced)
        assert book.answers == [(WEB.uid, "")]
        assert [peer.pid for peer in peers[0]] == [os.getpid()] and peers[0][0].cgroup_id > 0
        adding = asyncio.create_task(server.add(ONE))
        assert await exchange(proxy) == (add(ONE), 1)
        await adding
        deleting = asyncio.create_task(server.delete(ONE.uid))
        assert await exchange(proxy) == (DEL_ONE, 0)
        await deleting
        adding = asyncio.create_task(server.add(ONE))
        await exchange(proxy, NO_CONTROL)
        with pytest.raises(ProxyAway, match="amb/one: failure to read message"):
            await adding
        proxy.close()
        await until(lambda: server.newest is None)
        with pytest.raises(NoProxy):
            await server.add(ONE)
        await server.delete(ONE.uid)
        assert book.changes == 2 and peers[-1] == [] and "closed" in server.last_end


def test_snapshot_then_live(tmp_path: Path) -> None:
    asyncio.run(snapshot_then_live(tmp_path / "zds"))


async def two_proxies(path: Path) -> None:
    async with serving(path, Book()) as (server, _):
        old = await connect(path)
        assert (await exchange(old))[0] == SNAPSHOT
        await until(lambda: server.synced)
        new = await connect(path)
        assert (await new.receive()).data == SNAPSHOT and not server.synced, "what the old one has is not the newest one's"
        await new.send(SUCCESS)
        adding = asyncio.create_task(server.add(WEB))
        assert (await exchange(new))[0] == ADD_WEB
        await adding
        deleting = asyncio.create_task(server.delete(ONE.uid))
        assert [(await exchange(one))[0] for one in (old, new)] == [DEL_ONE, DEL_ONE]
        await deleting
        new.close()  # the old one is the newest again
        await until(lambda: server.last_end)
        assert server.synced
        adding = asyncio.create_task(server.add(WEB))
        assert (await exchange(old))[0] == ADD_WEB
        await adding
        old.close()


def test_adds_go_to_the_newest_proxy_withdrawals_to_all(tmp_path: Path) -> None:
    asyncio.run(two_proxies(tmp_path / "zds"))


async def old_one_leaves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = iter((11, 12))
    monkeypatch.setattr(ProxyPeer, "of", lambda _: ProxyPeer(next(pids), 7))
    monkeypatch.setattr(zds, "time", SimpleNamespace(time=iter((1100.0, 1200.0)).__next__))
    book = Book(WEB)
    async with serving(path, book) as (server, peers):
        old = await connect(path)
        assert [await exchange(old), await exchange(old)] == [(ADD_WEB, 1), (SNAPSHOT, 0)]
        new = await connect(path)
        assert [await exchange(new), await exchange(new)] == [(ADD_WEB, 1), (SNAPSHOT, 0)]
        await until(lambda: server.synced)
        changes = book.changes
        assert (server.newest, server.connected_unix_s) == (ProxyPeer(12, 7), 1200) and [one.pid for one in peers[-1]] == [
            11,
            12,
        ]
        old.close()
        await until(lambda: server.last_end)
        assert (server.newest, server.synced, book.changes) == (ProxyPeer(12, 7), True, changes)
        assert [one.pid for one in peers[-1]] == [12]
        new.close()


def test_when_an_old_proxy_leaves_the_newest_has_been_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(old_one_leaves(tmp_path / "zds", monkeypatch))


async def overtaken(path: Path) -> None:
    book = Book(WEB)
    async with serving(path, book) as (server, _):
        old = await connect(path)
        (await old.receive()).close()
        new = await connect(path)
        assert (await exchange(new))[0] == ADD_WEB
        await until(lambda: book.answers == [(WEB_UID, "")])
        await old.send(NO_CONTROL)
        assert (await exchange(old))[0] == SNAPSHOT
        assert book.answers == [(WEB_UID, "")] and not server.synced
        assert (await exchange(new))[0] == SNAPSHOT
        await until(lambda: server.synced)
        adding = asyncio.create_task(server.add(ONE))
        (await new.receive()).close()
        newest = await connect(path)
        assert (await exchange(newest))[0] == ADD_WEB
        await new.send(SUCCESS)
        with pytest.raises(ProxyAway, match="another proxy took over meanwhile"):
            await adding
        for proxy in (old, new, newest):
            proxy.close()


def test_what_a_proxy_says_counts_no_more_when_another_has_come(tmp_path: Path) -> None:
    asyncio.run(overtaken(tmp_path / "zds"))


async def late_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(path, Book()) as (server, _):
        proxy = await connect(path)
        await exchange(proxy)
        await until(lambda: server.synced)
        monkeypatch.setattr(zds_connection, "ACK_TIMEOUT_S", 0.2)
        with pytest.raises(ProxyAway, match="did not answer"):
            await server.add(WEB)
        monkeypatch.setattr(zds_connection, "ACK_TIMEOUT_S", 60.0)  # what follows takes the time that it takes
        adding = asyncio.create_task(server.add(ONE))
        assert (await proxy.receive()).data == ADD_WEB
        await proxy.send(SUCCESS)  # late, and not the answer to what was asked since
        assert (await proxy.receive()).data == add(ONE)
        await proxy.send(NO_CONTROL)
        with pytest.raises(ProxyAway, match="amb/one"):
            await adding
        proxy.close()


def test_a_late_answer_is_not_taken_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(late_answer(tmp_path / "zds", monkeypatch))


async def answer_at_the_last_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(path, Book()) as (server, _):
        proxy = await connect(path)
        await exchange(proxy)
        await until(lambda: server.synced)
        adding = asyncio.create_task(server.add(WEB))
        assert (await proxy.receive()).data == ADD_WEB
        await proxy.send(SUCCESS)
        # The agent finds the answer, and that it waited for too long, at once.
        loop = asyncio.get_running_loop()
        loop.call_soon(monkeypatch.setattr, loop, "time", lambda: time.monotonic() + 2 * zds_connection.ACK_TIMEOUT_S)
        await adding
        adding = asyncio.create_task(server.add(ONE))
        assert (await proxy.receive()).data == add(ONE)
        await proxy.send(NO_CONTROL)
        with pytest.raises(ProxyAway, match="amb/one"):
            await adding
        proxy.close()


def test_an_answer_at_the_last_moment_is_the_one_that_was_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(answer_at_the_last_moment(tmp_path / "zds", monkeypatch))


@pytest.mark.parametrize(
    ("packets", "short", "reason"),
    [
        ([], "HELLO_TIMEOUT_S", "no hello"),
        ([b"\xff"], "", "not a hello"),
        ([HELLO], "ACK_TIMEOUT_S", "during the snapshot"),
        ([HELLO, NOTHING], "", "no acknowledgement"),
        ([HELLO, SUCCESS, SUCCESS, SUCCESS], "", "nobody asked for"),
    ],
)
def test_a_proxy_out_of_step_is_given_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    packets: list[bytes],
    short: str,
    reason: str,
) -> None:
    if short:
        monkeypatch.setattr(zds_connection, short, 0.2)

    async def scenario() -> None:
        async with serving(tmp_path / "zds", Book(WEB)) as (server, peers):
            proxy = await PacketStream.connect(str(tmp_path / "zds"))
            for packet in packets:
                await proxy.send(packet)
            await until(lambda: server.last_end)
            assert reason in server.last_end and server.newest is None and not server._syncing
            assert len(peers) == (2 if HELLO in packets else 0), "who is trusted changes when somebody comes, and goes"
            who = f"proxy (process {os.getpid()})" if HELLO in packets else "somebody on the proxy's socket"
            assert caplog.messages == [f"{who} is away: {server.last_end}"]

    asyncio.run(scenario())


def test_an_answer_to_nothing_is_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path / "zds", Book()) as (server, _):
            proxy = await connect(tmp_path / "zds")
            await exchange(proxy)
            await until(lambda: server.synced)
            await proxy.send(SUCCESS)
            assert not (await proxy.receive()).data, "it hears that it is given up"
            await until(lambda: server.newest is None)
            assert "nobody asked for" in server.last_end
            proxy.close()

    asyncio.run(scenario())


def test_who_owes_three_answers_is_given_up_whether_anybody_waits_for_them_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path / "zds", Book()) as (server, _):
            proxy = await connect(tmp_path / "zds")
            await exchange(proxy)
            await until(lambda: server.synced)
            monkeypatch.setattr(zds_connection, "ACK_TIMEOUT_S", 0.2)
            leaving = asyncio.create_task(server.add(WEB))
            assert (await proxy.receive()).data == ADD_WEB
            leaving.cancel()
            with pytest.raises(ProxyAway, match="did not answer within"):
                await server.add(ONE)
            assert server.newest is not None
            with pytest.raises(ProxyAway, match="did not answer within"):
                await server.add(ONE)
            await until(lambda: server.newest is None)
            assert server.last_end == "it owes 3 answers"
            proxy.close()

    asyncio.run(scenario())


def test_a_full_queue_refuses(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path / "zds", Book()) as (server, _):
            proxy = await connect(tmp_path / "zds")
            await exchange(proxy)
            await until(lambda: server.synced)
            adds = [asyncio.create_task(server.add(WEB)) for _ in range(zds_connection.QUEUE + 20)]
            await until(lambda: any(task.done() for task in adds))
            with pytest.raises(ProxyAway, match="messages wait"):
                await next(task for task in adds if task.done())
            proxy.close()
            results = await asyncio.gather(*adds, return_exceptions=True)
            assert all(isinstance(result, ProxyAway) for result in results)

    asyncio.run(scenario())


async def backtrace(path: Path) -> None:
    async with serving(path, Book()) as (server, _):
        proxy = await connect(path)
        await exchange(proxy)
        await until(lambda: server.synced)
        text = ("failure to start proxy : Bind([::]:15008)" + "\n   0: a frame of the backtrace" * 500).encode()
        assert len(text) > 14_000
        adding = asyncio.create_task(server.add(WEB))
        await exchange(proxy, zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=text.decode())).SerializeToString())
        with pytest.raises(ProxyAway, match=r"Bind\(\[::\]:15008\)") as refusal:
            await adding
        assert len(str(refusal.value)) < 3000 and server.synced, "the words are cut, the connection stays"
        proxy.close()


def test_an_answer_with_a_backtrace_is_read_whole(tmp_path: Path) -> None:
    asyncio.run(backtrace(tmp_path / "zds"))


async def refused_in_the_snapshot(path: Path) -> None:
    book = Book(WEB, ONE)
    async with serving(path, book) as (server, _):
        proxy = await connect(path)
        assert await exchange(proxy, NO_CONTROL) == (ADD_WEB, 1)
        assert await exchange(proxy) == (ADD_ONE, 1)
        await exchange(proxy)
        await until(lambda: server.synced)
        assert book.answers == [(WEB_UID, "failure to read message : No control message"), (ONE_UID, "")]
        proxy.close()


def test_a_pod_that_is_refused_in_the_snapshot_is_told_of_and_the_snapshot_goes_on(tmp_path: Path) -> None:
    asyncio.run(refused_in_the_snapshot(tmp_path / "zds"))


async def enrolled_meanwhile(path: Path) -> None:
    async with serving(path, Book(WEB)) as (server, _):
        proxy = await connect(path)
        assert (await proxy.receive()).data == ADD_WEB
        adding = asyncio.create_task(server.add(ONE))
        await proxy.send(SUCCESS)
        assert (await exchange(proxy))[0] == SNAPSHOT
        assert await exchange(proxy) == (ADD_ONE, 1)
        await adding
        proxy.close()


def test_a_pod_that_comes_during_the_snapshot_is_told_after_it(tmp_path: Path) -> None:
    asyncio.run(enrolled_meanwhile(tmp_path / "zds"))


async def one_too_many(path: Path) -> None:
    room = 1

    def trust(peers: list[ProxyPeer]) -> None:
        if len(peers) > room:
            raise OSError("no room")

    book = Book(WEB)
    async with serving(path, book, trust) as (server, _):
        first = await connect(path)
        assert [await exchange(first), await exchange(first)] == [(ADD_WEB, 1), (SNAPSHOT, 0)]
        second = await connect(path)
        assert await exchange(second) == (b"", 0), "told of nothing"
        room = -1
        first.close()
        await until(lambda: server.newest is None)
        assert server.last_end == "it closed the connection" and book.changes == 3
        room = 1
        third = await connect(path)
        assert await exchange(third) == (ADD_WEB, 1)
        for proxy in (second, third):
            proxy.close()


def test_a_proxy_that_cannot_be_trusted_is_not_taken_and_the_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(one_too_many(tmp_path / "zds.sock"))
    assert caplog.messages.count("which proxies are trusted is not up to date: no room") == 1


async def socket_is_gone(path: Path) -> None:
    before = open_descriptors()
    async with serving(path, Book()):
        await asyncio.to_thread(path.unlink)
    assert open_descriptors() <= before


def test_an_agent_whose_socket_somebody_removed_ends_in_order(tmp_path: Path) -> None:
    asyncio.run(socket_is_gone(tmp_path / "zds"))


async def one_does_not_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(path, Book()) as (server, _):
        stuck = await connect(path)
        await exchange(stuck)
        await until(lambda: server.synced)
        proxy = await connect(path)
        await exchange(proxy)
        deleting = asyncio.create_task(server.delete(ONE_UID))
        assert (await exchange(proxy))[0] == DEL_ONE, "a proxy that hangs keeps no other from its orders"
        adding = asyncio.create_task(server.add(WEB))
        assert (await exchange(proxy))[0] == ADD_WEB, "and its answer was heard"
        await adding
        assert not deleting.done()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + 60)
        await deleting
        stuck.close()
        proxy.close()


def test_a_withdrawal_reaches_every_proxy_whoever_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(one_does_not_answer(tmp_path / "zds", monkeypatch))
    said = [line for line in caplog.messages if "withdrawal" in line]
    assert said == [f"withdrawal of pod {ONE_UID}: the proxy did not answer within 60 s"]


async def nothing_stays_open(path: Path) -> None:
    async with serving(path, Book(WEB)) as (server, _):
        proxy = await connect(path)
        assert [await exchange(proxy), await exchange(proxy)] == [(ADD_WEB, 1), (SNAPSHOT, 0)]
        before = open_descriptors()
        for _ in range(3):
            adding = asyncio.create_task(server.add(ONE))
            packet = await proxy.receive()
            packet.close()
            await proxy.send(SUCCESS, [0])  # nobody asked for a file
            await adding
        assert open_descriptors() <= before
        with pytest.raises(ProxyAway, match="withdrawn meanwhile"):
            await server.add(Announcement("another", "amb", "another", "default"))
        await asyncio.gather(server.delete(ONE_UID), exchange(proxy))  # and the proxy heard nothing of that
        proxy.close()


def test_no_descriptor_of_a_namespace_stays_open_nor_one_that_a_proxy_sends(tmp_path: Path) -> None:
    asyncio.run(nothing_stays_open(tmp_path / "zds.sock"))


def test_a_proxy_without_a_cgroup_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(pid: int) -> str:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} is gone")

    monkeypatch.setattr(zds_connection, "cgroup_of", gone)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, pytest.raises(ProxyAway, match=f"process {os.getpid()} has no cgroup to know it by"):
        ProxyPeer.of(ours)


async def no_descriptors_left(path: Path) -> None:
    async with serving(path, Book()) as (server, _):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with few_descriptors(0):
            client.connect(str(path))
            for _ in range(3):
                await asyncio.sleep(0)
        proxy = PacketStream(client)
        await proxy.send(HELLO)
        await until(lambda: server.newest)
        proxy.close()


def test_a_proxy_that_comes_when_no_descriptors_are_left_is_accepted_once_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(zds, "ACCEPT_INTERVAL_S", 0.01)
    asyncio.run(no_descriptors_left(tmp_path / "zds"))
    assert "a proxy that connects has to wait: [Errno 24] Too many open files" in caplog.messages


def test_proxies_are_accepted_five_times_a_second(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path / "zds", Book()) as (server, peers):
            began = asyncio.get_running_loop().time()
            proxies = [await connect(tmp_path / "zds") for _ in range(3)]
            await until(lambda: len(peers) == 3)
            assert asyncio.get_running_loop().time() - began >= 2 * ACCEPT_INTERVAL_S
            assert server.newest is not None
            for proxy in proxies:
                proxy.close()

    asyncio.run(scenario())
