"""How the whole proxy learns of the mesh: asking for what it meets, or told by its own configuration."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource
from google.protobuf.any_pb2 import Any as AnyMessage

from mesh.proto.zds_pb2 import SnapshotSent, WorkloadRequest
from mesh.resources import ADDRESS_TYPE, encode_workload
from tests.ztunnel import test_supervisor
from tests.ztunnel.test_supervisor import WEB, Control, Node, request, until_closed
from wire.http_client import open_stream, read_lines

pytestmark = pytest.mark.kernel

play = test_supervisor.play


class Taciturn(Control):
    """Tells what it is asked for, and nothing else."""

    asked: tuple[str, ...] = ()

    async def stream(self, requests: AsyncIterator[DeltaDiscoveryRequest], _: Any) -> AsyncIterator[DeltaDiscoveryResponse]:
        async for one in requests:
            if one.response_nonce:
                continue
            names = [name for name in one.resource_names_subscribe if name != "*"]
            self.asked = (*self.asked, *names)
            found = []
            if WEB.uid in names:
                value = AnyMessage(type_url=ADDRESS_TYPE, value=encode_workload(WEB))
                found.append(Resource(name=WEB.uid, version="1", resource=value, aliases=["/127.0.0.1"]))
            gone = [name for name in names if name != WEB.uid]
            yield DeltaDiscoveryResponse(type_url=one.type_url, nonce="n", resources=found, removed_resources=gone)


def test_on_demand_a_connection_waits_for_what_it_meets(play: Any) -> None:
    async def scenario(node: Node, control: Taciturn) -> None:
        node.environment |= {"XDS_ON_DEMAND": "true", "ISTIO_META_DNS_CAPTURE": "false"}
        port = await control.start()
        await node.start(port)
        assert await node.add_pod() == "" and await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
        await node.ready()
        async with open_stream(node.admin, "GET", "/flows") as (_, _, pieces):
            client = node.dial(15008)
            client.sendall(b"this is no TLS")
            await asyncio.to_thread(until_closed, client)
            async with asyncio.timeout(40):
                event = json.loads(await anext(read_lines(pieces)))
        assert "tls" in json.dumps(event).lower(), "it got as far as the handshake: the pod's workload was told meanwhile"
        assert WEB.uid in control.asked
        assert [one["uid"] for one in (await node.get("/config_dump"))["workloads"]] == [WEB.uid]

        # The successor begins with what was known, and asks for nothing of it.
        asked = control.asked
        await node.end()
        node.agent.close()
        await node.start(port)
        assert await node.add_pod() == "" and await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
        await node.ready()
        assert [one["uid"] for one in (await node.get("/config_dump"))["workloads"]] == [WEB.uid] and control.asked == asked

    play(scenario, Taciturn)


def test_a_node_of_its_own_configuration_needs_no_control_plane(play: Any) -> None:
    async def scenario(node: Node, control: Control) -> None:
        mesh = node.run / "mesh.yaml"
        mesh.write_text("workloads: [{name: web, namespace: demo, serviceAccount: web, node: n1, protocol: HBONE}]")
        node.environment |= {"XDS_ADDRESS": "", "LOCAL_XDS_PATH": str(mesh)}
        await node.start(await control.start())
        assert await node.add_pod() == "" and await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
        await node.ready()
        dump = await node.get("/config_dump")
        assert [one["uid"] for one in dump["workloads"]] == [one["uid"] for one in dump["staticConfig"]["workloads"]]
        assert dump["workloads"][0]["uid"] == "Kubernetes//Pod/demo/web" and dump["config"]["xds"] is None
        assert [one["identity"] for one in dump["certificates"]] == ["spiffe://cluster.local/ns/demo/sa/web"]
        metrics = (await request(node.admin, "GET", "/metrics")).body.decode()
        assert "weft_xds_connected 0" in metrics

    play(scenario)
