"""One connection of the node agent's: which pods to serve (ZDS), order by order. What brings the packets: ztunnel.zds.

Every packet is read, carried out and answered before the next. A session begins with a snapshot (Add for each pod of the node,
or Keep where the agent has no descriptor for its namespace; then SnapshotSent), after which pods that run but were not named
are stopped; then come live Adds and Dels. A pod that cannot be started is refused with the reason and tried again every 5 s.
The node is ready once the snapshot is in, and stays so for this connection: a pod that does not start is that pod's trouble
(Istio's ztunnel makes the whole node wait for it). It is listed as pending. Words of refusals are Istio's ztunnel's, to the
letter.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from google.protobuf.message import DecodeError

from mesh.proto.zds_pb2 import AddWorkload, WorkloadRequest
from wire.fds import Packet
from wire.netns import netns_id

RETRY_S = 5.0
_log = logging.getLogger("ztunnel.zds")


class PodInfo(NamedTuple):
    """A pod as the agent names it; `uid` is Kubernetes' own."""

    uid: str
    namespace: str
    name: str
    service_account: str


class ReadError(Exception):
    """A packet is no message: say why, and connect anew."""


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
    if len(packet.fds) > 1:
        raise ReadError(f"Expected 1 FD, got {len(packet.fds)}")
    try:
        request = WorkloadRequest.FromString(packet.data)
    except DecodeError as error:
        raise ReadError(f"failed to decode Protobuf message: {error}") from error
    payload = request.WhichOneof("payload")
    if payload is None:
        raise ReadError("no payload")
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
