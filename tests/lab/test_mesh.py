"""The lab with real agents and proxies: who is enrolled when, what keeps a pod from starting, and that all of it goes again."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.frozen import frozen
from tests.lab.host import BASE, daemon_pid, host_network, leftovers, pod, processes, runs
from tests.lab.world import World, eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

NAMESPACE = "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: %s}}\n---\n"
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""
SERVER = pod(
    "server",
    "[python3, -m, http.server, --bind, '::', '8000']",
    "nodeName: b",
    ", readinessProbe: {httpGet: {path: /, port: 8000}}",
)
CLIENT = pod("client", "[sleep, infinity]", "nodeName: a")
OUTSIDER = CLIENT.replace("{name: client,", "{name: outsider, labels: {istio.io/dataplane-mode: none},")
REFUSED = (7, 55, 56)
"""curl's exit codes for a reset: while it connects, while it sends, or after."""
EVERYTHING = BASE + NAMESPACE % "ambient" + "---".join((STRICT, SERVER, CLIENT, OUTSIDER))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    before = host_network()
    with World(EVERYTHING, timeout_s=200) as made:
        assert host_network() == before
        yield made
    assert host_network() == before
    assert leftovers(made) == []


def ask(world: World, client: str, version: int = 4) -> int:
    """curl's exit code: 0 when it was answered."""
    address = world.pod("shop/server")["addresses"][0 if version == 4 else 1]
    host = f"[{address}]" if version == 6 else address
    return world.run(f"shop/{client}", "curl", "-sS", "-m", "20", "-o", "/dev/null", f"http://{host}:8000/").returncode


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def netns_of(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


@pytest.mark.parametrize("version", [4, 6])
def test_enrolled_pods_talk_and_plain_text_is_refused_under_strict(world: World, version: int) -> None:
    assert [world.pod(f"shop/{name}")["enrolled"] for name in ("server", "client", "outsider")] == [True, True, False]
    assert ask(world, "client", version) == 0
    assert ask(world, "outsider", version) in REFUSED


def test_a_strict_pod_becomes_ready_by_its_nodes_probe(world: World) -> None:
    """Its prober is a host process: in the node's namespace and in the cgroup `host`."""
    assert world.pod("shop/server")["ready"]
    assert cgroup_of(world.await_program("b", "prober")) == f"/{world.layout.places.prefix}/b/host"


def test_a_nodes_programs_are_inside_its_cgroup_and_namespace(world: World) -> None:
    prefix = world.layout.places.prefix
    for node in ("a", "b"):
        expected = Path("/run/netns", world.layout.node_netns(node)).stat().st_ino
        for part in ("agent", "ztunnel"):
            pid = world.await_program(node, part)
            assert cgroup_of(pid) == f"/{prefix}/{node}/{part}" and netns_of(pid) == expected


def test_pods_are_enrolled_and_withdrawn_while_they_run(world: World) -> None:
    before = processes(world)
    world.apply(NAMESPACE % "none")
    assert not world.pod("shop/client")["enrolled"] and not world.pod("shop/server")["enrolled"]
    world.apply(NAMESPACE % "ambient")
    assert world.pod("shop/client")["enrolled"] and world.pod("shop/server")["enrolled"]
    assert processes(world) == before, "enrolling must not restart a program"
    eventually(lambda: ask(world, "client") == 0)
    assert ask(world, "outsider") in REFUSED


def test_an_excluded_inbound_port_of_a_strict_pod_is_reached_in_plain_text_as_asked(world: World) -> None:
    before = processes(world)
    marks = "{name: server, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '8000'},"
    assert SERVER.count("{name: server,") == 1
    world.apply(SERVER.replace("{name: server,", marks))
    eventually(lambda: ask(world, "outsider") == 0)
    assert ask(world, "client") == 0
    world.apply(SERVER)
    eventually(lambda: ask(world, "outsider") in REFUSED)
    assert processes(world) == before, "an annotation must not restart a program"


@pytest.mark.parametrize("part", ["agent", "ztunnel", "prober"])
def test_a_program_that_dies_is_started_again(world: World, part: str) -> None:
    before = world.await_program("a", part)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: world.program("a", part) not in (0, before))
    eventually(lambda: not world.status()["unready"])
    eventually(lambda: ask(world, "client") == 0)


def test_no_program_starts_before_its_pod_is_enrolled(world: World) -> None:
    """A node whose agent cannot answer starts no enrolled pod, and says why; un-enrolled ones are none of its business."""
    late = CLIENT.replace("client", "late")
    plain = OUTSIDER.replace("outsider", "plain")
    agent = world.await_program("a", "agent")
    with frozen([agent]):
        plain = pod("plain", "[sleep, infinity]", "nodeName: a").replace(
            "plain,", "plain, labels: {istio.io/dataplane-mode: none},"
        )
        late = pod("late", "[sleep, infinity]", "nodeName: a")
        world.apply(late + "---" + plain, wait=False)
        eventually(lambda: world.pod("shop/plain")["ready"])
        eventually(lambda: "not enrolled: the agent does not answer" in world.pod("shop/late")["reason"])
        assert world.pod("shop/late")["containers"] == []
        assert (Path(world.pod("shop/late")["cgroup"]) / "cgroup.procs").read_text() == ""
    eventually(lambda: world.pod("shop/late")["ready"] and world.pod("shop/late")["enrolled"])
    world.delete(late + "---" + plain)


def test_the_next_daemon_adopts_agents_and_proxies(world: World) -> None:
    before = [world.await_program(node, part) for node in ("a", "b") for part in ("agent", "ztunnel", "prober")]
    os.kill(daemon_pid(world), signal.SIGKILL)
    eventually(lambda: not world.running())
    world.up({})
    assert [world.program(node, part) for node in ("a", "b") for part in ("agent", "ztunnel", "prober")] == before
    assert world.pod("shop/client")["enrolled"]
    assert ask(world, "client") == 0 and ask(world, "outsider") in REFUSED


def test_the_mesh_goes_off_and_on_under_running_pods(world: World) -> None:
    before = processes(world)
    agents = [world.await_program(node, "agent") for node in ("a", "b")]
    status = world.up({}, mesh=False)
    assert not any(pod["enrolled"] for pod in status["pods"])
    eventually(lambda: not any(runs(pid) for pid in agents))
    eventually(lambda: all(set(node["programs"]) == {"prober"} for node in world.status()["nodes"]))
    eventually(lambda: not any("/bpf bpf " in line for line in mounts(world)))
    assert ask(world, "outsider") == 0, "without a mesh nobody refuses plain text"
    world.up({}, mesh=True, timeout_s=200)
    assert processes(world) == before
    eventually(lambda: ask(world, "client") == 0)
    assert ask(world, "outsider") in REFUSED


def mounts(world: World) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(world.layout.places.run) in line]
