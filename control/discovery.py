"""Delta xDS towards nodes: `control.stream` decides what to say, this says it over gRPC.

One stream has one reader, which takes requests in and wakes the writer, and one writer, which says what is current whenever
it is woken: by a request, or by a new state of the mesh. A burst of changes within PUSH_DELAY_S goes out as one push. Nothing
is queued for a client: while it has not acknowledged, or its connection takes no more bytes, the mesh moves on and it is told
the newest state later.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from control.abort import abort
from control.answer import Contents, from_proto, to_wire
from control.cluster import NOT_LOADED, Cluster
from control.credentials import Credentials, metadata_values
from control.grants import NOT_AUTHENTICATED
from control.rate import Rate
from control.refusals import Refusals
from control.stream import Stream

_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
PUSH_DELAY_S = 0.003
FIRST_REQUEST_S = 10.0
ALONE_AFTER_S = 1.0
"""From the first request of a stream: who asks for workloads and policies does so at once."""
WRITE_S = 60.0
"""For a client that reads nothing: its connection is ended then."""
MAX_STREAMS_PER_NODE = 16
"""Agent, proxy, a proxy that takes over, and dead ones not noticed yet."""
LINES_PER_SECOND, LINES_AT_ONCE = 1.0, 64
"""Of the streams of one node: a client that comes back or refuses without end must not fill the log."""
_log = logging.getLogger("control.discovery")


class StreamEnded(Exception):
    """A stream that must not go on: the status to end it with."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(slots=True)
class Connection:
    """A stream as it is carried."""

    stream: Stream
    tell: Callable[[int, str], None]
    """Write a line, at this level."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Something may be to say."""
    ended: StreamEnded | None = None

    def leave_alone(self) -> None:
        """Wait for no request for the other type any more."""
        self.stream.alone = True
        self.wake.set()


