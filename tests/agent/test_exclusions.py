"""Exclusions from capture, from a pod's annotations and the agent's settings to the kernel, across restarts of the agent."""

import pytest

from mesh.exclusions import ALL_INBOUND, INBOUND_PORTS, OUTBOUND_PORTS, OUTBOUND_RANGES
from mesh.proto import flow_pb2
from tests.agent.node import Node, wait_until
from tests.agent.test_node_agent import OUTSIDE, listening, until_says

pytestmark = pytest.mark.kernel

B = "10.214.0.3"


def excluded_flows(node: Node) -> list[flow_pb2.Flow]:
    return [flow for flow in node.flows() if "excluded from capture" in flow.Summary]


def test_annotations_exclude_across_a_restart_and_a_bad_one_is_the_pods_trouble(node: Node) -> None:
    agent = node.start_agent()
    until_says(node.start_proxy(), "snapshot_sent")
    annotations = {OUTBOUND_PORTS: "8080", OUTBOUND_RANGES: "10.0.0.0/8,oops", INBOUND_PORTS: "9100"}
    node.enrol("a", Annotations=annotations)
    with listening(node, "b", 8080), listening(node, "a", 9100):
        assert node.dial("a", B, 8080) == "hello"
        assert node.dial("a", B, 8081) == f"{B}:8081", "a bad list excludes nothing"
        assert node.dial("b", "10.214.0.2", 9100) == "hello"
        assert node.dial("b", "10.214.0.2", 9101) == "inbound 9101"
        flows = wait_until(lambda: found if len(found := excluded_flows(node)) > 1 else None, "both flows")
        assert [flow.traffic_direction for flow in flows[:2]] == [flow_pb2.EGRESS, flow_pb2.INGRESS]
        assert all(flow.Summary.startswith("opened, plain text (") for flow in flows)
        assert flows[0].source.pod_name == "pod-a" and flows[1].destination.pod_name == "pod-a"
        node.stop_agent(agent)
        node.start_agent()
        assert node.dial("a", B, 8080) == "hello"
        wait_until(lambda: [pod.state for pod in node.status().pods] == ["enrolled"], "the proxy to be back")
        status = node.status()
        assert list(status.pods[0].excluded) == ["outbound port 8080", "inbound port 9100"]
        (trouble,) = [one for one in status.problems if "annotation" in one]
        assert trouble.startswith(f"pod demo/pod-a: annotation {OUTBOUND_RANGES}: 'oops' is not a range of addresses: write")
        node.enrol("a", Annotations={ALL_INBOUND: "true"})
        assert node.dial("a", B, 8080) == f"{B}:8080"
        assert not [one for one in node.status().problems if "annotation" in one]


def test_the_nodes_own_lists_hold_for_every_pod_from_the_next_start_of_the_agent_on(node: Node) -> None:
    agent = node.start_agent("--exclude-outbound-ports", "8080", "--exclude-inbound-ports", "9100")
    until_says(node.start_proxy(), "snapshot_sent")
    node.enrol("a")
    with listening(node, "b", 8080), listening(node, "a", 9100):
        assert node.dial("a", B, 8080) == node.dial("b", "10.214.0.2", 9100) == "hello"
        assert list(node.status().excluded) == ["outbound port 8080", "inbound port 9100"]
        node.stop_agent(agent)
        assert node.dial("a", B, 8080) == "hello"
        node.start_agent("--exclude-outbound-ranges", f"{OUTSIDE}/32")
        wait_until(lambda: node.dial("a", B, 8080) == f"{B}:8080", "the port to be captured again")
        assert node.dial("b", "10.214.0.2", 9100) == "inbound 9100"
        assert node.dial("a", OUTSIDE, 80) != f"{OUTSIDE}:80", "there is nobody outside"
