"""The Observer over real gRPC on a unix socket, as Hubble's clients use it."""

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agent import observer
from agent.agent_events import AgentEvents
from agent.flow_log import FlowLog
from agent.grpc_serving import serve
from agent.pod_index import PodIndex
from mesh.flows import ConnectionEvent, FlowEndpoint
from mesh.proto import flow_pb2, observer_pb2, observer_pb2_grpc, peer_pb2, peer_pb2_grpc

pytestmark = pytest.mark.unit

EVENT = ConnectionEvent(
    time_ns=10**18,
    node="node-a",
    phase="opened",
    direction="inbound",
    source=FlowEndpoint("workload", ip_address("10.0.0.2"), 4000, "shop", "front-0"),
    destination=FlowEndpoint("workload", ip_address("10.0.0.3"), 80, "shop", "cart-0"),
)


def seen(second: int, **changes: Any) -> ConnectionEvent:
    return replace(EVENT, time_ns=10**18 + second * 10**9, **changes)


class Served:
    """A running observer and stubs of a client."""

    def __init__(self, path: Path, capacity: int) -> None:
        self.path = path
        self.flows = FlowLog(capacity)
        self.events = AgentEvents("node-a")

    def add(self, *events: ConnectionEvent) -> None:
        for one in events:
            self.flows.add(one, PodIndex(()), time.time())

    async def get(self, **request: Any) -> list[observer_pb2.GetFlowsResponse]:
        return [response async for response in self.stub.GetFlows(observer_pb2.GetFlowsRequest(**request), timeout=60)]

    async def times(self, **request: Any) -> list[int]:
        return [response.time.seconds - 10**9 for response in await self.get(**request)]


@asynccontextmanager
async def serving(path: Path, capacity: int = 4095) -> AsyncIterator[Served]:
    served = Served(path, capacity)
    servicer = observer.Observer("node-a", served.flows, served.events, f"unix://{path}")
    peers = observer.Peers("node-a", f"unix://{path}", served.flows)

    def register(server: grpc.aio.Server) -> None:
        observer_pb2_grpc.add_ObserverServicer_to_server(servicer, server)
        peer_pb2_grpc.add_PeerServicer_to_server(peers, server)

    server = await serve(path, 0o660, ["hubble.server.Observer", "observer.Observer"], register)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        served.channel = channel
        served.stub = observer_pb2_grpc.ObserverStub(channel)
        yield served
        await server.stop(0)


async def stored(path: Path) -> None:
    async with serving(path) as served:
        served.add(*(seen(second) for second in range(5)), seen(5, phase="denied", reason="none allowed"))
        assert await served.times(number=2) == [4, 5]
        assert await served.times(number=2, first=True) == [0, 1]
        assert await served.times(since=Timestamp(seconds=10**9 + 3)) == [3, 4, 5]
        dropped = flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])
        assert await served.times(whitelist=[dropped]) == [5]
        assert await served.times(blacklist=[dropped], number=1) == [4]
        status = await served.stub.ServerStatus(observer_pb2.ServerStatusRequest())
        assert (status.num_flows, status.max_flows, status.seen_flows) == (6, 4095, 6) and status.flows_rate > 0
        nodes = await served.stub.GetNodes(observer_pb2.GetNodesRequest())
        assert [(node.name, node.seen_flows) for node in nodes.nodes] == [("node-a", 6)]
        namespaces = await served.stub.GetNamespaces(observer_pb2.GetNamespacesRequest())
        assert [one.namespace for one in namespaces.namespaces] == ["shop"]
    assert stat.S_IMODE(os.stat(path.parent).st_mode) and served.flows.by_verdict == {"FORWARDED": 5, "DROPPED": 1}


def test_answers_from_what_is_stored(tmp_path: Path) -> None:
    asyncio.run(stored(tmp_path / "hubble.sock"))


async def masked(path: Path) -> None:
    async with serving(path) as served:
        served.add(seen(0, phase="denied", policy="shop/none", policy_object="AuthorizationPolicy shop/none"))
        asked = FieldMask(paths=["source.pod_name", "verdict", "no_such.field", "Summary"])
        for request in ({"field_mask": asked}, {"experimental": {"field_mask": asked}}):
            response = (await served.get(**request))[0]
            assert response.node_name == "node-a" and response.time.seconds == 10**9
            assert response.flow.source.pod_name == "front-0" and not response.flow.source.namespace
            assert response.flow.Summary and not response.flow.HasField("destination")
            assert response.flow.ingress_denied_by[0].name == "none"  # old clients print it without asking


