"""Policies and labels that change under live connections: what is no longer allowed ends, and nothing else does."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.frozen import frozen
from tests.lab.mesh import ECHO_PORT, NODES, PODS, Mesh, authentication, pod
from tests.lab.puppet import Puppet, Wire
from tests.lab.world import eventually
from tests.links import detach

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

OTHER_PORT = 7001
OLDER = pod("older", "a", ", istio.io/dataplane-mode: none")
HOSTED = pod("hosted", "a", extra="hostNetwork: true")
DENIAL = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: no-other-port, namespace: shop}}
spec:
  action: DENY
  rules:
    - from: [{{source: {{principals: [cluster.local/ns/shop/sa/client]}}}}]
      to: [{{operation: {{ports: ["{OTHER_PORT}"]}}}}]
---
"""
VERSIONS = (4, 6)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(NODES + PODS + OLDER + HOSTED) as made:
        for name in ("client", "near", "far", "outsider", "older"):
            made.puppet(name).echo(ECHO_PORT)
        for name in ("near", "far"):
            made.puppet(name).echo(OTHER_PORT)
        yield made


@pytest.fixture
def client(mesh: Mesh) -> Puppet:
    return mesh.puppet("client")


@contextmanager
def strict(mesh: Mesh) -> Iterator[None]:
    with mesh.having(authentication("STRICT")):
        yield


def open_wires(mesh: Mesh, puppet: Puppet, to: str, port: int = ECHO_PORT) -> list[Wire]:
    """A connection of each family that has been answered."""
    wires = [puppet.connect(mesh.address(to, version), port) for version in VERSIONS]
    assert all(wire.says("hello") for wire in wires)
    return wires


def await_refusal(puppet: Puppet, address: str) -> None:
    """Not at once: each worker hears of a policy by itself, and who ended a connection need not be who takes the next one."""
    eventually(lambda: puppet.fate(address, ECHO_PORT) in ("refused", "reset"))


@pytest.mark.parametrize("to", ["near", "far"])
def test_strict_ends_live_plain_connections_and_no_others(mesh: Mesh, client: Puppet, to: str) -> None:
    plain = open_wires(mesh, mesh.puppet("outsider"), to)
    proved = open_wires(mesh, client, to)
    own_host = open_wires(mesh, mesh.host("a" if to == "near" else "b"), to)
    began = time.monotonic()
    mesh.apply(authentication("STRICT"), wait=False)
    try:
        assert [wire.ended() for wire in plain] == ["reset", "reset"]
        print(f"plain connections ended {(time.monotonic() - began) * 1000:.0f} ms after the change was sent")
        assert all(wire.says("still here") for wire in proved + own_host)
        await_refusal(mesh.puppet("outsider"), mesh.address(to))
        mesh.await_flow("PeerAuthentication shop/mode", "--from-pod", "shop/outsider", "--to-pod", f"shop/{to}")
        mesh.apply(authentication("PERMISSIVE"))
        eventually(lambda: mesh.puppet("outsider").fate(mesh.address(to), ECHO_PORT) == "answered")
        assert all(wire.says("still here") for wire in proved + own_host)
    finally:
        mesh.delete(authentication("STRICT"))


@pytest.mark.parametrize("to", ["near", "far"])
def test_a_new_denial_ends_its_streams_while_others_of_the_same_tunnel_live_on(mesh: Mesh, client: Puppet, to: str) -> None:
    allowed = [wire for _ in range(3) for wire in open_wires(mesh, client, to)]
    doomed = [wire for _ in range(3) for wire in open_wires(mesh, client, to, OTHER_PORT)]
    before: dict[str, set[int]] = {}

    def one_carries_both() -> bool:
        """Not at once: which worker takes a connection depends on who is busy, and each has a tunnel of its own."""
        before.update(tunnels(mesh, to))
        if {ECHO_PORT, OTHER_PORT} in before.values():
            return True
        allowed.extend(open_wires(mesh, client, to))
        doomed.extend(open_wires(mesh, client, to, OTHER_PORT))
        return False

    eventually(one_carries_both)
    with mesh.having(DENIAL):
        assert {wire.ended() for wire in doomed} == {"reset"}
        assert all(wire.says("still here") for wire in allowed)
        after = eventually(lambda: found if set().union(*(found := tunnels(mesh, to)).values()) == {ECHO_PORT} else {})
        assert after.keys() <= before.keys(), "no tunnel was broken to end a stream"
        eventually(lambda: client.fate(mesh.address(to), OTHER_PORT) == "reset")
        mesh.await_flow("AuthorizationPolicy shop/no-other-port", "--verdict", "DROPPED", "--to-pod", f"shop/{to}")
    eventually(lambda: client.fate(mesh.address(to), OTHER_PORT) == "answered")
    for wire in allowed + doomed:
        wire.close()


