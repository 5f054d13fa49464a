"""The node agent's orders: which pods to serve (ZDS over a SOCK_SEQPACKET socket, this proxy being its client).

One connection is one `Session`: every packet is read, carried out and answered before the next. A session begins with a
snapshot (Add for each pod of the node, or Keep where the agent has no descriptor for its namespace; then SnapshotSent), after
which pods that run but were not named are stopped; then come live Adds and Dels. A pod that cannot be started is refused with
the reason and tried again every 5 s. The node is ready once the snapshot is in, and stays so for this connection: a pod that
does not start is that pod's trouble (Istio's ztunnel makes the whole node wait for it). It is listed as pending.

Losing the connection stops no pod. A connection whose snapshot was complete is followed by the next at once; one that ended
before, after a pause that doubles, so that an agent that breaks off again and again is not stormed. It begins at 20 ms, and
where the agent did not even take our first word at 5 ms, give or take a fifth. Words of refusals are Istio's ztunnel's, to the
letter.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from google.protobuf.message import DecodeError

from mesh.proto.zds_pb2 import V1, Ack, AddWorkload, WorkloadRequest, WorkloadResponse, ZdsHello
from wire.fds import Packet, PacketStream, Truncated
from wire.netns import netns_id

RETRY_S = 5.0
_FIRST_PAUSE_S, _FIRST_HELLO_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.005, 15.0
_HELLO_JITTER = 0.2
_SEND_TIMEOUT_S = 5.0
_MAX_PACKET_BYTES = 4096
"""An agent's longest message, with Kubernetes' longest names, has about 900."""
_MAX_ERROR_CHARACTERS = 900
"""Agents read acks into 1024 bytes."""

_log = logging.getLogger(__name__)


class PodInfo(NamedTuple):
    """A pod as the agent names it; `uid` is Kubernetes' own."""

    uid: str
    namespace: str
    name: str
    service_account: str


class ReadError(Exception):
    """A packet is no message: say why, and connect anew."""


class HelloError(Exception):
    """The agent let us connect, and does not take our first word."""


class ZdsProtocolError(Exception):
    """The agent broke the order of messages: say why, and end the process."""


class StartError(Exception):
    """A pod cannot be served now."""


class PodHost(Protocol):
    """What carries out the orders."""

    def running(self) -> Iterable[str]:
        """The uids that are served."""

    def serves(self, uid: str, netns: tuple[int, int]) -> bool:
        """Whether a pod is served in just this namespace."""

    async def start(self, pod: PodInfo, netns_fd: int) -> None:
        """Serve a pod; the caller keeps the descriptor. Raises: StartError."""

    async def stop(self, uid: str) -> None:
        """Stop serving a pod at once; nothing happens for an unknown one."""

    def complete(self) -> None:
        """The agent has named all pods of the node."""


def read_request(packet: Packet) -> WorkloadRequest:
    """Read a packet: an Add carries exactly one descriptor, everything else none.

    Raises: ReadError in Istio's words. The descriptors stay the caller's.
    """
    try:
        request = WorkloadRequest.FromString(packet.data)
    except DecodeError as error:
        raise ReadError(f"failed to decode Protobuf message: {error}") from error
    payload = request.WhichOneof("payload")
    if payload is None:
        raise ReadError("no payload")
    if len(packet.fds) > 1:
        raise ReadError(f"Expected 1 FD, got {len(packet.fds)}")
    if payload == "add" and not packet.fds:
        raise ReadError("No control message")
    if payload != "add" and packet.fds:
        raise ReadError("Unexpected control message")
    return request


class _Pending(NamedTuple):
    pod: PodInfo
    netns_fd: int
    """Ours."""
    due: float
    reason: str


