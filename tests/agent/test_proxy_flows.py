"""The proxy's flows: read from its stream in its JSON, named with what the runtime said of the pods, and read again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from agent import proxy_flows
from agent.pod import Pod, PodRequest
from agent.pod_index import PodIndex
from agent.proxy_flows import ProxyFlows, name_pods, parse_line
from mesh.flows import ConnectionEvent, FlowEndpoint, connection_flow
from mesh.proto import flow_pb2
from wire.http_unix import HttpError, HttpServer, Request, Response

pytestmark = pytest.mark.unit

EVENT = ConnectionEvent(
    time_ns=1_700_000_000_000_000_123,
    node="a",
    phase="denied",
    direction="inbound",
    source=FlowEndpoint("workload", ip_address("10.0.0.2"), 4000, "demo", "client", labels=("k8s:app=client",)),
    destination=FlowEndpoint("workload", ip_address("10.0.0.3"), 80, "demo", "web", labels=("k8s:app=guess", "k8s:more=1")),
    policy="demo/web",
    policy_object="AuthorizationPolicy demo/web",
    service="demo/web.demo.svc.cluster.local",
)
POD = Pod(
    PodRequest("u", "demo", "web", "web", "/x", (ip_address("10.0.0.3"),), (("app", "web"), ("tier", "x"))), (1, 2), 3, "b"
)


def line(flow: flow_pb2.Flow) -> bytes:
    text: str = json_format.MessageToJson(flow, indent=None, preserving_proto_field_name=True)
    return text.encode() + b"\n"


@pytest.mark.parametrize("phase", ["opened", "closed", "denied", "unauthenticated", "failed", "kept"])
def test_a_line_is_the_flow_it_was_made_of(phase: str) -> None:
    flow = connection_flow(replace(EVENT, phase=phase))  # type: ignore[arg-type]
    assert parse_line(line(flow)) == flow


def test_a_newer_proxys_fields_are_left_out() -> None:
    assert parse_line(b'{"uuid": "u", "from_the_future": {"x": 1}, "IP": {"source": "10.0.0.1", "x": 2}}') == flow_pb2.Flow(
        uuid="u", IP=flow_pb2.IP(source="10.0.0.1")
    )


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_line_is_read_or_refused(content: bytes) -> None:
    try:
        assert isinstance(parse_line(content), flow_pb2.Flow | flow_pb2.LostEvent)
    except ValueError as error:
        assert str(error)


def test_labels_come_from_the_runtime() -> None:
    flow = name_pods(connection_flow(EVENT), PodIndex([POD]))
    assert list(flow.destination.labels) == ["k8s:app=web", "k8s:more=1", "k8s:tier=x"]
    assert list(flow.source.labels) == ["k8s:app=client"]


def test_follows_the_stream_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_flows, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(proxy_flows, "RETRY_LONGEST_S", 0.05)
    path = tmp_path / "admin.sock"

    async def pieces() -> AsyncIterator[bytes]:
        whole = line(connection_flow(EVENT)) + b"\nnonsense\n"
        yield whole[:100]
        yield whole[100:]
        yield b'{"lost_events":{"source":"OBSERVER_EVENTS_QUEUE","num_events_lost":"7"}}\n'

    async def answer(_: Request) -> Response:
        return Response(content_type="application/x-ndjson", stream=pieces())

    async def refuse(_: Request) -> Response:
        asked.set()
        raise HttpError(404, "not here")

    asked = asyncio.Event()

    async def scenario() -> None:
        flows: asyncio.Queue[flow_pb2.Flow] = asyncio.Queue()
        lost: asyncio.Queue[int] = asyncio.Queue()
        reader = ProxyFlows(path, lambda: PodIndex([POD]), flows.put_nowait, lost.put_nowait)
        task = asyncio.create_task(reader.run())
        for without in (False, True, False):  # a proxy, one without flows, and a proxy again
            server = HttpServer({"GET /flows": refuse if without else answer})
            await server.listen_unix(path)
            if not without:
                assert (await flows.get()).uuid == connection_flow(EVENT).uuid
                assert await lost.get() == 7 and reader.unreadable >= 1
            else:
                await asked.wait()
            await server.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
