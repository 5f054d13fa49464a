"""Istio's ztunnel driven by weft's agent and control plane: told of pods and policies, also after these two restarted."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.cgroup import processes
from tests.lab.mesh import pod
from tests.lab.world import eventually
from tests.peer.cross import CROSSINGS, ECHO_PORT, CrossMesh, authentication

pytestmark = [pytest.mark.peer, pytest.mark.timeout(90)]

LATE = pod("late", "b")
HBONE = 15008
OUTSIDE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: listed, namespace: shop}
spec:
  hosts: [listed.example]
  ports: [{number: 81, name: tcp, targetPort: PORT}]
  resolution: STATIC
  endpoints: [{address: ADDRESS, weight: 3, locality: r/z/s}]
  exportTo: ["."]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: selected, namespace: shop, annotations: {networking.istio.io/traffic-distribution: PreferClose}}
spec:
  hosts: [selected.example]
  ports: [{number: 81, name: tcp, protocol: TCP}]
  resolution: STATIC
  workloadSelector: {labels: {tier: outside}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: machine, namespace: shop, labels: {tier: outside}}
spec: {address: ADDRESS, ports: {tcp: PORT}}
---
{apiVersion: v1, kind: Service, metadata: {name: bare, namespace: shop}, spec: {ports: [{name: tcp, port: 81}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bare-1, namespace: shop, labels: {kubernetes.io/service-name: bare}}
addressType: IPv4
endpoints: [{addresses: [ADDRESS]}]
ports: [{name: tcp, port: PORT}]
---
"""


def served(cross: CrossMesh) -> dict[str, str]:
    """The pods that Istio's ztunnel serves, by name: their state."""
    states = cross.config_dump("b")["workloadState"].values()
    return {one["info"]["name"]: one["state"] for one in states}


def test_it_knows_every_pod_and_has_its_certificate_from_our_ca(cross: CrossMesh) -> None:
    dump = cross.config_dump("b")
    assert served(cross) == {"client-b": "Up", "server-b": "Up"}
    certificates = {one["identity"]: one["state"] for one in dump["certificates"]}
    names = ("client-b", "server-b")
    assert certificates == {f"spiffe://cluster.local/ns/shop/sa/{name}": "Available" for name in names}
    ours = {one["name"]: one for one in cross.config_dump("a")["workloads"]}
    theirs = {one["name"]: one for one in dump["workloads"]}
    assert theirs.keys() == ours.keys()
    for name, workload in theirs.items():
        shown = {key: ours[name].get(key) for key in workload}
        assert shown == workload, f"both tell the same of {name}"


def test_what_is_outside_is_known_to_both_alike_and_reached(cross: CrossMesh) -> None:
    text = OUTSIDE.replace("PORT", str(ECHO_PORT)).replace("ADDRESS", cross.address("outsider-a"))
    hosts = ("listed.example", "selected.example", "bare.shop.svc.cluster.local")

    def told(of: str) -> dict[str, Any]:
        dump = cross.config_dump(of)
        found = {one["hostname"]: one for one in dump["services"] if one["hostname"] in hosts}
        found |= {one["uid"]: one for one in dump["workloads"] if "//" not in one["uid"]}
        assert len(found) == 6, found.keys()
        return found

    with cross.having(text):
        known = {of: eventually(lambda of=of: told(of)) for of in ("a", "b")}
        for name, theirs in known["b"].items():
            assert {key: known["a"][name].get(key) for key in theirs} == theirs, f"both tell the same of {name}"
        for of in ("a", "b"):
            for host in hosts:
                vip = next(one.rpartition("/")[2] for one in known[of][host]["vips"] if ":" not in one)
                eventually(lambda of=of, vip=vip: cross.puppet(f"client-{of}").fate(vip, 81) == "answered")


def test_a_new_pod_is_served_and_a_deleted_one_is_not(cross: CrossMesh) -> None:
    with cross.having(LATE):
        assert served(cross)["late"] == "Up"
        cross.puppet("late").echo(ECHO_PORT)
        with cross.having(authentication("STRICT")):
            assert cross.puppet("client-a").fate(cross.address("late"), ECHO_PORT) == "answered"
            assert cross.puppet("late").fate(cross.address("server-a"), ECHO_PORT) == "answered"
        cross.dismiss("late")
    eventually(lambda: "late" not in served(cross))


def test_a_pod_whose_port_is_taken_is_reported_and_served_when_it_is_free(cross: CrossMesh) -> None:
    """Istio's ztunnel says no (a nack with its reason), goes on with the others, and is asked again."""
    outside = pod("late", "b", ", istio.io/dataplane-mode: none")
    with cross.having(outside):
        listener = cross.puppet("late").listen(HBONE)
        cross.apply(LATE, wait=False)
        log = cross.log_path("b/agent")
        eventually(lambda: "did not take pod shop/late: failure to start proxy" in log.read_text())
        assert not cross.pod("shop/late")["enrolled"]
        assert cross.puppet("client-a").fate(cross.address("server-b"), ECHO_PORT) == "answered"
        with listener:
            pass
        eventually(lambda: cross.pod("shop/late")["enrolled"] and served(cross).get("late") == "Up", 20)
        cross.await_ready()
        cross.dismiss("late")


@contextmanager
def undisturbed(cross: CrossMesh) -> Iterator[Callable[[], None]]:
    """New and lasting connections both ways while the block runs, none of which may fail; calling the value waits for more."""
    loads = {
        (client, server): cross.puppet(client).do("steady", cross.address(server), ECHO_PORT, "steady")
        for client, server in CROSSINGS
    }

    def progress(path: tuple[str, str]) -> dict[str, int]:
        now: dict[str, int] = cross.puppet(path[0]).do("progress", loads[path])
        assert not now["failed"], now
        return now

    def more() -> None:
        before = {path: progress(path) for path in loads}
        for path, then in before.items():
            eventually(lambda path=path, then=then: all(progress(path)[key] > then[key] + 20 for key in ("fresh", "kept")))

    try:
        more()
        yield more
        more()
    finally:
        done = [cross.puppet(path[0]).do("halt", load) for path, load in loads.items()]
    assert not any(one["failed"] for one in done), done


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_restart_of_the_agent_goes_unnoticed(cross: CrossMesh, how: signal.Signals) -> None:
    """Istio's ztunnel connects again, takes the snapshot for what it has already, and hears of what is new."""
    with undisturbed(cross) as more:
        agent = cross.program("b", "agent")
        os.kill(agent, how)
        eventually(lambda: cross.program("b", "agent") not in (0, agent), 20)
        cross.await_ready()
        more()
    with cross.having(LATE):
        eventually(lambda: served(cross).get("late") == "Up", 20)


def test_a_restart_of_control_goes_unnoticed_and_what_is_new_arrives(cross: CrossMesh) -> None:
    with undisturbed(cross) as more:
        (control,) = processes(cross.layout.control_cgroup)
        os.kill(control, signal.SIGKILL)
        more()
        eventually(lambda: processes(cross.layout.control_cgroup) not in ([], [control]))
        cross.await_ready(60)
    with cross.having(authentication("STRICT")):
        eventually(lambda: cross.puppet("outsider-a").fate(cross.address("server-b"), ECHO_PORT) in ("reset", "end"))
        assert cross.puppet("client-a").fate(cross.address("server-b"), ECHO_PORT) == "answered"
    eventually(lambda: cross.puppet("outsider-a").fate(cross.address("server-b"), ECHO_PORT) == "answered")