def test_field_mask_selects_and_ignores_unknown_paths(tmp_path: Path) -> None:
    asyncio.run(masked(tmp_path / "hubble.sock"))


async def refused(path: Path) -> None:
    async with serving(path) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.get(first=True, follow=True)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError, match="invalid source port filter") as caught:
            await served.get(whitelist=[flow_pb2.FlowFilter(source_port=["http"])])
        assert caught.value.code() == grpc.StatusCode.UNKNOWN
        with pytest.raises(grpc.aio.AioRpcError, match="filters of 1001 values: at most 1000"):
            await served.get(blacklist=[flow_pb2.FlowFilter(source_pod=["shop/"] * 1000), flow_pb2.FlowFilter()])
        with pytest.raises(grpc.aio.AioRpcError, match="no debug events here") as caught:
            await served.stub.GetDebugEvents(observer_pb2.GetDebugEventsRequest()).read()
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_bad_requests_fail_before_the_first_event(tmp_path: Path) -> None:
    asyncio.run(refused(tmp_path / "hubble.sock"))


async def turns(path: Path) -> None:
    looked = [0]

    async def others() -> None:
        while True:
            looked.append(looked[-1] + 1)
            await asyncio.sleep(0)

    async with serving(path) as served:
        served.add(*(seen(second) for second in range(200)))
        other = asyncio.ensure_future(others())
        before = looked[-1]
        await served.get(number=1, whitelist=[flow_pb2.FlowFilter(source_pod=["nowhere/"])])
        other.cancel()
        assert looked[-1] - before >= 400  # the walk back looked at all, and so did the answer


def test_others_go_on_while_a_request_looks_at_flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "TURN_S", 0.0)
    asyncio.run(turns(tmp_path / "hubble.sock"))


async def following(path: Path) -> None:
    async with serving(path) as served:
        served.add(seen(0), seen(1))
        call = served.stub.GetFlows(observer_pb2.GetFlowsRequest(follow=True, number=1))
        headers = dict(await call.initial_metadata())
        assert headers["hubble-server-version"] == observer.SERVER_VERSION
        assert (await call.read()).time.seconds == 10**9 + 1
        served.add(seen(2))
        assert (await call.read()).time.seconds == 10**9 + 2
        reading = asyncio.ensure_future(call.read())
        served.flows.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reading
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_follows_and_is_cut_when_the_agent_stops(tmp_path: Path) -> None:
    asyncio.run(following(tmp_path / "hubble.sock"))


async def overrun(path: Path, eventually: Any) -> None:
    async with serving(path, capacity=7) as served:
        call = served.stub.GetFlows(observer_pb2.GetFlowsRequest(follow=True))
        await eventually(lambda: served.flows._readers)  # from here on it follows; its headers are sent before
        for second in range(100):  # in one turn of the loop: the reader cannot keep up
            served.add(seen(second))
        first = await call.read()
        assert first.lost_events.source == flow_pb2.HUBBLE_RING_BUFFER and first.lost_events.num_events_lost == 93
        assert [(await call.read()).time.seconds - 10**9 for _ in range(7)] == list(range(93, 100))
        served.flows.add_lost(flow_pb2.PERF_EVENT_RING_BUFFER, 5)
        assert (await call.read()).lost_events.num_events_lost == 5
        answers = await served.get(number=100)
        assert answers[0].lost_events.num_events_lost == 94 and len(answers) == 8


def test_a_slow_reader_learns_what_it_missed(tmp_path: Path, eventually: Any) -> None:
    asyncio.run(overrun(tmp_path / "hubble.sock", eventually))


async def surroundings(path: Path) -> None:
    async with serving(path) as served:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        health = health_pb2_grpc.HealthStub(served.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="hubble.server.Observer"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for one in reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo(iter([request])):
            assert "observer.Observer" in [service.name for service in one.list_services_response.service]
        served.events.started()
        served.events.policies_changed(["demo/web"], [], 1)
        asked = served.stub.GetAgentEvents(observer_pb2.GetAgentEventsRequest(number=20))
        assert [event.agent_event.type async for event in asked] == [flow_pb2.AGENT_STARTED, flow_pb2.POLICY_UPDATED]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.GetDebugEvents(observer_pb2.GetDebugEventsRequest()).read()
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        notify = peer_pb2_grpc.PeerStub(served.channel).Notify(peer_pb2.NotifyRequest())
        assert (await notify.read()).name == "node-a"
        notify.cancel()


def test_health_reflection_agent_events_and_peers(tmp_path: Path) -> None:
    asyncio.run(surroundings(tmp_path / "hubble.sock"))