class Session:
    """One connection's orders, and what became of them."""

    def __init__(self, host: PodHost, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._clock = clock
        self._named: set[str] = set()
        self._pending: dict[str, _Pending] = {}
        self._snapshot = False

    @property
    def pending(self) -> list[PodInfo]:
        """The pods that could not be started yet."""
        return [one.pod for one in self._pending.values()]

    @property
    def troubles(self) -> dict[str, str]:
        """Why they could not, by `namespace/name`."""
        return {f"{one.pod.namespace}/{one.pod.name}": one.reason for one in self._pending.values()}

    @property
    def ready(self) -> bool:
        """Whether the agent has named all pods of the node."""
        return self._snapshot

    @property
    def retry_at(self) -> float | None:
        """When the next pending pod is to be tried, by the clock; None while nothing is pending."""
        return min((one.due for one in self._pending.values()), default=None)

    async def handle(self, packet: Packet) -> str:
        """Carry out one packet, and close its descriptor or keep it: the error to answer, empty for success.

        Raises: ReadError, ZdsProtocolError: to be answered, too.
        """
        try:
            request = read_request(packet)
            payload = request.WhichOneof("payload")
            if payload == "add":
                return await self._add(request.add, packet)
            if payload == "del":
                await self._delete(getattr(request, "del").uid)
            elif payload == "keep":
                self._keep(request.keep.uid)
            else:
                await self._reconcile()
            return ""
        finally:
            packet.close()

    async def _add(self, message: AddWorkload, packet: Packet) -> str:
        if not message.HasField("workload_info"):
            raise ZdsProtocolError("workload_info is required but not present")
        info = message.workload_info
        pod = PodInfo(message.uid, info.namespace, info.name, info.service_account)
        if not self._snapshot:
            self._named.add(pod.uid)
        self._forget_pending(pod.uid)
        error = await self._start(pod, packet.fds[0])
        if not error:
            return ""
        self._keep_pending(pod, packet.fds.pop(), error)
        return f"failure to start proxy : {error}"

    async def _start(self, pod: PodInfo, netns_fd: int) -> str:
        """Have a pod served in this namespace and no other: why it is not, empty when it is."""
        if self._host.serves(pod.uid, netns_id(netns_fd)):
            return ""
        await self._host.stop(pod.uid)
        try:
            await self._host.start(pod, netns_fd)
        except StartError as error:
            return str(error)
        return ""

    def _keep_pending(self, pod: PodInfo, netns_fd: int, error: str) -> None:
        self._pending[pod.uid] = _Pending(pod, netns_fd, self._clock() + RETRY_S, error)
        _log.warning("pod %s/%s: %s; next attempt in %g s", pod.namespace, pod.name, error, RETRY_S)

    def _forget_pending(self, uid: str) -> None:
        if uid in self._pending:
            os.close(self._pending.pop(uid).netns_fd)

    async def _delete(self, uid: str) -> None:
        self._named.discard(uid)
        self._forget_pending(uid)
        if self._snapshot:
            await self._host.stop(uid)

    def _keep(self, uid: str) -> None:
        if self._snapshot:
            raise ZdsProtocolError("pod keep received after snapshot")
        self._named.add(uid)

    async def _reconcile(self) -> None:
        if self._snapshot:
            raise ZdsProtocolError("pod snapshot received already")
        self._snapshot = True
        for uid in set(self._host.running()) - self._named:
            await self._host.stop(uid)
        self._host.complete()

    async def retry(self) -> None:
        """Try the pending pod that is due first once more: one at a time, as the agent's messages wait meanwhile."""
        first = min(self._pending.values(), key=lambda one: one.due, default=None)
        if first is None or first.due > self._clock():
            return
        error = await self._start(first.pod, first.netns_fd)
        if error:
            self._keep_pending(first.pod, first.netns_fd, error)
        else:
            self._forget_pending(first.pod.uid)

    def close(self) -> None:
        """Forget what is pending."""
        for uid in list(self._pending):
            self._forget_pending(uid)


class ZdsClient:
    """Keeps a connection to the agent, and carries out what it says."""

    def __init__(self, path: Path, host: PodHost) -> None:
        self._path = path
        self._host = host
        self._session: Session | None = None
        self._completed = False
        self.last_error = "not connected yet"

    @property
    def connected(self) -> bool:
        """Whether an agent is there."""
        return self._session is not None

    @property
    def ready(self) -> bool:
        """Whether the agent has named all pods of the node; false without a connection."""
        return self._session is not None and self._session.ready

    @property
    def pending(self) -> list[PodInfo]:
        """The pods that could not be started yet."""
        return self._session.pending if self._session else []

    @property
    def troubles(self) -> dict[str, str]:
        """Why they could not, by `namespace/name`."""
        return self._session.troubles if self._session else {}

    async def run(self) -> None:
        """Stay connected until cancelled. Raises: ZdsProtocolError, after it was answered."""
        pause_s, hello_pause_s = _FIRST_PAUSE_S, _FIRST_HELLO_PAUSE_S
        while True:
            self._completed = False
            try:
                await self._one_connection()
                self.last_error = "the agent closed the connection"
            except HelloError as error:
                self.last_error = str(error)
                await asyncio.sleep(hello_pause_s * random.uniform(1 - _HELLO_JITTER, 1 + _HELLO_JITTER))
                hello_pause_s = min(hello_pause_s * 2, _LONGEST_PAUSE_S)
                continue
            except ReadError as error:
                self.last_error = f"the agent sent no message: {error}"
            except (OSError, TimeoutError) as error:
                self.last_error = str(error) or "the agent does not read"
            hello_pause_s = _FIRST_HELLO_PAUSE_S
            if self._completed:
                pause_s = _FIRST_PAUSE_S
                _log.warning("agent at %s: %s; connecting anew", self._path, self.last_error)
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _one_connection(self) -> None:
        stream = await PacketStream.connect(str(self._path), _MAX_PACKET_BYTES, max_fds=4)
        session = Session(self._host)
        try:
            await self._greet(stream)
            self._session = session
            while packet := await self._receive(stream, session):
                await self._carry_out(stream, session, packet)
                self._completed = session.ready
        finally:
            self._session = None
            session.close()
            stream.close()

    async def _greet(self, stream: PacketStream) -> None:
        try:
            await self._send(stream, ZdsHello(version=V1).SerializeToString())
        except (OSError, TimeoutError) as error:
            raise HelloError(str(error) or "the agent does not read") from error

    async def _receive(self, stream: PacketStream, session: Session) -> Packet | None:
        """The next packet, None at the end; meanwhile what is pending is tried again."""
        while True:
            retry_at = session.retry_at
            try:
                async with asyncio.timeout(None if retry_at is None else retry_at - time.monotonic()):
                    packet = await stream.receive()
            except Truncated:
                await self._send(stream, _ack("failure to read message : received truncated message"))
                raise ReadError("received truncated message") from None
            except TimeoutError:
                await session.retry()
                continue
            return packet if packet.data or packet.fds else None

    async def _carry_out(self, stream: PacketStream, session: Session, packet: Packet) -> None:
        try:
            error = await session.handle(packet)
        except ReadError as failure:
            await self._send(stream, _ack(f"failure to read message : {failure}"))
            raise
        except ZdsProtocolError as failure:
            await self._send(stream, _ack(f'failure to process message : ProtocolError("{failure}")'))
            raise
        await self._send(stream, _ack(error))

    async def _send(self, stream: PacketStream, data: bytes) -> None:
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            await stream.send(data)


def _ack(error: str) -> bytes:
    return bytes(WorkloadResponse(ack=Ack(error=error[:_MAX_ERROR_CHARACTERS])).SerializeToString())
