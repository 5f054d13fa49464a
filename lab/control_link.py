"""The lab's end of weft-control's own API: objects in, pods' state out."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import grpc

from lab.pod import PodState
from mesh.proto import control_pb2, control_pb2_grpc
from wire.places import Places

_log = logging.getLogger(__name__)
_TIMEOUT_S = 10.0
_STATUS_TIMEOUT_S = 2.0
"""The lab's own status waits for this answer, and its readers for that."""
_RETRY_S = 0.2
_REPORTER = "weft-lab"
_AGENT = "agent~"
"""What an agent's xDS node id begins with."""
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class ControlLink:
    """A channel to weft-control. Owns the channel: use as an asynchronous context."""

    def __init__(self, places: Places) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{places.control_socket}", options=_OPTIONS)
        self._stub = control_pb2_grpc.ControlStub(self._channel)

    async def __aenter__(self) -> "ControlLink":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def objects(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The whole set of objects, now and after every change; connects again for as long as it takes."""
        while True:
            try:
                async for update in self._stub.WatchObjects(control_pb2.WatchObjectsRequest()):
                    yield [json.loads(text) for text in update.objects_json]
            except grpc.RpcError as error:
                _log.debug("control: %s", error)
            await asyncio.sleep(_RETRY_S)

    async def report(self, pods: Iterable[PodState]) -> None:
        """Say what runs. Raises: OSError when control does not take it."""
        request = control_pb2.ReportPodsRequest(reporter=_REPORTER, pods=[_report(pod) for pod in pods])
        try:
            await self._stub.ReportPods(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise OSError(f"control does not take the report: {error.details()}") from error

    async def node_token(self, node: str) -> tuple[str, str]:
        """The node's credential and what signs control's certificate (PEM). Raises: OSError when control does not give it."""
        try:
            reply = await self._stub.NodeToken(control_pb2.NodeTokenRequest(node=node), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise OSError(f"control gives no token for node {node}: {error.details()}") from error
        return reply.token, reply.root_pem

    async def apply(self, files: Mapping[str, str]) -> control_pb2.ApplyResponse:
        """Hand manifests over: all or nothing; what is wrong is in the answer. Raises: OSError when control does not answer."""
        message = [control_pb2.ManifestFile(name=name, yaml=text) for name, text in files.items()]
        try:
            return await self._stub.Apply(control_pb2.ApplyRequest(files=message), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise OSError(f"control does not take manifests: {error.details()}") from error

    async def delete(self, files: Mapping[str, str]) -> control_pb2.ApplyResponse:
        """Have the objects of manifests removed. Raises: OSError when control does not answer."""
        message = [control_pb2.ManifestFile(name=name, yaml=text) for name, text in files.items()]
        try:
            return await self._stub.Delete(control_pb2.DeleteRequest(files=message), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise OSError(f"control does not delete: {error.details()}") from error

    async def snapshot(self) -> list[dict[str, Any]]:
        """The whole set of objects as it is now. Raises: OSError when control does not answer."""
        call = self._stub.WatchObjects(control_pb2.WatchObjectsRequest(), timeout=_TIMEOUT_S)
        try:
            async for update in call:
                return [json.loads(text) for text in update.objects_json]
        except grpc.RpcError as error:
            raise OSError(f"control does not answer: {error.details()}") from error
        finally:
            call.cancel()
        raise OSError("control ended the stream of objects at once")

    async def acknowledged(self) -> dict[str, bool]:
        """Per connected node: whether its agent and its proxy have taken the newest of everything. Raises: OSError."""
        try:
            reply = await self._stub.Status(control_pb2.StatusRequest(), timeout=_STATUS_TIMEOUT_S)
        except grpc.RpcError as error:
            raise OSError(f"control does not answer: {error.details()}") from error
        return in_step(reply.nodes)


def in_step(streams: Sequence[control_pb2.ConnectedNode]) -> dict[str, bool]:
    """By node: whether all its streams are in step, and one is not the agent's: a proxy may begin with what is on its disk."""
    proxies = {one.node for one in streams if not one.client.startswith(_AGENT)}
    behind = {one.node for one in streams if not one.acked}
    return {one.node: one.node in proxies - behind for one in streams}


def _report(pod: PodState) -> control_pb2.PodReport:
    return control_pb2.PodReport(
        uid=pod.wish.uid,
        namespace=pod.wish.pod.namespace,
        name=pod.wish.pod.name,
        node=pod.wish.node,
        addresses=pod.addresses,
        ready=pod.ready,
        enrolled=pod.enrolled,
        phase=pod.phase,
        restarts=pod.restarts,
        reason=pod.reason,
    )
