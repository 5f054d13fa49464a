"""A control plane gone mad, and the real proxy under it: what is wrong is refused with reasons, what is right applies."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource
from google.protobuf.any_pb2 import Any as AnyMessage

from mesh.policy import Action, Policy, Scope
from mesh.proto.zds_pb2 import SnapshotSent, WorkloadRequest
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, encode_policy, encode_service, encode_workload
from tests.ztunnel.test_supervisor import SERVICE, WEB, Control, Node
from wire import keyring

pytestmark = pytest.mark.kernel

RANDOM = Random(1)
UNKNOWN_TYPE = "type.googleapis.com/weft.Unknown"
POLICY = Policy("demo", "allow-nothing", Scope.NAMESPACE, Action.ALLOW)
GOOD = {WEB.uid: encode_workload(WEB), SERVICE.key: encode_service(SERVICE)}
Case = tuple[str, dict[str, bytes], str]
"""Type, resources, and what the proxy must answer: words of its NACK, or nothing for an ACK."""
MADNESS: list[Case] = [
    (ADDRESS_TYPE, {"K//Pod/demo/junk": b"\xff" * 64, **GOOD}, "K//Pod/demo/junk: decode: failed to decode Protobuf message"),
    (AUTHORIZATION_TYPE, {POLICY.key: encode_policy(POLICY)}, ""),
    (AUTHORIZATION_TYPE, {POLICY.key: b"\x1a\x7f"}, f"{POLICY.key}: decode: failed to decode Protobuf message"),
    (ADDRESS_TYPE, {WEB.uid: b""}, f"{WEB.uid}: unknown address type"),
    (ADDRESS_TYPE, {f"K//Pod/demo/{number}": RANDOM.randbytes(64) for number in range(2000)}, "K//Pod/demo/"),
    (ADDRESS_TYPE, {"x" * 100_000: b"\xff"}, "x" * 100),
    (UNKNOWN_TYPE, {"what": b"ever"}, ""),
    (ADDRESS_TYPE, {}, ""),
]


class Mad(Control):
    """Sends one thing after the other, each when the one before has been answered; keeps the answers."""

    def __init__(self, authority: Any) -> None:
        super().__init__(authority)
        self.answers: list[str] = []
        self.done = asyncio.Event()

    async def stream(self, requests: AsyncIterator[DeltaDiscoveryRequest], _: Any) -> AsyncIterator[DeltaDiscoveryResponse]:
        subscribed = {(await anext(requests)).type_url for _ in range(2)}
        assert subscribed == {ADDRESS_TYPE, AUTHORIZATION_TYPE}
        for number, (type_url, values, _words) in enumerate(MADNESS):
            found = [
                Resource(name=name, version="1", resource=AnyMessage(type_url=type_url, value=value))
                for name, value in values.items()
            ]
            yield DeltaDiscoveryResponse(type_url=type_url, nonce=f"n{number}", resources=found)
            answer = await anext(requests)
            assert answer.response_nonce == f"n{number}", answer
            self.answers.append(answer.error_detail.message)
        self.done.set()
        async for _request in requests:
            pass


def test_a_proxy_outlives_a_mad_control_plane_and_keeps_what_was_right(tmp_path: Path, authority: Any) -> None:
    async def scenario(node: Node, control: Mad) -> None:
        await node.start(await control.start())
        assert await node.add_pod() == ""
        await node.works()
        workers = node.workers()
        assert await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
        await asyncio.wait_for(control.done.wait(), 100)
        for answer, (_, _, words) in zip(control.answers, MADNESS, strict=True):
            assert words in answer and bool(answer) == bool(words) and len(answer) <= 4096, (words, answer[:300])
        await node.ready()
        dump = await node.get("/config_dump")
        assert WEB.uid in [one["uid"] for one in dump["workloads"]], "refused, not forgotten"
        assert [one["hostname"] for one in dump["services"]] == [SERVICE.hostname]
        assert [f"{one['namespace']}/{one['name']}" for one in dump["policies"]] == [POLICY.key]
        assert len(workers) == 2 and workers == node.workers(), "no worker ended"

    async def run() -> None:
        node, control = Node(tmp_path, netns), Mad(authority)
        (node.run / "root-cert.pem").write_bytes(authority.root_pem)
        try:
            await asyncio.wait_for(scenario(node, control), 110)
        finally:
            await control.server.stop(None)
            node.process.kill()
            node.process.wait()
            node.agent.close()
            node.listener.close()
            keyring.forget_all(keyring.scope(node.environment["WEFT_PREFIX"]))

    netns = f"weft-test-{os.getpid()}-mad"
    subprocess.run(["ip", "netns", "add", netns], check=True)
    try:
        subprocess.run(["ip", "-n", netns, "link", "set", "lo", "up"], check=True)
        asyncio.run(run())
    finally:
        subprocess.run(["ip", "netns", "del", netns], check=True)