def tunnels(mesh: Mesh, to: str) -> dict[str, set[int]]:
    """The ports that every tunnel from the client to a pod carries streams to."""
    found = defaultdict(set)
    for one in json.loads(mesh.weft("connections", "--node", "a" if to == "near" else "b", "-o", "json")):
        if (
            one["direction"] == "inbound"
            and one["sourceWorkload"].endswith("/client")
            and one["destinationWorkload"].endswith(to)
        ):
            found[one["src"]].add(int(one["actualDst"].rpartition(":")[2]))
    return dict(found)


def test_connections_older_than_enrolment_live_until_strict(mesh: Mesh) -> None:
    """The inbound ones are closed then; what the pod itself had opened is the other side's to judge."""
    older, outsider = mesh.puppet("older"), mesh.puppet("outsider")
    inbound, outbound = open_wires(mesh, outsider, "older"), open_wires(mesh, older, "outsider")
    mesh.apply(OLDER.replace("dataplane-mode: none", "dataplane-mode: ambient"))
    assert mesh.pod("shop/older")["enrolled"]
    try:
        assert all(wire.says("still here") for wire in inbound + outbound)
        for direction in ("--to-pod", "--from-pod"):
            flow = mesh.await_flow("pre-mesh", direction, "shop/older")
            assert flow["verdict"] == "FORWARDED"
        with strict(mesh):
            assert {wire.ended() for wire in inbound} == {"reset"}
            assert all(wire.says("still here") for wire in outbound)
            flow = mesh.await_flow("pre-mesh", "--to-pod", "shop/older", "--verdict", "DROPPED")
            assert "PeerAuthentication shop/mode" in flow["Summary"]
    finally:
        mesh.apply(OLDER)
        for wire in inbound + outbound:
            wire.close()


def test_a_pod_without_its_label_is_out_of_the_mesh_and_back_with_it(mesh: Mesh) -> None:
    older, far = mesh.puppet("older"), mesh.address("far")
    enrolled = OLDER.replace("dataplane-mode: none", "dataplane-mode: ambient")
    with strict(mesh):
        await_refusal(older, far)
        mesh.apply(enrolled)
        eventually(lambda: older.fate(far, ECHO_PORT) == "answered")
        wire = older.connect(far, ECHO_PORT)
        assert wire.says("hello")
        mesh.apply(OLDER)
        assert wire.ended() in ("end", "reset"), "the proxy lets go of a pod that leaves"
        assert older.fate(far, ECHO_PORT) in ("refused", "reset")
    eventually(lambda: older.fate(far, ECHO_PORT) == "answered")

    def agents_pods() -> list[str]:
        status = json.loads(mesh.weft("status", "--node", "a", "-o", "json"))
        return [one["name"] for node in status["nodes"] for one in node["agent"]["pods"]]

    assert "older" not in eventually(agents_pods)  # an agent that is busy may not answer at once


