"""What the kernel reports becomes a flow with names: refusals say why, the node's own processes are shown as host."""

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.agent_events import AgentEvents
from agent.kernel_flows import REFUSALS, KernelFlows
from agent.mesh_view import MeshView
from agent.pod import Pod, PodRequest
from agent.pod_index import PodIndex
from bpf.events import Event
from bpf.layout import Reason
from mesh.flows import connection_flow
from mesh.proto import flow_pb2
from mesh.workload import NetworkAddress, Service, Workload
from wire.mesh_cache import MeshCache

pytestmark = pytest.mark.unit

POD_ADDRESS, OTHER, VIP = ip_address("10.0.0.2"), ip_address("10.0.1.9"), ip_address("10.96.0.7")
POD = Pod(PodRequest("u", "demo", "web-0", "web", "/x", (POD_ADDRESS,), (("app", "web"),)), (1, 2), 33, "boot")
REFUSED = Event(5, Reason.NO_LISTENER, 33, 7, POD_ADDRESS, 40000, OTHER, 443)


@pytest.fixture
def flows(tmp_path: Path) -> KernelFlows:
    view = MeshView("", AgentEvents("node-a"), MeshCache(tmp_path / "mesh.sqlite"))
    other = Workload(uid="K//Pod/far/db-0", name="db-0", namespace="far", addresses=(OTHER,), service_account="db")
    service = Service(name="db", namespace="far", hostname="db.far.svc.cluster.local", vips=(NetworkAddress("", VIP),))
    view.inventory.apply([other, service], [])
    return KernelFlows("node-a", view)


def flow_of(flows: KernelFlows, seen: Event) -> flow_pb2.Flow:
    event = flows.event(seen, PodIndex([POD]))
    assert event is not None
    return connection_flow(event)


def test_every_refusal_has_words_and_a_drop_reason(flows: KernelFlows) -> None:
    refusals = [reason for reason in Reason if replace(REFUSED, reason=reason).refused]
    assert set(refusals) == set(REFUSALS)
    for reason in refusals:
        flow = flow_of(flows, replace(REFUSED, reason=reason))
        assert flow.verdict == flow_pb2.DROPPED and flow.drop_reason_desc and flow.Summary.startswith("refused: ")


def test_names_both_ends_of_what_a_pod_dialled(flows: KernelFlows) -> None:
    flow = flow_of(flows, REFUSED)
    assert flow.traffic_direction == flow_pb2.EGRESS
    assert (flow.source.pod_name, list(flow.source.labels)) == (
        "web-0",
        ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=demo"],
    )
    assert (flow.destination.namespace, flow.destination.pod_name) == ("far", "db-0")
    assert (flow.l4.TCP.source_port, flow.l4.TCP.destination_port) == (40000, 443)


def test_names_the_service_that_was_dialled(flows: KernelFlows) -> None:
    flow = flow_of(flows, replace(REFUSED, source=None, source_port=0, destination=VIP))
    assert (flow.destination_service.name, flow.destination_service.namespace) == ("db", "far")
    assert flow.IP.source == str(POD_ADDRESS)  # not bound yet: the pod's own


def test_a_refused_caller_from_outside_is_inbound(flows: KernelFlows) -> None:
    seen = replace(REFUSED, reason=Reason.NO_LISTENER, source=OTHER, destination=POD_ADDRESS, destination_port=80)
    flow = flow_of(flows, seen)
    assert (flow.traffic_direction, flow.destination.pod_name, flow.source.pod_name) == (flow_pb2.INGRESS, "web-0", "db-0")


def test_a_process_of_the_node_is_shown_as_host(flows: KernelFlows) -> None:
    seen = Event(5, Reason.HOST, 1, 7, ip_address("10.0.0.1"), 50000, POD_ADDRESS, 8080)
    flow = flow_of(flows, seen)
    assert flow.verdict == flow_pb2.FORWARDED and flow.traffic_direction == flow_pb2.INGRESS
    assert list(flow.source.labels) == ["reserved:host"] and flow.destination.pod_name == "web-0"


@pytest.mark.parametrize("inbound", [True, False])
def test_what_is_excluded_is_shown_as_plain_text_by_wish(flows: KernelFlows, inbound: bool) -> None:
    ends = (OTHER, 40000, POD_ADDRESS, 9100) if inbound else (POD_ADDRESS, 40000, OTHER, 5432)
    flow = flow_of(flows, Event(5, Reason.EXCLUDED, 33, 0, *ends))
    assert flow.verdict == flow_pb2.FORWARDED and not flow.IP.encrypted
    assert flow.traffic_direction == (flow_pb2.INGRESS if inbound else flow_pb2.EGRESS)
    assert flow.Summary.startswith("opened, plain text (excluded from capture")
    assert {flow.source.pod_name, flow.destination.pod_name} == {"web-0", "db-0"}


def test_a_report_about_nothing_known_is_no_flow(flows: KernelFlows) -> None:
    assert flows.event(replace(REFUSED, destination=None), PodIndex([])) is None
