"""The example of three nodes and twelve pods, as a newcomer brings it up: everybody reaches everybody, and nothing is wrong."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest

from lab.layout import SOURCE_ROOT
from tests.lab.mesh import Mesh
from tests.lab.world import World, eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

EXAMPLE = SOURCE_ROOT / "lab/examples/three-nodes.yaml"
SERVERS = {f"web-{number}" for number in range(4)}
UNTIL_ALL_ANSWERED = f"""
seen=" " count=0
while [ $count -lt {len(SERVERS)} ]; do
  name=$(curl $0 -sS -m 20 http://web/) || exit 1
  case "$seen" in *" $name "*) ;; *) echo $name; seen="$seen$name " count=$((count + 1)) ;; esac
done
"""
"""Asks until every server has answered once; what fails is said on standard error."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(EXAMPLE.read_text()) as made:
        yield made


def pods(world: World) -> list[str]:
    return [f"{one['namespace']}/{one['name']}" for one in world.status()["pods"]]


def healthy(mesh: Mesh) -> dict[str, Any]:
    """What `weft status` says once it finds nothing wrong. Not at once: a pod's certificate comes a moment after the pod."""
    return eventually(lambda: found if not (found := json.loads(mesh.weft("status", "-o", "json")))["findings"] else {})


def test_all_pods_are_enrolled_and_nothing_is_wrong(mesh: Mesh) -> None:
    status = healthy(mesh)
    assert status["ok"] and status["control"]["problems"] == []
    assert {one["node"] for one in status["nodes"]} == {"north", "east", "south"}
    enrolled = {pod["name"] for node in status["nodes"] for pod in node["agent"]["pods"] if pod["state"] == "enrolled"}
    assert enrolled == SERVERS | {f"client-{number}" for number in range(8)}
    for node in status["nodes"]:
        identities = {f"spiffe://cluster.local/ns/team/sa/{pod['serviceAccount']}" for pod in node["agent"]["pods"]}
        assert {one["identity"] for one in node["certificates"] if one["state"] == "Available"} == identities


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_every_pod_reaches_every_server_through_the_service(mesh: Mesh, family: str) -> None:
    clients = pods(mesh)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda pod: mesh.run(pod, "sh", "-c", UNTIL_ALL_ANSWERED, family, timeout_s=100), clients))
    found = {client: (set(done.stdout.split()), done.stderr) for client, done in zip(clients, answers, strict=True)}
    assert found == {client: (SERVERS, "") for client in clients}
    healthy(mesh)


def test_every_pair_of_nodes_talks_over_mutual_tls(mesh: Mesh) -> None:
    """And what a pod says to its own node's servers is encrypted just so."""
    where = {one["name"]: one["node"] for one in mesh.status()["pods"]}
    for name in where:
        mesh.output(f"team/{name}", "sh", "-c", UNTIL_ALL_ANSWERED, "-4")

    def seen() -> set[tuple[str, str]]:
        found = set()
        for flow in mesh.flows("--to-port", "8080", "--last", "4000"):
            source, destination = flow["source"].get("pod_name", ""), flow["destination"].get("pod_name", "")
            if source in where and destination in SERVERS and flow["IP"].get("encrypted"):
                found.add((where[source], where[destination]))
        return found

    expected = set(product(where.values(), {where[name] for name in SERVERS}))
    eventually(lambda: seen() == expected)


def test_the_pages_for_operators_know_all_of_it(mesh: Mesh) -> None:
    workloads = eventually(lambda: json.loads(mesh.weft("workloads", "-o", "json")))
    assert len({one["name"] for one in workloads}) == 12
    services = eventually(lambda: json.loads(mesh.weft("services", "-o", "json")))
    assert re.search(r'"web', json.dumps(services))
    assert "NORTH" in eventually(lambda: mesh.weft("status")).upper()