def test_a_pod_that_is_written_anew_under_another_account_is_reached_as_that(mesh: Mesh, client: Puppet) -> None:
    before, after = pod("mover", "b"), pod("mover", "b").replace("AccountName: mover", "AccountName: other")
    with mesh.having(before):
        mesh.puppet("mover").echo(ECHO_PORT)
        assert client.fate(mesh.address("mover"), ECHO_PORT) == "answered"
        mesh.dismiss("mover")
        mesh.apply(after)
        mesh.puppet("mover").echo(ECHO_PORT)
        eventually(lambda: client.fate(mesh.address("mover"), ECHO_PORT) == "answered")
        eventually(lambda: {"other"} == {"mover", "other"} & identities(mesh, "b"))
        mesh.dismiss("mover")


def identities(mesh: Mesh, node: str) -> set[str]:
    """The service accounts whose certificates a node's proxy has."""
    return {one["identity"].rpartition("/")[2] for one in mesh.config_dump(node)["certificates"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_only_a_nodes_own_processes_are_exempt_from_strict(mesh: Mesh, version: int) -> None:
    """Not the pods that share its network, and not another node's processes."""
    hosted, near, far = mesh.puppet("hosted"), mesh.address("near", version), mesh.address("far", version)
    assert {hosted.fate(address, ECHO_PORT) for address in (near, far)} == {"answered"}
    with strict(mesh):
        for puppet, address in ((hosted, near), (hosted, far), (mesh.host("b"), near)):
            await_refusal(puppet, address)
        stranger = ("--from-label", "reserved:world", "--to-ip", near)
        mesh.await_flow("PeerAuthentication shop/mode", *stranger, "--verdict", "DROPPED")
        with mesh.host("a").connect(near, ECHO_PORT) as wire:
            assert wire.says("ping")
            port = wire.names()["local"][1]
            mesh.await_flow("", "--from-label", "reserved:host", "--to-ip", near, "--from-port", str(port))
    eventually(lambda: hosted.fate(near, ECHO_PORT) == "answered")


@contextmanager
def detached(mesh: Mesh, link: Path) -> Iterator[None]:
    """A pod's inbound program is away, at once and whoever looks at its link; the agent stands still meanwhile."""
    agent = mesh.await_program("a", "agent")

    def stands() -> bool:
        """Each of its threads, whose calls into the kernel come to their end first."""
        return all(") T " in path.read_text() for path in Path(f"/proc/{agent}/task").glob("*/stat"))

    with frozen([agent]):
        eventually(stands)
        detach(link)
        link.unlink()
        yield


def test_who_came_while_the_inbound_program_was_detached_is_judged_when_it_is_back(mesh: Mesh, client: Puppet) -> None:
    """And no connection that the proxy carries is taken for one of those."""
    outsider = mesh.puppet("outsider")
    carried = open_wires(mesh, outsider, "near")
    proved = open_wires(mesh, client, "near")
    link = mesh.layout.places.node("a").bpffs / "links" / mesh.pod("shop/near")["uid"]
    with strict(mesh):
        assert {wire.ended() for wire in carried} == {"reset"}
        with detached(mesh, link):
            past = open_wires(mesh, outsider, "near")
        assert {wire.ended() for wire in past} == {"reset"}
        assert all(wire.says("still here") for wire in proved)
        flow = mesh.await_flow("pre-mesh", "--to-pod", "shop/near", "--verdict", "DROPPED")
        assert "PeerAuthentication shop/mode" in flow["Summary"]
    eventually(lambda: outsider.fate(mesh.address("near"), ECHO_PORT) == "answered")
    allowed = open_wires(mesh, outsider, "near")
    with detached(mesh, link):
        past = open_wires(mesh, outsider, "near")
    pods = {mesh.address(name, version) for name in ("client", "outsider") for version in VERSIONS}

    def found() -> int:
        """Those of pods: connections of the node's own processes, which no proxy carries either, may not have ended yet."""
        shown = mesh.flows("--to-pod", "shop/near", "--verdict", "FORWARDED")
        return sum("pre-mesh" in flow["Summary"] and flow["IP"]["source"] in pods for flow in shown)

    eventually(lambda: found() >= len(past))
    assert all(wire.says("still here") for wire in (*proved, *allowed, *past))
    assert found() == len(past), "the others are the proxy's"
