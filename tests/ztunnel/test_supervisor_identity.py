"""The whole proxy as a process, where its certificates come from a SPIRE agent and revocation lists from a file."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.proto import delegated_identity_pb2_grpc
from mesh.proto.zds_pb2 import SnapshotSent, WorkloadRequest
from tests.ztunnel.revocation_lists import revocation_list
from tests.ztunnel.spire_agent import Agent, der
from tests.ztunnel.test_supervisor import WEB, Control, Node, play
from tests.ztunnel.world import Authority

pytestmark = pytest.mark.kernel
__all__ = ["play"]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(40):
        while not await condition():  # noqa: ASYNC110  the proxy is another process
            await asyncio.sleep(0.01)


def test_a_node_under_spire_renews_what_the_agent_renews_and_follows_its_revocation_lists(
    play: Any, authority: Any, tmp_path: Path
) -> None:
    async def scenario(node: Node, control: Control) -> None:
        agent, server = Agent(authority), grpc.aio.server()
        agent.bundles = {"spiffe://cluster.local": der(authority.root_pem)}
        agent.register(WEB.identity, "k8s:ns:demo", "k8s:sa:web")
        delegated_identity_pb2_grpc.add_DelegatedIdentityServicer_to_server(agent, server)
        server.add_insecure_port(f"unix://{node.run}/spire.sock")
        await server.start()
        crl = tmp_path / "ca-crl.pem"
        crl.write_bytes(b"")
        node.environment |= {"CA_PROVIDER": "spire", "SPIRE_ADMIN_SOCKET": f"{node.run}/spire.sock", "CRL_PATH": str(crl)}
        await node.start(await control.start())
        assert await node.add_pod() == ""
        assert await node.tell(WorkloadRequest(snapshot_sent=SnapshotSent())) == ""
        await node.ready()

        async def shown() -> list[str]:
            dump = await node.get("/config_dump")
            return [one["certChain"][0]["serialNumber"] for one in dump["certificates"] if one["state"] == "Available"]

        async def certified() -> bool:
            return bool(await shown())

        await until(certified)
        (first,) = await shown()
        agent.renew(WEB.identity)

        async def renewed() -> bool:
            return await shown() not in ([], [first])

        await until(renewed)
        assert agent.open == 2, "one stream of bundles, one for the one identity"

        root = Authority("a root of another mesh")
        crl.write_bytes(revocation_list(root, root.issue("spiffe://cluster.local/ns/demo/sa/web")[0]))

        async def followed() -> bool:
            return "1 certificates are revoked" in node.log.read_text()

        await until(followed)
        assert len(await shown()) == 1, "nobody of this mesh"
        own = ssl.DER_cert_to_PEM_cert(agent.keys[WEB.identity][1]).encode()
        crl.write_bytes(revocation_list(authority, own))

        async def revoked() -> bool:
            (one,) = (await node.get("/config_dump"))["certificates"]
            return bool(one["certChain"]) and one["state"].startswith("Revoked: a list of CRL_PATH names it")

        await until(revoked)
        text = node.log.read_text()
        assert "PRIVATE KEY" not in text and "Traceback" not in text
        await server.stop(None)
        assert await node.end() == 0

    logging.getLogger("grpc").setLevel(logging.ERROR)
    play(scenario)
