"""What a stream of a node may cost: how many there are, and how long one is waited for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.rpc.status_pb2 import Status

from control import discovery
from control.cluster import Cluster
from control.credentials import Credentials
from control.discovery import DiscoveryService
from control.refusals import Refusals
from control.store import Store
from control.tokens import Tokens
from control.workloads import MeshNames
from mesh.manifests import parse
from mesh.resources import AUTHORIZATION_TYPE
from tests.control.conftest import DEADLINE_S

pytestmark = pytest.mark.unit

NODES = """
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDRs: [10.244.2.0/24]}}
"""
Stream = grpc.aio.StreamStreamCall[DeltaDiscoveryRequest, DeltaDiscoveryResponse]
Opened = Callable[..., Stream]


async def staying(*requests: DeltaDiscoveryRequest) -> AsyncIterator[DeltaDiscoveryRequest]:
    """What a client says that then stays, and says nothing more."""
    for one in requests:
        yield one
    await asyncio.Event().wait()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[DiscoveryService, Opened]]:
    """The service alone, and how a node with a token of its own opens a stream.

    Who is refused whatever he says is to say nothing: where a request meets the end of its stream, gRPC calls that INTERNAL.
    """
    store = Store(folder / "control.db")
    tokens = Tokens(store)
    cluster = Cluster(MeshNames(), [], store, tokens)
    cluster.replace_objects(parse({"f": NODES}).objects)
    server = grpc.aio.server()
    service = DiscoveryService(cluster, Credentials(tokens, "cluster.local"), Refusals())
    service.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    bearers = {node: f"Bearer {tokens.issue(node, bytes([number] * 32))}" for number, node in enumerate(("n1", "n2"))}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)

        def opened(node: str, *requests: DeltaDiscoveryRequest) -> Stream:
            metadata = (("authorization", bearers[node]), ("clusterid", "Kubernetes"))
            stream: Stream = stub.DeltaAggregatedResources(staying(*requests), timeout=DEADLINE_S, metadata=metadata)
            return stream

        yield service, opened
    await server.stop(None)
    store.close()


async def served(opened: Opened, node: str) -> Stream:
    """A stream that has its first answer."""
    stream = opened(node, DeltaDiscoveryRequest(node=Node(id="client"), type_url=AUTHORIZATION_TYPE))
    await stream.read()
    return stream


def test_a_node_has_so_many_streams_and_takes_none_of_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (service, opened):
            streams = [await served(opened, "n1") for _ in range(2)]
            with pytest.raises(grpc.aio.AioRpcError, match="node n1 has 2 streams already: end some of them") as refused:
                await opened("n1").read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            streams.append(await served(opened, "n2"))
            streams.pop(0).cancel()
            await eventually(lambda: [one.node for one in service.streams()] == ["n1", "n2"])
            streams.append(await served(opened, "n1"))
            for stream in streams:
                stream.cancel()

    monkeypatch.setattr(discovery, "MAX_STREAMS_PER_NODE", 2)
    asyncio.run(scenario())


def test_who_asks_for_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as (_, opened):
            with pytest.raises(grpc.aio.AioRpcError, match="no request within") as ended:
                await opened("n1").read()
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    monkeypatch.setattr(discovery, "FIRST_REQUEST_S", 0.1)
    asyncio.run(scenario())


def test_a_client_that_comes_back_and_refuses_without_end_fills_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery, "LINES_PER_SECOND", 0.0)
    monkeypatch.setattr(discovery, "LINES_AT_ONCE", 5)
    refusal = DeltaDiscoveryRequest(type_url=AUTHORIZATION_TYPE, response_nonce="?", error_detail=Status(message="no"))

    async def scenario() -> None:
        async with serving(tmp_path) as (_, opened):
            nobody = opened("n1", DeltaDiscoveryRequest(node=Node(id="client"), type_url=AUTHORIZATION_TYPE), *[refusal] * 20)
            await nobody.read()
            nobody.cancel()
            for _ in range(10):  # each is refused by its end: it has no id
                with pytest.raises(grpc.aio.AioRpcError, match="missing node information"):
                    await opened("n1", DeltaDiscoveryRequest()).read()
            with pytest.raises(grpc.aio.AioRpcError, match="missing node information"):
                await opened("n2", DeltaDiscoveryRequest()).read()

    with caplog.at_level(logging.INFO, "control.discovery"):
        asyncio.run(scenario())
    said = caplog.messages
    assert len([one for one in said if "node=n1" in one]) == 5
    assert [one for one in said if "node=n2" in one] == [
        "xds stream ended: node=n2 client=-",
        "xds stream refused: node=n2: missing node information",
    ]


def test_lines_that_were_left_out_are_counted_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "control.db")
    tokens = Tokens(store)
    cluster = Cluster(MeshNames(), [], store, tokens)
    service, clock = DiscoveryService(cluster, Credentials(tokens, "cluster.local"), Refusals()), [100.0]
    monkeypatch.setattr(discovery, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with caplog.at_level(logging.INFO, "control.discovery"):
        for number in range(discovery.LINES_AT_ONCE + 3):
            service._tell("n1", logging.INFO, f"line {number}")
        clock[0] += 2.5
        service._tell("n1", logging.INFO, "one more")
        service._tell("n1", logging.INFO, "another one")
    store.close()
    last = discovery.LINES_AT_ONCE - 1
    assert caplog.messages[last:] == [f"line {last}", "one more untold=3", "another one"]
