"""Flows say what happened in words that name the user's own objects."""

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from google.protobuf import json_format

from mesh.flows import ConnectionEvent, FlowEndpoint, connection_flow, identity_number, policy_object
from mesh.identity import Identity
from mesh.proto import flow_pb2
from mesh.workload import Workload

pytestmark = pytest.mark.unit

WEB = Workload(
    uid="Kubernetes//Pod/demo/web-0",
    name="web-0",
    namespace="demo",
    service_account="web",
    canonical_name="web",
    workload_name="web",
    workload_type="deployment",
    policy_sources={"istio-system/istio_converted_static_strict": "PeerAuthentication demo/default"},
)
CURL = replace(
    WEB, uid="Kubernetes//Pod/demo/curl", name="curl", service_account="curl", canonical_name="curl", workload_name="curl"
)
STRICT = "istio-system/istio_converted_static_strict"


def event(**changes: Any) -> ConnectionEvent:
    opened = ConnectionEvent(
        time_ns=1_700_000_000_123_456_789,
        node="a",
        phase="opened",
        direction="inbound",
        source=FlowEndpoint.of(CURL, ip_address("10.1.0.2"), 40000),
        destination=FlowEndpoint.of(WEB, ip_address("10.1.1.2"), 80),
        service="demo/web.demo.svc.cluster.local",
        encrypted=True,
    )
    return replace(opened, **changes)


def test_allowed_connection_is_forwarded_and_names_both_ends() -> None:
    flow = connection_flow(event(policy="demo/web", policy_object="AuthorizationPolicy demo/web"))
    assert flow.verdict == flow_pb2.FORWARDED and flow.traffic_direction == flow_pb2.INGRESS
    assert (flow.time.seconds, flow.time.nanos) == (1_700_000_000, 123_456_789)
    assert flow.IP.encrypted and flow.auth_type == flow_pb2.SPIRE and flow.HasField("is_reply") and not flow.is_reply.value
    assert (flow.source.pod_name, flow.destination.pod_name) == ("curl", "web-0")
    assert flow.destination.identity == identity_number(Identity("cluster.local", "demo", "web"))
    assert "k8s:app=web" in flow.destination.labels and flow.destination.workloads[0].kind == "Deployment"
    assert (flow.destination_service.name, flow.destination_service.namespace) == ("web", "demo")
    assert [(p.kind, p.namespace, p.name) for p in flow.ingress_allowed_by] == [("AuthorizationPolicy", "demo", "web")]
    assert flow.Summary == "opened, mutual TLS, allowed by AuthorizationPolicy demo/web"


def test_strict_denial_names_the_users_object_and_the_converted_policy() -> None:
    flow = connection_flow(event(phase="denied", encrypted=False, policy=STRICT, policy_object=policy_object(STRICT, WEB)))
    assert (flow.verdict, flow.drop_reason_desc) == (flow_pb2.DROPPED, flow_pb2.UNENCRYPTED_TRAFFIC)
    assert flow.event_type.type == 5 and flow.drop_reason == 195
    assert flow.Summary == f"denied to plain text by PeerAuthentication demo/default (policy {STRICT})"
    assert [(p.kind, p.namespace, p.name) for p in flow.ingress_denied_by] == [("PeerAuthentication", "demo", "default")]


@pytest.mark.parametrize(
    ("changes", "reason", "summary"),
    [
        (
            {"policy": "demo/no-intruder", "policy_object": "AuthorizationPolicy demo/no-intruder"},
            flow_pb2.POLICY_DENY,
            "denied by AuthorizationPolicy demo/no-intruder",
        ),
        (
            {"reason": "allow policies exist, but none allowed"},
            flow_pb2.POLICY_DENIED,
            "denied by default: allow policies exist, but none allowed",
        ),
        (
            {"phase": "unauthenticated", "reason": "no client certificate"},
            flow_pb2.AUTH_REQUIRED,
            "refused, no acceptable identity: no client certificate",
        ),
    ],
)
def test_refusals_say_why(changes: dict[str, Any], reason: int, summary: str) -> None:
    flow = connection_flow(event(**{"phase": "denied", **changes}))
    assert (flow.verdict, flow.drop_reason_desc, flow.Summary) == (flow_pb2.DROPPED, reason, summary)


def test_failure_is_an_error_with_its_reason() -> None:
    flow = connection_flow(event(phase="failed", direction="outbound", reason="tls handshake error: certificate has expired"))
    assert flow.verdict == flow_pb2.ERROR and flow.traffic_direction == flow_pb2.EGRESS
    assert flow.Summary == "failed: tls handshake error: certificate has expired"
    assert flow.drop_reason_desc == flow_pb2.DROP_REASON_UNKNOWN and not flow.egress_denied_by


def test_kernel_refusal_is_a_drop_with_its_own_reason() -> None:
    flow = connection_flow(event(phase="refused", encrypted=False, reason="no proxy listens", drop_reason=178))
    assert (flow.verdict, flow.drop_reason_desc, flow.event_type.type) == (flow_pb2.DROPPED, flow_pb2.SOCKET_LOOKUP_FAILED, 1)
    assert (flow.event_type.sub_type, flow.Summary) == (178, "refused: no proxy listens")


def test_close_reports_bytes_and_time() -> None:
    flow = connection_flow(event(phase="closed", bytes_sent=10, bytes_received=2000, duration_ns=15_000_000))
    assert flow.Summary == "closed, mutual TLS: 10 bytes sent, 2000 received, 15 ms" and flow.l4.TCP.flags.FIN


def test_host_and_world_carry_reserved_identities() -> None:
    host = connection_flow(event(encrypted=False, source=FlowEndpoint.host(ip_address("10.1.1.1"), 5)))
    world = connection_flow(event(encrypted=False, source=FlowEndpoint.of(None, ip_address("2001:db8::1"), 5)))
    assert (host.source.identity, list(host.source.labels)) == (1, ["reserved:host"])
    assert (world.source.identity, list(world.source.labels)) == (2, ["reserved:world"])


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("", ""),
        ("demo/web", "AuthorizationPolicy demo/web"),
        ("demo/converted_peer_authentication_ports", "PeerAuthentication demo/ports"),
        (STRICT, "a STRICT PeerAuthentication"),
    ],
)
def test_object_behind_a_key_without_a_record(key: str, expected: str) -> None:
    assert policy_object(key, None) == expected


def test_identity_numbers_are_stable_and_above_the_reserved() -> None:
    numbers = {identity_number(Identity("cluster.local", "n", f"s{i}")) for i in range(500)}
    assert len(numbers) == 500 and min(numbers) >= 256 and max(numbers) < 2**32
    assert identity_number(Identity("cluster.local", "demo", "web")) == 766_422_246


def test_uuid_follows_from_the_event() -> None:
    assert connection_flow(event()).uuid == connection_flow(event()).uuid != connection_flow(event(time_ns=1)).uuid


def test_json_form_has_hubbles_names() -> None:
    document = json.loads(json_format.MessageToJson(connection_flow(event()), preserving_proto_field_name=True))
    assert {"IP", "l4", "Type", "Summary", "is_reply", "source", "destination", "verdict"} <= document.keys()


def test_a_default_denial_names_the_objects_that_could_have_allowed() -> None:
    flow = connection_flow(event(phase="denied", policy="", policy_object="", asked_objects=("AuthorizationPolicy shop/web",)))
    assert flow.Summary == "denied by default: not allowed by AuthorizationPolicy shop/web"
    assert flow.drop_reason_desc == flow_pb2.POLICY_DENIED and not flow.ingress_denied_by
