"""A proxy that is replaced by a new process of it: no connection is refused, none that is open is cut while it drains."""

import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests.frozen import frozen
from tests.lab.mesh import ECHO_PORT, NODES, Mesh, pod
from tests.lab.world import eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

CROWD = 30
"""Idle pods on the node whose proxy is replaced: its successor must be told of all of them first."""
PATHS = (("client", "far", 4), ("far", "near", 6), ("client", "near", 4), ("outsider", "near", 4))
"""Out of the node, into it, within it, and plain text into it."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    crowd = "".join(pod(f"idle-{number}", "a") for number in range(CROWD))
    pods = pod("client", "a") + pod("near", "a") + pod("far", "b") + pod("outsider", "a", ", istio.io/dataplane-mode: none")
    with Mesh(NODES + pods + crowd) as made:
        for name in ("near", "far"):
            made.puppet(name).echo(ECHO_PORT)
        yield made


def test_a_thousand_connections_a_second_do_not_notice_that_the_proxy_is_replaced(mesh: Mesh) -> None:
    loads = {}
    for path in PATHS:
        name, to, version = path
        loads[path] = mesh.puppet(name).do("steady", mesh.address(to, version), ECHO_PORT, "x", 2, False)
    kept = mesh.puppet("client").connect(mesh.address("far"), ECHO_PORT)
    kept.send("before")
    assert kept.receive(6) == "before"

    def served() -> dict[tuple[str, str, int], int]:
        return {path: mesh.puppet(path[0]).do("progress", load)["fresh"] for path, load in loads.items()}

    def more_than(before: dict[tuple[str, str, int], int]) -> bool:
        return all(now > before[path] + 100 for path, now in served().items())

    eventually(lambda: more_than(dict.fromkeys(loads, 0)))
    former = mesh.await_program("a", "ztunnel")
    done = json.loads(mesh.weft("lab", "restart", "--node", "a", "-o", "json"))
    assert done[0]["old"] == former and done[0]["new"] != former
    kept.send("after!")
    assert kept.receive(6) == "after!", "it goes on in the process that drains"
    kept.close()
    eventually(lambda: former not in mesh.processes("a", "ztunnel"))
    before = served()
    eventually(lambda: more_than(before))
    counts = {path: mesh.puppet(path[0]).do("halt", load) for path, load in loads.items()}
    assert not any(one["failed"] for one in counts.values()), counts
    assert mesh.program("a", "ztunnel") == done[0]["new"]
    mesh.await_ready()


def test_a_successor_that_ends_gives_everything_back(mesh: Mesh) -> None:
    """Whoever started it hears why; the endpoints are the old proxy's again."""
    former = mesh.await_program("a", "ztunnel")
    agent = mesh.await_program("a", "agent")
    with frozen([agent]):  # no successor learns of pods: it does not become ready
        restart = mesh.start_weft("lab", "restart", "--node", "a")
        fresh = eventually(lambda: pid if (pid := mesh.admin("a")) != former else 0)
        os.kill(fresh, signal.SIGKILL)
        _, error = restart.communicate(timeout=60)
        assert restart.returncode == 1 and "ended with code 137" in error
    eventually(lambda: mesh.admin("a") == former)
    assert mesh.program("a", "ztunnel") == former
    mesh.await_ready()
