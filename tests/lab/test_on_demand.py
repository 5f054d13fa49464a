"""A node on demand: its proxy is told of its own pods, asks for what they meet, and no first connection hangs."""

import asyncio
import json
import shlex
import sys
from collections.abc import Iterator

import pytest

from lab.proxy import ANNOTATION
from tests.lab.mesh import ECHO_PORT, NODES, Mesh, pod, service
from tests.lab.world import eventually
from wire.http_client import request

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

COMMAND = f"env XDS_ON_DEMAND=true ISTIO_META_DNS_CAPTURE=false {shlex.quote(sys.executable)} -m ztunnel"
"""On node a, as Istio's chart would start a proxy; node b's is told everything."""
PODS = "".join(pod(f"{name}-{node}", node) + service(f"{name}-{node}") for name in ("client", "server") for node in "ab")
KEPT = pod("kept-b", "b") + service("kept-b")
"""Asked for by one test alone, whichever comes first."""
MANIFESTS = NODES.replace("{name: a}", json.dumps({"name": "a", "annotations": {ANNOTATION: COMMAND}})) + PODS


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(MANIFESTS + pod("outsider-b", "b", ", istio.io/dataplane-mode: none") + KEPT) as made:
        for name in ("server-a", "server-b", "outsider-b", "kept-b"):
            made.puppet(name).echo(ECHO_PORT)
        yield made


def known(mesh: Mesh, kind: str = "workloads") -> set[str]:
    """What the proxy of node a knows."""
    reply = asyncio.run(request(mesh.layout.places.node("a").admin_socket, "GET", "/config_dump"))
    return {one["name"] for one in json.loads(reply.check())[kind]}


def met(mesh: Mesh, kind: str = "workloads") -> set[str]:
    """The same, but for what another test asks for."""
    return known(mesh, kind) - {"kept-b"}


def test_what_is_met_is_asked_for(mesh: Mesh) -> None:
    eventually(lambda: met(mesh) == {"client-a", "server-a"})
    assert met(mesh, "services") == set()
    client = mesh.puppet("client-a")
    assert client.fate(mesh.address("server-b"), ECHO_PORT) == "answered", "a pod's address, at the first try"
    assert met(mesh) == {"client-a", "server-a", "server-b"}
    assert client.fate("server-b", ECHO_PORT) == "answered"
    assert met(mesh, "services") == {"server-b"}
    assert client.fate(mesh.address("server-b", 6), ECHO_PORT) == "answered"
    assert client.fate(mesh.address("outsider-b"), ECHO_PORT) == "answered"
    assert mesh.puppet("client-b").fate("server-a", ECHO_PORT) == "answered"
    eventually(lambda: met(mesh) == {"client-a", "server-a", "server-b", "outsider-b", "client-b"})


def test_what_was_asked_for_survives_a_restart_and_is_kept_up_to_date(mesh: Mesh) -> None:
    assert mesh.puppet("client-a").fate("kept-b", ECHO_PORT) == "answered"
    before = known(mesh)
    assert "kept-b" in before
    mesh.kill_proxy("a")
    mesh.await_ready()
    assert known(mesh) >= before, "the disk holds what was asked for"
    assert mesh.puppet("client-a").fate("kept-b", ECHO_PORT) == "answered"
