"""Hubble's Observer on a node: its flows to whoever asks, in the protocol that the field's tools speak.

A filter that cannot be evaluated fails the request before its first event. A reader that is slower than the events learns how
many it missed, at most once a second. When the agent stops, followed streams are cut with UNAVAILABLE, because a relay takes
a clean end for the end of the story and would not come back.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext

from agent.field_mask import compile_mask
from agent.flow_log import Event, EventLog, FlowLog, Seen
from agent.flow_log import time_ns as flow_time_ns
from agent.query import Fate, Query
from mesh.flow_filter import select
from mesh.proto import flow_pb2, observer_pb2, observer_pb2_grpc, peer_pb2, peer_pb2_grpc, relay_pb2
from mesh.version import VERSION

SERVER_VERSION = "1.16.0"
"""Sent as `hubble-server-version`. Clients warn when theirs is older, so this is the oldest that has all that is served."""
LOST_INTERVAL_S = 1.0
TURN_S = 0.002
_BATCH = 256


class Observer(observer_pb2_grpc.ObserverServicer):  # type: ignore[misc]  # generated, untyped
    """Serves flows and agent events; counters of the ring, and the node itself as the only node."""

    def __init__(self, node: str, flows: FlowLog, agent_events: EventLog, address: str) -> None:
        self._node = node
        self._flows = flows
        self._agent_events = agent_events
        self._address = address
        self._started_ns = time.monotonic_ns()

    async def GetFlows(
        self, request: observer_pb2.GetFlowsRequest, context: ServicerContext
    ) -> AsyncIterator[observer_pb2.GetFlowsResponse]:
        """Stored and, with `follow`, coming flows."""
        if request.first and request.follow:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "first cannot be used with follow")
        try:
            matches = select(request.whitelist, request.blacklist)
        except ValueError as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        mask = compile_mask(request.field_mask.paths or request.experimental.field_mask.paths)
        await _greet(context)
        query = _query(request, flow_time_ns, lambda event: isinstance(event, Seen) and matches(event.flow))
        async for event in self._answer(self._flows, query, context):
            yield self._flow_response(event, mask)

    def _flow_response(self, event: Event, mask: Callable[[Any], Any]) -> observer_pb2.GetFlowsResponse:
        if not isinstance(event, Seen):
            response = observer_pb2.GetFlowsResponse(lost_events=event, node_name=self._node)
            response.time.GetCurrentTime()
            return response
        flow = event.flow
        return observer_pb2.GetFlowsResponse(flow=mask(flow), node_name=flow.node_name, time=flow.time)

    async def GetAgentEvents(
        self, request: observer_pb2.GetAgentEventsRequest, context: ServicerContext
    ) -> AsyncIterator[observer_pb2.GetAgentEventsResponse]:
        """What the agent did: started, enrolled and withdrew pods, took policies in."""
        if request.first and request.follow:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "first cannot be used with follow")
        await _greet(context)
        query = _query(request, _response_time_ns, lambda _: True)
        async for event in self._answer(self._agent_events, query, context):
            if isinstance(event, observer_pb2.GetAgentEventsResponse):
                yield event

    async def GetDebugEvents(
        self, request: observer_pb2.GetDebugEventsRequest, context: ServicerContext
    ) -> AsyncIterator[observer_pb2.GetDebugEventsResponse]:
        """Cilium's own; there are none here."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no debug events here: ask for agent events or flows")
        yield observer_pb2.GetDebugEventsResponse()

    async def _answer(self, log: EventLog, query: Query[Event], context: ServicerContext) -> AsyncIterator[Event]:
        turns, end = _Turns(), None if query.follow else log.ring.end
        position, short = 0, False
        for begun in query.begin(log.ring):
            position, short = begun or (position, short)
            await turns.give_way()
        lost = log.ring.start if short else 0
        lost_at = 0.0
        sent = 0
        with log.reading() as news:
            while not query.is_done(sent):
                limit = _BATCH if end is None else min(_BATCH, end - position)
                events, missed = log.ring.read(position, limit)
                position += missed + len(events)
                lost += missed
                now = time.monotonic()
                if lost and now - lost_at >= LOST_INTERVAL_S:
                    yield flow_pb2.LostEvent(source=flow_pb2.HUBBLE_RING_BUFFER, num_events_lost=lost)
                    lost, lost_at = 0, now
                for event in events:
                    fate = query.fate(event)
                    if fate is Fate.END or query.is_done(sent):
                        return
                    if fate is Fate.SEND:
                        yield event
                        sent += query.time_ns(event) is not None
                    await turns.give_way()
                if end is not None and position >= end:
                    return
                if not events:
                    await self._wait(log, news, context)

    async def _wait(self, log: EventLog, news: asyncio.Event, context: ServicerContext) -> None:
        if log.stopped:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the agent of {self._node} stops")
        await news.wait()
        news.clear()

    async def ServerStatus(self, request: observer_pb2.ServerStatusRequest, context: ServicerContext) -> Any:
        """How full the ring is, and how much went through it."""
        await _greet(context)
        uptime_ns = time.monotonic_ns() - self._started_ns
        return observer_pb2.ServerStatusResponse(
            num_flows=len(self._flows.ring),
            max_flows=self._flows.ring.capacity,
            seen_flows=self._flows.seen,
            uptime_ns=uptime_ns,
            version=f"weft-agent {VERSION}",
            flows_rate=self._flows.rate(time.time(), uptime_ns / 1e9),
        )

    async def GetNodes(self, request: observer_pb2.GetNodesRequest, context: ServicerContext) -> Any:
        """This node."""
        await _greet(context)
        node = observer_pb2.Node(
            name=self._node,
            version=f"weft-agent {VERSION}",
            address=self._address,
            state=relay_pb2.NODE_CONNECTED,
            tls=observer_pb2.TLS(enabled=False),
            uptime_ns=time.monotonic_ns() - self._started_ns,
            num_flows=len(self._flows.ring),
            max_flows=self._flows.ring.capacity,
            seen_flows=self._flows.seen,
        )
        return observer_pb2.GetNodesResponse(nodes=[node])

    async def GetNamespaces(self, request: observer_pb2.GetNamespacesRequest, context: ServicerContext) -> Any:
        """Namespaces of the last hour's flows."""
        await _greet(context)
        found = self._flows.namespaces(time.time())
        return observer_pb2.GetNamespacesResponse(
            namespaces=[observer_pb2.Namespace(cluster=cluster, namespace=namespace) for cluster, namespace in found]
        )


