"""A proxy that is gone: its pods' traffic is refused, in and out, never carried in plain, and comes back with the proxy."""

import json
import os
import re
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import Capture
from tests.lab.mesh import ECHO_PORT, Mesh
from tests.lab.puppet import Wire
from tests.lab.world import eventually

pytestmark = pytest.mark.lab

VERSIONS = (4, 6)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        for name in ("client", "near", "far", "outsider"):
            made.puppet(name).echo(ECHO_PORT)
        yield made


def fates(mesh: Mesh, text: str) -> dict[str, str]:
    """What becomes of a connection of every kind that begins or ends at an enrolled pod of node a."""
    clients = {
        "enrolled, same node": (mesh.puppet("client"), "near"),
        "enrolled, to the other node": (mesh.puppet("client"), "far"),
        "enrolled, to an outsider": (mesh.puppet("client"), "outsider"),
        "enrolled, from the other node": (mesh.puppet("far"), "near"),
        "un-enrolled": (mesh.puppet("outsider"), "near"),
        "process of the other node": (mesh.host("b"), "near"),
    }
    return {
        f"{kind}, IPv{version}": puppet.fate(mesh.address(to, version), ECHO_PORT, text)
        for kind, (puppet, to) in clients.items()
        for version in VERSIONS
    }


def test_without_its_proxy_a_pod_is_refused_and_nothing_goes_plain(mesh: Mesh, tmp_path: Path) -> None:
    marker = f"PLAIN-{secrets.token_hex(8)}"
    assert set(fates(mesh, "before").values()) == {"answered"}
    lasting = mesh.puppet("client").connect(mesh.address("far"), ECHO_PORT)
    assert lasting.says("before")
    with Capture(mesh.layout.node_netns("a"), "any", tmp_path / "a.pcap") as capture, mesh.without_proxy("a"):
        found = fates(mesh, marker)
        outbound = {fate for kind, fate in found.items() if ", from the" not in kind and kind.startswith("enrolled")}
        assert outbound == {"refused"}, found
        assert set(found.values()) <= {"refused", "reset"}, found
        assert lasting.ended() in ("end", "reset")
        mesh.await_flow("proxy does not listen", "--from-pod", "shop/client", "--verdict", "DROPPED")
        findings = json.loads(mesh.weft("status", "--node", "a", "-o", "json", code=1))["findings"]
        assert any("proxy" in str(one) for one in findings), findings
        probe = mesh.host("a").fate(mesh.address("near"), ECHO_PORT, "probe")
        assert probe == "answered", "a node's own probes tell of the program, not of the proxy"
    raw = capture.raw()
    assert marker.encode() not in raw and b"probe" in raw
    mesh.await_ready()
    eventually(lambda: set(fates(mesh, "after").values()) == {"answered"})


@pytest.mark.parametrize("to", ["near", "far"])
def test_nothing_goes_plain_while_the_proxy_dies_and_comes_back(mesh: Mesh, tmp_path: Path, to: str) -> None:
    """Under a load that never stops trying, with the lab restarting the proxy as it does."""
    client, marker = mesh.puppet("client"), f"PLAIN-{secrets.token_hex(8)}"
    with Capture(mesh.layout.node_netns("a"), "any", tmp_path / "a.pcap") as capture:
        load = client.do("steady", mesh.address(to), ECHO_PORT, marker)
        eventually(lambda: client.do("progress", load)["fresh"] > 10)
        with mesh.without_proxy("a"):
            eventually(lambda: client.do("progress", load)["failed"] > 10)
        served = client.do("progress", load)["fresh"]
        eventually(lambda: client.do("progress", load)["fresh"] > served + 10)
        client.do("halt", load)
    assert marker.encode() not in capture.raw()
    assert capture.tls_records(15008) > 0
    mesh.await_ready()


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_dead_worker_takes_its_own_connections_along_and_no_others(mesh: Mesh, node: str) -> None:
    client, far = mesh.puppet("client"), mesh.address("far")
    workers = eventually(lambda: len(found := mesh.workers(node)) >= 2 and found)
    for worker in workers:
        held = [client.connect(far, ECHO_PORT) for _ in range(6)]
        assert all(wire.says("before") for wire in held)
        # Those of before may end a moment later than for us.
        carried = eventually(lambda: (found := carrying(mesh, node)).total() == 6 and found)
        os.kill(worker, signal.SIGKILL)
        eventually(lambda worker=worker: worker not in mesh.processes(node, "ztunnel"))
        served = [client.fate(mesh.address(to, version), ECHO_PORT) for to in ("near", "far") * 5 for version in VERSIONS]
        assert set(served) == {"answered"}, served
        eventually(lambda worker=worker: len(set(mesh.workers(node)) - {worker}) == len(workers))
        dead = killed_index(mesh, node)
        assert sum(not lives(wire) for wire in held) == carried[dead], (carried, dead)
        eventually(lambda: all(until > time.monotonic() for until in promises(mesh, node)))


def carrying(mesh: Mesh, node: str) -> Counter[int]:
    """How many connections each worker of a node carries, by its number."""
    return Counter(one["worker"] for one in json.loads(mesh.weft("connections", "--node", node, "-o", "json")))


def promises(mesh: Mesh, node: str) -> list[float]:
    """Until when each worker of a node is ready to be home to pods' connections."""
    folder = Path(f"/proc/{mesh.program(node, 'ztunnel')}/fd")
    table = next(file for file in folder.iterdir() if os.readlink(file).startswith("/memfd:headroom"))
    numbers = memoryview(table.read_bytes()).cast("d").tolist()
    count = len(mesh.workers(node))
    assert len(numbers) == 2 * count
    return numbers[:count]


def killed_index(mesh: Mesh, node: str) -> int:
    """The number of the worker that the proxy says was killed last."""
    return int(re.findall(r"worker (\d+) was killed by SIGKILL", mesh.log(f"{node}/ztunnel"))[-1])


def lives(wire: Wire) -> bool:
    with wire:
        try:
            return wire.says("after")
        except (ConnectionResetError, BrokenPipeError):
            return False
