"""Connections older than their pod's enrolment: kept and shown, until a policy that denies plain text closes them."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from mesh.exclusions import INBOUND_PORTS
from mesh.proto import flow_pb2
from mesh.workload import TunnelProtocol, Workload
from tests.agent.node import Node, read_line, wait_until
from tests.agent.scripted_control import ADDRESS, ScriptedControl
from tests.strict import STRICT

pytestmark = pytest.mark.kernel


def workload(name: str, *addresses: str, **changes: Any) -> Workload:
    return Workload(
        uid=f"Kubernetes//Pod/demo/pod-{name}",
        name=f"pod-{name}",
        namespace="demo",
        addresses=tuple(map(ip_address, addresses)),
        protocol=TunnelProtocol.HBONE,
        service_account=name,
        workload_name=f"pod-{name}",
        **changes,
    )


@contextmanager
def conversation(node: Node, server: str, client: str, address: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A connection between two pods, or the node and a pod: the client prints `open`, and what the server's end came to."""
    serve = (
        "import signal,socket\ns=socket.create_server(('::',8080),family=socket.AF_INET6,dualstack_ipv6=True)\nheld=[]\n"
        "def leave(*_):\n s.close(); print('left',flush=True); signal.pause()\nsignal.signal(signal.SIGUSR1,leave)\n"
        "print('ready',flush=True)\nwhile True:\n c,_=s.accept(); c.sendall(b'x'); held.append(c)"
    )
    dial = (
        "import socket,sys\ns=socket.create_connection((sys.argv[1],8080),60)\ns.recv(1); s.settimeout(None)\n"
        "print('open',flush=True)\n"
        "try: print('closed' if not s.recv(1) else 'data',flush=True)\nexcept OSError as e: print(type(e).__name__,flush=True)"
    )
    serving = node.start(server, f"pods/{server}", sys.executable, "-c", serve, stdout=subprocess.PIPE)
    assert read_line(serving) == "ready"
    where = "host" if client == "node" else f"pods/{client}"
    dialling = node.start(client, where, sys.executable, "-c", dial, address, stdout=subprocess.PIPE)
    assert read_line(dialling) == "open"
    try:
        yield dialling
    finally:
        for process in (dialling, serving):
            process.kill()
            process.wait()


@pytest.fixture
def control(node: Node, authority: Any) -> Iterator[ScriptedControl]:
    made = ScriptedControl(node, authority)
    yield made
    made.stop()


def pre_mesh(node: Node) -> list[flow_pb2.Flow]:
    return [flow for flow in node.flows() if "pre-mesh" in flow.Summary]


def test_kept_while_plain_text_is_allowed_closed_once_it_is_not(node: Node, control: ScriptedControl) -> None:
    web = workload("a", "10.214.0.2", "fd14::2")
    control.put(web, workload("b", "10.214.0.3", "fd14::3"))
    agent = node.start_agent("--control", ADDRESS)
    node.start_proxy()
    with conversation(node, "a", "b", "10.214.0.2") as old, conversation_from_host(node) as probe:
        node.enrol("a")
        wait_until(lambda: len(pre_mesh(node)) >= 2, "the old connections to be shown")
        kept = next(flow for flow in pre_mesh(node) if flow.source.pod_name == "pod-b")
        assert (kept.verdict, kept.traffic_direction) == (flow_pb2.FORWARDED, flow_pb2.INGRESS)
        assert kept.destination.pod_name == "pod-a" and kept.l4.TCP.destination_port == 8080
        assert any("reserved:host" in flow.source.labels for flow in pre_mesh(node))
        # A restart of the agent still knows which connections are older.
        node.stop_agent(agent)
        node.start_agent("--control", ADDRESS)
        strict = workload(
            "a",
            "10.214.0.2",
            "fd14::2",
            authorization_policies=(STRICT.key,),
            policy_sources={STRICT.key: "PeerAuthentication demo/default"},
        )
        control.put(strict, STRICT)
        assert read_line(old) in ("ConnectionResetError", "closed")
        assert probe.poll() is None
        denied = wait_until(lambda: [flow for flow in pre_mesh(node) if flow.verdict == flow_pb2.DROPPED], "the denial")
        assert len(denied) == 1 and denied[0].drop_reason_desc == flow_pb2.UNENCRYPTED_TRAFFIC
        assert f"denied to plain text by PeerAuthentication demo/default (policy {STRICT.key})" in denied[0].Summary
        assert node.status().control.resources == 3 and node.status().control.connected