@dataclass(slots=True)
class DiscoveryService:
    """`AggregatedDiscoveryService.DeltaAggregatedResources` for nodes of the mesh."""

    cluster: Cluster
    credentials: Credentials
    refusals: Refusals
    _contents: Contents = field(default_factory=Contents)
    _streams: dict[int, Stream] = field(default_factory=dict)
    _next: int = 0
    _lines: Rate = field(default_factory=lambda: Rate(LINES_PER_SECOND, LINES_AT_ONCE))
    _untold: Counter[str] = field(default_factory=Counter)
    """Lines left out since the newest one, by node."""

    def register(self, server: grpc.aio.Server) -> None:
        """Have a server serve this. Answers leave as they were encoded."""
        handler = grpc.stream_stream_rpc_method_handler(
            self.DeltaAggregatedResources, request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString
        )
        handlers = grpc.method_handlers_generic_handler(_SERVICE, {"DeltaAggregatedResources": handler})
        server.add_generic_rpc_handlers((handlers,))

    def streams(self) -> list[Stream]:
        """The connected clients, sorted by node."""
        return sorted(self._streams.values(), key=lambda stream: (stream.node, stream.client))

    async def DeltaAggregatedResources(self, _requests: object, context: grpc.aio.ServicerContext) -> None:
        """Serve one stream until its client leaves, misbehaves, or its node is gone."""
        node = await self._admit(context)
        tell = partial(self._tell, node)
        connection = Connection(Stream(node), tell)
        self._next += 1
        number = self._next
        self._streams[number] = connection.stream
        # New objects wake it even where no resource changed: its node may be gone.
        notices = (self.cluster.feed.changed, self.cluster.objects_changed)
        silences = [notice.listen(connection.wake.set) for notice in notices]
        try:
            await self._serve(connection, context)
        finally:
            for silence in silences:
                silence()
            del self._streams[number]
            tell(logging.INFO, f"xds stream ended: node={node} client={connection.stream.client or '-'}")
        if connection.ended:
            tell(logging.WARNING, f"xds stream refused: node={node}: {connection.ended.reason}")
            await abort(context, connection.ended.code, connection.ended.reason)

    def _tell(self, node: str, level: int, line: str) -> None:
        if self._lines.take(node, time.monotonic()):
            untold = self._untold.pop(node, 0)
            _log.log(level, "%s", f"{line} untold={untold}" if untold else line)
        else:
            self._untold[node] += 1

    async def _admit(self, context: grpc.aio.ServicerContext) -> str:
        """The node that asks; the call is ended for anybody else."""
        if not self.cluster.is_loaded:
            await abort(context, grpc.StatusCode.UNAVAILABLE, NOT_LOADED)
        node = self.credentials.node_of(context)
        if node is None or not self.cluster.has_node(node):
            self.refusals.tell("xds", context.peer(), "no valid node token or node certificate")
            await abort(context, grpc.StatusCode.UNAUTHENTICATED, NOT_AUTHENTICATED)
        if metadata_values(context, "clusterid") != [self.cluster.names.cluster]:
            reason = f"{NOT_AUTHENTICATED}: header clusterid must be {self.cluster.names.cluster!r}: set CLUSTER_ID to it"
            self.refusals.tell("xds", context.peer(), f"node={node}: {reason}")
            await abort(context, grpc.StatusCode.UNAUTHENTICATED, reason)
        if Counter(stream.node for stream in self._streams.values())[node] >= MAX_STREAMS_PER_NODE:
            reason = f"node {node} has {MAX_STREAMS_PER_NODE} streams already: end some of them"
            await abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        return node

    async def _serve(self, connection: Connection, context: grpc.aio.ServicerContext) -> None:
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(_read(connection, context))
            try:
                await self._write(connection, context, reader)
            except StreamEnded as ended:
                connection.ended = ended
            reader.cancel()

    async def _write(self, connection: Connection, context: grpc.aio.ServicerContext, reader: asyncio.Task[None]) -> None:
        stream, feed = connection.stream, self.cluster.feed
        while True:
            await connection.wake.wait()
            if connection.ended or reader.done():
                return
            await asyncio.sleep(PUSH_DELAY_S)
            connection.wake.clear()
            if not self.cluster.has_node(stream.node):
                raise StreamEnded(grpc.StatusCode.PERMISSION_DENIED, f"node {stream.node} is no longer part of the mesh")
            while (response := stream.next_response(feed.snapshots)) is not None:
                content = self._contents.of(response)
                try:
                    async with asyncio.timeout(WRITE_S):
                        await context.write(to_wire(response, content, str(feed.revision)))
                except TimeoutError as error:
                    reason = f"nothing was read for {WRITE_S:.0f} s"
                    raise StreamEnded(grpc.StatusCode.DEADLINE_EXCEEDED, reason) from error


async def _read(connection: Connection, context: grpc.aio.ServicerContext) -> None:
    """Take requests in until the client ends its side; whatever happens, wake the writer."""
    stream = connection.stream
    patience: asyncio.TimerHandle | None = None
    try:
        try:
            async with asyncio.timeout(FIRST_REQUEST_S):
                first = await context.read()
        except TimeoutError:
            reason = f"no request within {FIRST_REQUEST_S:.0f} s"
            raise StreamEnded(grpc.StatusCode.DEADLINE_EXCEEDED, reason) from None
        if first is not grpc.aio.EOF:
            _introduce(stream, first)
            connection.tell(logging.INFO, f"xds stream: node={stream.node} client={stream.client} peer={context.peer()}")
            _receive(connection, first)
            patience = asyncio.get_running_loop().call_later(ALONE_AFTER_S, connection.leave_alone)
        while (request := await context.read()) is not grpc.aio.EOF:
            _receive(connection, request)
    except StreamEnded as ended:
        connection.ended = ended
    finally:
        if patience is not None:
            patience.cancel()
        connection.wake.set()


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


def _receive(connection: Connection, proto: discovery_pb2.DeltaDiscoveryRequest) -> None:
    request, stream = from_proto(proto), connection.stream
    try:
        stream.receive(request)
    except ValueError as error:
        raise StreamEnded(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
    if request.error is not None:
        line = f"xds refused by client: node={stream.node} client={stream.client} {stream.last_nack}"
        connection.tell(logging.WARNING, line)
    connection.wake.set()
