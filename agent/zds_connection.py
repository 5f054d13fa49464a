"""One proxy's ZDS connection, as the agent's end of it lives: hello, snapshot, live.

    connected --hello within 5 s--> snapshot: Add or Keep for every pod, each acknowledged; SnapshotSent
              --acknowledged-----> live: Adds and Dels from a queue, one at a time
    any state --end, unexpected packet, silence in the snapshot--> ended

An Ack has no number: order alone tells what it answers. So after a live message that was not answered in time the late
answer is awaited and dropped, and a proxy that owes several is given up.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent import zds_messages
from agent.zds_messages import Announcement
from wire.cgroup import cgroup_id, cgroup_of
from wire.fds import PacketStream, Truncated

HELLO_TIMEOUT_S = 5.0
ACK_TIMEOUT_S = 5.0
QUEUE = 100
MAX_OWED = 3
"""Answers that a live proxy may be late with before it is given up."""


class ProxyAway(Exception):
    """The proxy is not there, or did not do what it was told; the text says which."""


class NoProxy(ProxyAway):
    """No proxy is connected at all; one that comes is told of every pod."""


@dataclass(frozen=True, slots=True)
class ProxyPeer:
    """The process at the other end, as the kernel vouches for it."""

    pid: int
    cgroup_id: int

    @classmethod
    def of(cls, sock: socket.socket) -> "ProxyPeer":
        """Raises: ProxyAway when the process is gone, or is in no cgroup that this one can see."""
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = struct.unpack("=iII", credentials)[0]
        try:
            return cls(pid, cgroup_id(cgroup_of(pid)))
        except (OSError, RuntimeError) as error:
            raise ProxyAway(f"process {pid} has no cgroup to know it by: {error}") from error


NetnsOf = Callable[[str], int | None]
"""A pod's namespace by uid; the descriptor stays its owner's."""


class ZdsConnection:
    """One connection; `run` ends with ProxyAway when the proxy is gone or misbehaves."""

    def __init__(self, stream: PacketStream, netns_of: NetnsOf) -> None:
        self._stream = stream
        self._netns_of = netns_of
        self._queue: asyncio.Queue[tuple[bytes, str, asyncio.Future[str]]] = asyncio.Queue(QUEUE)
        self._answer: asyncio.Future[str] | None = None
        """To what was sent last, while it is waited for."""
        self._owed = 0
        self._ended = ""

    async def greet(self) -> ProxyPeer:
        """Wait for the hello; who it is that said it."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                packet = await self._stream.receive()
            packet.close()
            if not packet.data:
                raise ProxyAway("it closed the connection before its hello")
            zds_messages.parse_hello(packet.data)
        except TimeoutError as error:
            raise ProxyAway(f"no hello within {HELLO_TIMEOUT_S:g} s") from error
        except (OSError, Truncated, ValueError) as error:
            raise ProxyAway(str(error)) from error
        return ProxyPeer.of(self._stream.sock)

    async def run(
        self, pods: Sequence[Announcement], kept: Sequence[str], told: Callable[[str, str], None], synced: Callable[[], None]
    ) -> None:
        """Send the snapshot, then live messages until the end, which is a ProxyAway.

        `told` gets uid and reason (empty: success) for each pod of the snapshot; `synced` is called after it.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                await self._send_snapshot(pods, kept, told)
                synced()
                while True:
                    await self._send_next()
        except* ProxyAway as away:
            self._ended = str(away.exceptions[0])
        except* (OSError, Truncated, ValueError) as broken:
            self._ended = str(broken.exceptions[0])
        finally:
            self._close()
        raise ProxyAway(self._ended)

    async def _send_snapshot(self, pods: Sequence[Announcement], kept: Sequence[str], told: Callable[[str, str], None]) -> None:
        try:
            for pod in pods:
                told(pod.uid, await self._exchange(zds_messages.add(pod), pod.uid))
            for uid in kept:
                await self._exchange(zds_messages.keep(uid), "")
            await self._exchange(zds_messages.snapshot_sent(), "")
        except TimeoutError as error:
            raise ProxyAway(f"no answer within {ACK_TIMEOUT_S:g} s during the snapshot") from error

    async def _send_next(self) -> None:
        message, uid, done = await self._queue.get()
        if done.cancelled():
            return
        try:
            reason = await self._exchange(message, uid)
        except TimeoutError:
            self._owed += 1
            if not done.done():
                done.set_exception(ProxyAway(f"the proxy did not answer within {ACK_TIMEOUT_S:g} s"))
            if self._owed >= MAX_OWED:
                raise ProxyAway(f"it owes {self._owed} answers") from None
            return
        except BaseException:
            if not done.done():
                done.set_exception(ProxyAway("the proxy went away"))
            raise
        if not done.done():
            done.set_result(reason)

    async def _exchange(self, message: bytes, uid: str) -> str:
        """Send one message, with the namespace of `uid` if given, and wait for its answer: the reason, empty for success.

        Raises: TimeoutError where it is sent and not answered.
        """
        fds: list[int] = []
        if uid:
            fd = self._netns_of(uid)
            if fd is None:
                return "withdrawn meanwhile"
            fds = [os.dup(fd)]  # a withdrawal while we wait for room must not put another file under the number
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ACK_TIMEOUT_S
        self._answer = answer = asyncio.Future[str]()
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._stream.send(message, fds)
            except TimeoutError:
                raise ProxyAway(f"it read nothing for {ACK_TIMEOUT_S:g} s") from None
            # asyncio.timeout would lose what comes in the very turn in which the time is over: to the next message.
            await asyncio.wait([answer], timeout=deadline - loop.time())
            if not answer.done():
                raise TimeoutError
            return answer.result()
        finally:
            self._answer = None
            for fd in fds:
                os.close(fd)

    async def _read(self) -> None:
        while True:
            packet = await self._stream.receive()
            packet.close()
            if not packet.data:
                raise ProxyAway("it closed the connection")
            reason = zds_messages.parse_ack(packet.data)
            if self._owed:
                self._owed -= 1
            elif self._answer is not None and not self._answer.done():
                self._answer.set_result(reason)
            else:
                raise ProxyAway("it sent an answer that nobody asked for")

    async def add(self, pod: Announcement) -> None:
        """Tell of a pod and wait until it is served. Raises: ProxyAway with the reason when it is not."""
        reason = await self._submit(zds_messages.add(pod), pod.uid)
        if reason:
            raise ProxyAway(f"the proxy did not take pod {pod.namespace}/{pod.name}: {reason}")

    async def delete(self, uid: str) -> None:
        """Have a pod no longer served. Raises: ProxyAway when the proxy does not confirm it."""
        await self._submit(zds_messages.delete(uid), "")

    async def _submit(self, message: bytes, uid: str) -> str:
        if self._ended:
            raise ProxyAway(self._ended)
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((message, uid, done))
        except asyncio.QueueFull as error:
            raise ProxyAway(f"{QUEUE} messages wait for the proxy") from error
        return await done

    def _close(self) -> None:
        self._ended = self._ended or "the agent stops"
        self._stream.close()
        while not self._queue.empty():
            done = self._queue.get_nowait()[2]
            if not done.done():
                done.set_exception(ProxyAway("the proxy went away"))