def test_one_at_an_excluded_port_is_kept_whatever_policies_say(node: Node, control: ScriptedControl) -> None:
    strict = workload("a", "10.214.0.2", "fd14::2", authorization_policies=(STRICT.key,))
    control.put(strict, STRICT, workload("b", "10.214.0.3", "fd14::3"))
    node.start_agent("--control", ADDRESS)
    node.start_proxy()
    wait_until(lambda: node.status().control.resources == 3, "the mesh to be known")
    with conversation(node, "a", "b", "10.214.0.2") as old:
        node.enrol("a", Annotations={INBOUND_PORTS: "8080"})
        kept = wait_until(lambda: pre_mesh(node), "the old connection to be shown")
        assert [flow.verdict for flow in kept] == [flow_pb2.FORWARDED] and old.poll() is None


def test_a_server_that_listens_no_more_is_still_who_was_called(node: Node, control: ScriptedControl) -> None:
    """By who listens when policies change, its connections would be its own calls: kept, whatever they say."""
    control.put(workload("a", "10.214.0.2", "fd14::2"), workload("b", "10.214.0.3", "fd14::3"))
    node.start_agent("--control", ADDRESS)
    node.start_proxy()
    with conversation(node, "a", "b", "10.214.0.2") as old:
        node.enrol("a")
        wait_until(lambda: pre_mesh(node), "the old connection to be shown")
        server = node.processes[-2]
        server.send_signal(signal.SIGUSR1)
        assert read_line(server) == "left"
        control.put(workload("a", "10.214.0.2", "fd14::2", authorization_policies=(STRICT.key,)), STRICT)
        assert read_line(old) in ("ConnectionResetError", "closed")


def test_a_namesake_in_another_cluster_decides_nothing(node: Node, control: ScriptedControl) -> None:
    uid = "Another//Pod/demo/pod-a"
    namesake = workload("a", "10.9.0.2", node="n1", cluster_id="Another", authorization_policies=(STRICT.key,))
    control.put(replace(namesake, uid=uid), STRICT, workload("a", "10.214.0.2", node="n1"), workload("b", "10.214.0.3"))
    node.start_agent("--control", ADDRESS)
    node.start_proxy()
    wait_until(lambda: node.status().control.resources == 4, "the mesh to be known")
    with conversation(node, "a", "b", "10.214.0.2") as old:
        node.enrol("a")
        kept = wait_until(lambda: pre_mesh(node), "the old connection to be shown")
        assert [flow.verdict for flow in kept] == [flow_pb2.FORWARDED] and old.poll() is None


@contextmanager
def conversation_from_host(node: Node) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the node itself, connected to pod a's server that another conversation started."""
    dial = (
        "import socket\ns=socket.create_connection(('10.214.0.2',8080),60)\ns.recv(1); s.settimeout(None)\n"
        "print('open',flush=True); s.recv(1)"
    )
    process = node.start("node", "host", sys.executable, "-c", dial, stdout=subprocess.PIPE)
    assert read_line(process) == "open"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_an_agent_that_starts_without_control_remembers_the_mesh(node: Node, control: ScriptedControl) -> None:
    strict = workload(
        "a",
        "10.214.0.2",
        "fd14::2",
        authorization_policies=(STRICT.key,),
        policy_sources={STRICT.key: "PeerAuthentication demo/default"},
    )
    control.put(strict, STRICT, workload("b", "10.214.0.3", "fd14::3"))
    agent = node.start_agent("--control", ADDRESS)
    wait_until(lambda: len(control.acknowledged) == 2, "the mesh to be known and written down")
    node.stop_agent(agent)
    control.stop()
    node.start_agent("--control", ADDRESS)
    node.start_proxy()
    with conversation(node, "a", "b", "10.214.0.2") as old:
        node.enrol("a")
        assert read_line(old) in ("ConnectionResetError", "closed")
        denied = wait_until(lambda: [flow for flow in pre_mesh(node) if flow.verdict == flow_pb2.DROPPED], "the denial")
        assert denied[0].source.pod_name == "pod-b", "the other end's name was forgotten"
        assert not node.status().control.connected and node.status().control.resources == 3
