"""Packets with descriptors: whole, bounded, and nothing leaks when a packet is refused."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from wire import fds

pytestmark = pytest.mark.unit


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def test_a_descriptor_travels_close_on_exec() -> None:
    ours, theirs = pair()
    with ours, theirs, open("/dev/null") as null:
        fds.send_packet(ours, b"hello", [null.fileno()])
        packet = fds.receive_packet(theirs, 100, 1)
        assert packet.data == b"hello" and len(packet.fds) == 1
        assert os.fstat(packet.fds[0]).st_rdev == os.fstat(null.fileno()).st_rdev
        assert not os.get_inheritable(packet.fds[0])
        packet.close()
        assert (str(packet.fds[0]), "/dev/null") not in open_descriptors()


@pytest.mark.parametrize(
    ("data", "count", "most"), [(b"x" * 101, 1, 1), (b"x", 2, 1), (b"x", 3, 1), (b"x", 3, 2), (b"x" * 101, 0, 1)]
)
def test_beyond_the_bounds_nothing_is_kept(data: bytes, count: int, most: int) -> None:
    ours, theirs = pair()
    with ours, theirs, open("/dev/null") as null:
        before = open_descriptors()
        fds.send_packet(ours, data, [null.fileno()] * count)
        with pytest.raises(fds.Truncated, match=f"beyond 100 bytes or {most} descriptors"):
            fds.receive_packet(theirs, 100, most)
        assert open_descriptors() <= before


def test_who_it_is_from_is_not_taken_for_descriptors() -> None:
    ours, theirs = pair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        fds.send_packet(ours, b"x")
        assert fds.receive_packet(theirs, 100, 8) == (b"x", [])


def test_who_is_woken_for_nothing_waits_on() -> None:
    """A packet that wakes two is one's alone."""

    async def scenario() -> None:
        ours, theirs = pair()
        streams = [fds.PacketStream(theirs), fds.PacketStream(theirs.dup())]
        waiting = [asyncio.ensure_future(stream.receive()) for stream in streams]
        await asyncio.sleep(0)
        for data in (b"one", b"two"):
            ours.send(data)
            done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=60)
            assert [one.result().data for one in done] == [data]
            waiting = list(pending)
        assert not waiting
        for one in (ours, *streams):
            one.close()

    asyncio.run(scenario())


def test_streams_wait_cancel_and_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = str(tmp_path / "socket")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen()
        client = await fds.PacketStream.connect(path)
        accepted, _ = listener.accept()
        server = fds.PacketStream(accepted)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await server.receive()
        waiting = asyncio.ensure_future(server.receive())
        await client.send(b"one")
        assert (await waiting).data == b"one"
        assert not asyncio.get_running_loop().remove_reader(accepted), "nobody waits any more"
        # A peer that does not read makes the sender wait, not fail.
        count = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                while True:
                    await client.send(b"x" * 10_000)
                    count += 1
        for _ in range(count):
            assert len((await server.receive()).data) == 10_000
        client.close()
        assert await server.receive() == fds.Packet(b"", [])
        server.close()
        listener.close()
        before = open_descriptors()
        with pytest.raises(ConnectionRefusedError):
            await fds.PacketStream.connect(path)
        assert open_descriptors() <= before

    asyncio.run(scenario(), debug=True)  # which tells of sockets that would hold the loop up
