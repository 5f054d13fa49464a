"""An agent or a control plane that goes and comes back: traffic does not notice, and what waited for them is done then."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lab.cgroup import processes
from mesh.identity import Identity
from tests.frozen import frozen_group
from tests.lab.mesh import ECHO_PORT, Mesh, pod
from tests.lab.world import eventually
from wire import keyring
from ztunnel.vault import WAIT_S

pytestmark = pytest.mark.lab

PATHS = (("client", "far", 4), ("client", "near", 6), ("far", "near", 4), ("outsider", "near", 4), ("client", "outsider", 6))
"""Across nodes, within a node, and plain text in and out."""
LATE = pod("late", "a")


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        for name in ("near", "far", "outsider"):
            made.puppet(name).echo(ECHO_PORT)
        yield made


@contextmanager
def undisturbed(mesh: Mesh) -> Iterator[Callable[[], None]]:
    """Traffic on all paths while the block runs, none of which may fail; calling the value waits for a good deal more of it."""
    loads = {}
    for path in PATHS:
        name, to, version = path
        loads[path] = mesh.puppet(name).do("steady", mesh.address(to, version), ECHO_PORT, "steady")

    def more() -> None:
        for path, load in loads.items():
            before = mesh.puppet(path[0]).do("progress", load)
            eventually(lambda path=path, load=load, before=before: _grown(mesh.puppet(path[0]).do("progress", load), before))

    try:
        more()
        yield more
        more()
    finally:
        done = {path: mesh.puppet(path[0]).do("halt", load) for path, load in loads.items()}
    assert not any(one["failed"] for one in done.values()), done


def _grown(now: dict[str, int], before: dict[str, int]) -> bool:
    assert not now["failed"], now
    return all(now[key] >= before[key] + 20 for key in ("fresh", "kept"))


def agent_serves(mesh: Mesh, node: str, former: int) -> bool:
    """Whether another agent runs, which has its proxy and its control plane."""
    if mesh.program(node, "agent") in (0, former):
        return False
    mesh.await_ready()
    return '"connected": true' in mesh.weft("status", "--node", node, "-o", "json")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_not_one_connection_notices_a_restart_of_the_agents(mesh: Mesh, how: signal.Signals) -> None:
    with undisturbed(mesh) as more:
        for node in ("a", "b"):
            agent = mesh.await_program(node, "agent")
            os.kill(agent, how)
            eventually(lambda node=node, agent=agent: agent not in mesh.processes(node, "agent"))
            eventually(lambda node=node, agent=agent: agent_serves(mesh, node, agent))
            more()


def test_the_next_agent_enrols_and_withdraws(mesh: Mesh) -> None:
    """Pods that came before it as well as new ones."""
    former = mesh.await_program("a", "agent")
    mesh.apply(LATE)
    os.kill(former, signal.SIGKILL)
    eventually(lambda: agent_serves(mesh, "a", former))
    late = mesh.puppet("late")
    assert late.fate(mesh.address("far"), ECHO_PORT) == "answered"
    eventually(lambda: source_is_proved(mesh, "late"))
    mesh.apply(LATE.replace("app: late", "app: late, istio.io/dataplane-mode: none"))
    assert not mesh.pod("shop/late")["enrolled"]
    eventually(lambda: late.fate(mesh.address("far"), ECHO_PORT) == "answered" and not source_is_proved(mesh, "late"))
    mesh.apply(LATE)
    assert mesh.pod("shop/late")["enrolled"]
    eventually(lambda: late.fate(mesh.address("far"), ECHO_PORT) == "answered" and source_is_proved(mesh, "late"))
    key = f"{keyring.scope(mesh.layout.places.prefix, 'a')}{identity('late')}"
    assert keyring.read(key)
    mesh.dismiss("late")
    mesh.delete(LATE)
    eventually(lambda: keyring.read(key) is None)
    assert "shop/late" not in mesh.weft("status", "-o", "json")


def source_is_proved(mesh: Mesh, name: str) -> bool:
    """Whether the newest flow that reached `far` from a pod came over mutual TLS."""
    found = mesh.flows("--from-pod", f"shop/{name}", "--to-pod", "shop/far", "--node", "b")
    return bool(found) and found[-1].get("auth_type") == "SPIRE"


def test_not_one_connection_notices_a_control_plane_that_dies(mesh: Mesh) -> None:
    with undisturbed(mesh) as more:
        (control,) = processes(mesh.layout.control_cgroup)
        os.kill(control, signal.SIGKILL)
        more()
        eventually(lambda: processes(mesh.layout.control_cgroup) not in ([], [control]))
        eventually(lambda: agent_control_connected(mesh))
        mesh.await_ready()


def agent_control_connected(mesh: Mesh) -> bool:
    status = json.loads(mesh.weft("status", "-o", "json"))
    return all(node["agent"]["control"]["connected"] for node in status["nodes"])


def test_without_control_the_last_state_serves_restarted_agents_and_proxies(mesh: Mesh) -> None:
    """With the keys that the kernel kept and no disk holds: who has none there is refused, and served once control is back."""
    client, near, outsider = mesh.puppet("client"), mesh.puppet("near"), mesh.puppet("outsider")
    scope = keyring.scope(mesh.layout.places.prefix, "a")
    expected = {str(identity("client")), str(identity("near"))}  # a pod's certificate comes a moment after the pod
    eventually(lambda: {name.removeprefix(scope) for name in keyring.names(scope)} == expected)
    with frozen_group(mesh.layout.control_cgroup):
        eventually(lambda: any("control does not answer" in reason for reason in mesh.status()["unready"]))
        with undisturbed(mesh):
            agent = mesh.await_program("a", "agent")
            os.kill(agent, signal.SIGKILL)
            eventually(lambda: mesh.program("a", "agent") not in (0, agent))
        mesh.kill_proxy("a")
        for source, to in ((client, "outsider"), (outsider, "near"), (client, "far"), (client, "near"), (near, "far")):
            eventually(lambda source=source, to=to: source.fate(mesh.address(to), ECHO_PORT) == "answered")
        eventually(lambda: source_is_proved(mesh, "client"))

        keyring.forget(f"{scope}{identity('near')}")
        mesh.kill_proxy("a")
        eventually(lambda: client.fate(mesh.address("far"), ECHO_PORT) == "answered")
        eventually(lambda: outsider.fate(mesh.address("near"), ECHO_PORT) == "answered")
        for source, to in ((client, "near"), (near, "far")):
            assert source.fate(mesh.address(to), ECHO_PORT, patience_s=3 * WAIT_S) == "reset", "after as long as a proxy waits"
        ends = ("--from-pod", "shop/near", "--to-pod", "shop/far")
        mesh.await_flow(f"no certificate for {identity('near')}: CA", *ends, "--node", "a")
    eventually(lambda: near.fate(mesh.address("far"), ECHO_PORT) == "answered")
    eventually(lambda: client.fate(mesh.address("near"), ECHO_PORT) == "answered")
    mesh.await_ready()
    assert_no_workload_key_on_disk(mesh)


def identity(name: str) -> Identity:
    return Identity("cluster.local", "shop", name)


def assert_no_workload_key_on_disk(mesh: Mesh) -> None:
    """Nor in a log, nor in any file that the lab's processes keep; the CA's own key apart."""
    places = mesh.layout.places
    pins = {places.node(node).bpffs for node in ("a", "b")}
    found = [path for folder in (places.run, places.state) for path in folder.rglob("*")]
    files = [path for path in found if path.is_file() and not pins & set(path.parents)]
    assert places.control_state / "root-key.pem" in files and mesh.log_path("a/ztunnel") in files
    holding = {path for path in files if b"PRIVATE KEY" in path.read_bytes()}
    assert holding == {places.control_state / "root-key.pem"}
