"""weft-control towards a client that asks by name, both of them real."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse

from control.answer import Content, Contents, to_wire
from mesh.delta import Resource, Response
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, decode_address
from tests.control.conftest import DEADLINE_S
from tests.control.test_server import NODES, UID_0, WEB, WEB_0, WEB_KEY
from wire.grpc_tls import Endpoint
from wire.xds import NodeMetadata, Update, XdsClient

pytestmark = pytest.mark.unit

OWN = "/10.244.1.2"
UID_1 = "Kubernetes//Pod/demo/web-1"
WEB_1 = {"name": "web-1", "node": "n2", "ready": True, "enrolled": True, "addresses": ["10.244.2.2"]}


SERVICE = bytes.fromhex(
    "12600a0273331204616d62321a1973332e616d62322e7376632e636c75737465722e6c6f63616c220612040a604a7f2a05085010903f3a2618a0750a210a"
    "04616d6232121977702e616d62322e7376632e636c75737465722e6c6f63616c48015801"
)
WHOLE = (
    "0a10353438313263333063626465613532371290010a2a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e41646472"
    "65737312" + "62" + SERVICE.hex() + "1a1e616d62322f73332e616d62322e7376632e636c75737465722e6c6f63616c"
)


def test_golden_resource_as_it_travels() -> None:
    """Recorded from istiod: version, value and name, and in wildcard mode no alias; who asks by name gets the aliases."""
    one = Resource("amb2/s3.amb2.svc.cluster.local", "54812c30cbdea527", SERVICE, ("/10.96.74.127",), ("@n1",))
    [whole] = told(Response(ADDRESS_TYPE, (one,))).resources
    assert whole.SerializeToString(deterministic=True).hex() == WHOLE
    [named] = told(Response(ADDRESS_TYPE, (one,), by_name=True)).resources
    assert list(named.aliases) == ["/10.96.74.127"]


def told(response: Response) -> DeltaDiscoveryResponse:
    return DeltaDiscoveryResponse.FromString(to_wire(response, Content(response), "1"))


def test_what_streams_are_told_alike_is_encoded_once() -> None:
    one, other = Resource("a", "1", b"x", ("/10.0.0.1",)), Resource("a", "2", b"y")
    contents = Contents()
    held = contents.of(Response(ADDRESS_TYPE, (one,), nonce="1"))
    assert contents.of(Response(ADDRESS_TYPE, (one,), ("gone",), nonce="2")) is held
    for unlike in (Response(ADDRESS_TYPE, (one,), by_name=True), Response("other", (one,)), Response(ADDRESS_TYPE, (other,))):
        assert contents.of(unlike) is not held
    sent = DeltaDiscoveryResponse.FromString(to_wire(Response(ADDRESS_TYPE, (one,), ("gone",), "2"), held, "7"))
    assert (sent.nonce, list(sent.removed_resources), sent.system_version_info) == ("2", ["gone"], "7")


def test_a_node_is_told_of_its_own_pods_and_of_what_it_asks_for(control: Any, eventually: Any) -> None:
    control.apply(NODES + "---" + WEB)
    control.report(WEB_0, WEB_1)
    seen: dict[str, bytes] = {}
    answers: dict[str, str] = {}
    policies: list[str] = []

    async def take(update: Update) -> Mapping[str, str]:
        if update.type_url == ADDRESS_TYPE:
            seen.update({one.name: one.value for one in update.upserts})
            for name in update.removals:
                seen.pop(name, None)
        else:
            policies.extend(one.name for one in update.upserts)
        return {}

    async def follow() -> None:
        token = control.token("n1")
        endpoint = Endpoint(control.address(), control.root_pem.encode(), token, "Kubernetes")
        node = NodeMetadata("ztunnel", "ztunnel-n1", "weft", "10.0.0.1", "n1", "Kubernetes")
        client = XdsClient(endpoint, node, [ADDRESS_TYPE, AUTHORIZATION_TYPE], take, None, [ADDRESS_TYPE], answers.update)
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(client.run())
            await eventually(lambda: client.ready)
            assert set(seen) == {UID_0} and policies == ["istio-system/istio_converted_static_strict"]
            client.demand(ADDRESS_TYPE, ["/8.8.8.8", OWN])
            assert not answers, "an address of what is held is asked for once: somebody else may have it, too"
            await eventually(lambda: answers.keys() == {"/8.8.8.8", OWN})
            answers.clear()
            client.demand(ADDRESS_TYPE, [OWN])
            assert answers == {OWN: ""}, "and is answered at once from then on"
            client.demand(ADDRESS_TYPE, [UID_0])
            assert UID_0 not in answers, "by its own name it is asked for again: somebody may have come to belong to it"
            await eventually(lambda: UID_0 in answers)
            assert set(seen) == {UID_0}
            client.demand(ADDRESS_TYPE, ["/10.244.2.2"])
            await eventually(lambda: "/10.244.2.2" in answers)
            assert set(seen) == {UID_0, UID_1}
            client.demand(ADDRESS_TYPE, [WEB_KEY])
            await eventually(lambda: WEB_KEY in answers)
            service = decode_address(seen[WEB_KEY])
            vip = f"/{service.vips[0].address}"  # type: ignore[union-attr]
            client.demand(ADDRESS_TYPE, [vip])
            await eventually(lambda: vip in answers)
            await asyncio.to_thread(control.report, WEB_0)
            await eventually(lambda: set(seen) == {UID_0, WEB_KEY})
            running.cancel()
        assert set(answers.values()) == {""} and len(answers) == 5

    asyncio.run(follow())