class Peers(peer_pb2_grpc.PeerServicer):  # type: ignore[misc]  # generated, untyped
    """Tells a relay of this node, and keeps the stream open: its end would make the relay unready."""

    def __init__(self, node: str, address: str, log: EventLog) -> None:
        self._node = node
        self._address = address
        self._log = log

    async def Notify(
        self, request: peer_pb2.NotifyRequest, context: ServicerContext
    ) -> AsyncIterator[peer_pb2.ChangeNotification]:
        """This node, then nothing until the agent stops."""
        yield peer_pb2.ChangeNotification(name=self._node, address=self._address, type=peer_pb2.PEER_ADDED)
        with self._log.reading() as news:
            while not self._log.stopped:
                await news.wait()
                news.clear()
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"the agent of {self._node} stops")


class _Turns:
    """A request's turns on the loop: a thousand filters on all flows take seconds, in which pods wait to be enrolled."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    async def give_way(self) -> None:
        """Let others go on where this turn has been long enough."""
        if time.monotonic() - self._began_s >= TURN_S:
            await asyncio.sleep(0)
            self._began_s = time.monotonic()


async def _greet(context: ServicerContext) -> None:
    """Send the headers at once: clients wait for them before they show a stream as open."""
    await context.send_initial_metadata((("hubble-server-version", SERVER_VERSION),))


def _query(request: Any, time_ns: Callable[[Event], int | None], matches: Callable[[Event], bool]) -> Query[Event]:
    return Query(
        time_ns=time_ns,
        matches=matches,
        number=request.number,
        first=request.first,
        follow=request.follow,
        since_ns=_ns(request.since) if request.HasField("since") else None,
        until_ns=_ns(request.until) if request.HasField("until") else None,
    )


def _ns(at: Timestamp) -> int:
    return int(at.seconds * 10**9 + at.nanos)


def _response_time_ns(event: Event) -> int | None:
    return _ns(event.time) if isinstance(event, observer_pb2.GetAgentEventsResponse) else None
