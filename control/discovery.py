"""Delta xDS towards nodes: `mesh.delta` decides what to say, this says it over gRPC.

One stream has one reader, which feeds requests to the sans-I/O server and wakes the writer, and one writer, which says what is
current whenever it is woken: by a request, or by a new state of the mesh. A burst of changes within PUSH_DELAY_S goes out as
one push. Nothing is queued for a client: while it has not acknowledged, or its connection takes no more bytes, the mesh moves
on and it is told the newest state later.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from control.abort import abort
from control.cluster import NOT_LOADED, Cluster
from control.credentials import Credentials
from mesh.delta import DeltaServer, Request, Response

PUSH_DELAY_S = 0.003
FIRST_REQUEST_S = 10.0
WRITE_S = 60.0
"""For a client that reads nothing: its connection is ended then."""
MAX_STREAMS_PER_NODE = 16
"""Agent, proxy, a proxy that takes over, and dead ones not noticed yet."""
_log = logging.getLogger("control.discovery")


class StreamEnded(Exception):
    """A stream that must not go on: the status to end it with."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(slots=True)
class Stream:
    """One client, for as long as it stays connected."""

    node: str
    server: DeltaServer
    client: str = ""
    """xDS node id."""
    last_nack: str = ""
    ended: StreamEnded | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    pushes: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether the newest push of every type is acknowledged."""
        return bool(self.server.type_urls) and all(map(self.server.settled, self.server.type_urls))


@dataclass(slots=True)
class DiscoveryService(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """`AggregatedDiscoveryService.DeltaAggregatedResources` for nodes of the mesh."""

    cluster: Cluster
    credentials: Credentials
    streams: dict[int, Stream] = field(default_factory=dict)
    _next: int = 0

    async def DeltaAggregatedResources(self, _requests: object, context: grpc.aio.ServicerContext) -> None:
        """Serve one stream until its client leaves, misbehaves, or its node is gone."""
        if not self.cluster.is_loaded:
            await abort(context, grpc.StatusCode.UNAVAILABLE, NOT_LOADED)
        node = self.credentials.node_of(context)
        if node is None or not self.cluster.has_node(node):
            _log.warning("xds refused: peer=%s: no valid node token or node certificate", context.peer())
            await abort(context, grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")
        if Counter(stream.node for stream in self.streams.values())[node] >= MAX_STREAMS_PER_NODE:
            reason = f"node {node} has {MAX_STREAMS_PER_NODE} streams already: end some of them"
            await abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        stream = Stream(node, DeltaServer(self.cluster.feed.snapshots))
        self._next += 1
        number = self._next
        self.streams[number] = stream
        # New objects wake it even where no resource changed: its node may be gone.
        silences = [notice.listen(stream.wake.set) for notice in (self.cluster.feed.changed, self.cluster.objects_changed)]
        try:
            await self._serve(stream, context)
        finally:
            for silence in silences:
                silence()
            del self.streams[number]
            _log.info("xds stream ended: node=%s client=%s", node, stream.client or "-")
        if stream.ended:
            _log.warning("xds stream refused: node=%s: %s", node, stream.ended.reason)
            await abort(context, stream.ended.code, stream.ended.reason)

    async def _serve(self, stream: Stream, context: grpc.aio.ServicerContext) -> None:
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(_read(stream, context))
            try:
                await self._write(stream, context, reader)
            except StreamEnded as ended:
                stream.ended = ended
            reader.cancel()

    async def _write(self, stream: Stream, context: grpc.aio.ServicerContext, reader: asyncio.Task[None]) -> None:
        while True:
            await stream.wake.wait()
            if stream.ended or reader.done():
                return
            await asyncio.sleep(PUSH_DELAY_S)
            stream.wake.clear()
            if not self.cluster.has_node(stream.node):
                raise StreamEnded(grpc.StatusCode.PERMISSION_DENIED, f"node {stream.node} is no longer part of the mesh")
            for type_url in stream.server.type_urls:
                await self._push(stream, context, type_url)

    async def _push(self, stream: Stream, context: grpc.aio.ServicerContext, type_url: str) -> None:
        stream.pushes += 1
        nonce = f"{self.cluster.feed.revision}-{stream.pushes}"
        response = stream.server.push(type_url, self.cluster.feed.snapshots[type_url], nonce)
        if response is None:
            return
        try:
            async with asyncio.timeout(WRITE_S):
                await context.write(_to_proto(response, str(self.cluster.feed.revision)))
        except TimeoutError as error:
            reason = f"nothing was read for {WRITE_S:.0f} s"
            raise StreamEnded(grpc.StatusCode.DEADLINE_EXCEEDED, reason) from error

    def by_node(self) -> Iterable[Stream]:
        """The connected clients, sorted by node."""
        return sorted(self.streams.values(), key=lambda stream: (stream.node, stream.client))


async def _read(stream: Stream, context: grpc.aio.ServicerContext) -> None:
    """Take requests in until the client ends its side; whatever happens, wake the writer."""
    try:
        try:
            async with asyncio.timeout(FIRST_REQUEST_S):
                first = await context.read()
        except TimeoutError:
            reason = f"no request within {FIRST_REQUEST_S:.0f} s"
            raise StreamEnded(grpc.StatusCode.DEADLINE_EXCEEDED, reason) from None
        if first is not grpc.aio.EOF:
            _introduce(stream, first)
            _log.info("xds stream: node=%s client=%s peer=%s", stream.node, stream.client, context.peer())
            _receive(stream, first)
        while (request := await context.read()) is not grpc.aio.EOF:
            _receive(stream, request)
    except StreamEnded as ended:
        stream.ended = ended
    finally:
        stream.wake.set()


def _introduce(stream: Stream, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
    """The first request says who asks: it must have a node id, and be of the node that the credential names."""
    if not request.node.id:
        raise StreamEnded(grpc.StatusCode.INVALID_ARGUMENT, "missing node information")
    stream.client = request.node.id[:256]
    fields = request.node.metadata.fields
    if "NODE_NAME" in fields and fields["NODE_NAME"].string_value != stream.node:
        claimed = fields["NODE_NAME"].string_value[:256]
        reason = f"NODE_NAME {claimed!r} is not the node of this credential: {stream.node!r}"
        raise StreamEnded(grpc.StatusCode.PERMISSION_DENIED, reason)


def _receive(stream: Stream, proto: discovery_pb2.DeltaDiscoveryRequest) -> None:
    request = _from_proto(proto)
    try:
        stream.server.receive(request)
    except ValueError as error:
        raise StreamEnded(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
    if request.error is not None:
        stream.last_nack = f"{request.type_url.rpartition('/')[2]}: {request.error}"[:4096]
        _log.warning("xds refused by client: node=%s client=%s %s", stream.node, stream.client, stream.last_nack)
    stream.wake.set()


def _from_proto(request: discovery_pb2.DeltaDiscoveryRequest) -> Request:
    return Request(
        request.type_url,
        tuple(request.resource_names_subscribe),
        tuple(request.resource_names_unsubscribe),
        dict(request.initial_resource_versions),
        request.response_nonce,
        request.error_detail.message if request.HasField("error_detail") else None,
    )


def _to_proto(response: Response, version: str) -> discovery_pb2.DeltaDiscoveryResponse:
    proto = discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=version,
        type_url=response.type_url,
        nonce=response.nonce,
        removed_resources=response.removed,
    )
    for resource in response.resources:
        added = proto.resources.add(name=resource.name, version=resource.version, aliases=resource.aliases)
        added.resource.type_url = response.type_url
        added.resource.value = resource.value
    return proto
