"""The mesh's root is replaced by an operator's command while two real proxies carry streams, and neither notices."""

import asyncio
import json
import sys
import time

import pytest

from lab.proxy import ANNOTATION
from tests.lab.mesh import ECHO_PORT, NODES, PODS, Mesh
from tests.lab.world import eventually
from wire.http_client import request

pytestmark = [pytest.mark.lab, pytest.mark.timeout(500)]

LIFE_S = 8
PROXY = f"env SECRET_TTL={LIFE_S}s {sys.executable} -m ztunnel"
"""Weft's own, whose certificates live for seconds: a rotation takes two such lives."""


def short_lived() -> str:
    """The nodes, with such proxies."""
    made = NODES
    for name in "ab":
        plain = f"metadata: {{name: {name}}}"
        assert plain in made
        made = made.replace(plain, f"metadata: {{name: {name}, annotations: {json.dumps({ANNOTATION: PROXY})}}}")
    return made


def trusted(mesh: Mesh, node: str) -> set[tuple[str, ...]]:
    """What the identities of a node's proxy trust: the roots' serial numbers; nothing while one has no certificate."""
    reply = asyncio.run(request(mesh.layout.places.node(node).admin_socket, "GET", "/config_dump"))
    certificates = json.loads(reply.check())["certificates"]
    if not all(one["state"] == "Available" for one in certificates):
        return set()
    return {tuple(root["serialNumber"] for root in one["rootCerts"]) for one in certificates}


def phase(mesh: Mesh) -> str:
    """What an operator is told."""
    return str(json.loads(mesh.weft("certificates", "roots", "-o", "json"))["phase"])


def rotation(mesh: Mesh) -> list[str]:
    """Every phase there was: who looks now and then misses one that is shorter than a look."""
    parts = [line.partition("root rotation: ") for line in mesh.log("control").splitlines()]
    return [words for _, found, words in parts if found]


def test_a_root_is_replaced_under_standing_streams() -> None:
    with Mesh(short_lived() + PODS) as mesh:
        mesh.puppet("far").echo(ECHO_PORT)
        client = mesh.puppet("client")
        standing = [client.connect(mesh.address("far", version), ECHO_PORT) for version in (4, 6)]
        assert all(wire.says("before") for wire in standing)
        (old,) = eventually(lambda: trusted(mesh, "a"))  # a pod's certificate comes a moment after the pod
        said = mesh.weft("certificates", "rotate-root", "--overlap", f"{LIFE_S + 1}s")
        assert said.startswith("a new root is announced; it signs from ")
        trust: list[set[tuple[str, ...]]] = []

        def over() -> bool:
            assert all(wire.says("still here") for wire in standing)
            assert client.ask(mesh.address("far"), ECHO_PORT) == client.ask(mesh.address("far", 6), ECHO_PORT) == "ping"
            if phase(mesh) != "steady":
                return False
            trust[:] = trusted(mesh, "a"), trusted(mesh, "b")
            return all(trust) and all(len(one) == 1 and one != old for found in trust for one in found)

        until = time.monotonic() + 20 * LIFE_S
        while not over():
            assert time.monotonic() < until, (phase(mesh), rotation(mesh))
        announced, *others = rotation(mesh)
        assert announced == f"a successor is announced; it signs in {LIFE_S + 1} s"
        assert others == ["the new root signs", "the old root is retired"]
        assert trust[0] == trust[1]
        assert all(wire.says("after") for wire in standing)
        assert mesh.weft("certificates", "roots").count("BEGIN CERTIFICATE") == 1
