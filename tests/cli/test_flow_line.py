"""Lines for flows of every kind, compared with recorded output of the hubble command where the two agree."""

import json
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from cli.drop_reasons import drop_text
from cli.flow_line import ansi_paint, columns, compact
from mesh.proto.observer_pb2 import GetFlowsResponse

pytestmark = pytest.mark.unit

_FRONT = {"identity": 20001, "namespace": "shop", "pod_name": "front-6c9d7-abcde"}
_CART = {"identity": 20002, "namespace": "shop", "pod_name": "cart-0"}
_WORLD = {"identity": 2}


def _response(**flow: Any) -> GetFlowsResponse:
    base = {
        "verdict": "FORWARDED",
        "IP": {"source": "10.0.1.5", "destination": "10.0.1.9"},
        "source": _FRONT,
        "destination": _CART,
    }
    whole = {"flow": base | flow, "node_name": "node-a", "time": "2026-03-05T08:00:37.012345678Z"}
    return ParseDict(json.loads(json.dumps(whole)), GetFlowsResponse())


def _tcp(source: int, destination: int) -> dict[str, Any]:
    return {"TCP": {"source_port": source, "destination_port": destination}}


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (
            {"l4": _tcp(41000, 8080), "event_type": {"type": 4}, "is_reply": False, "Summary": "TCP Flags: SYN"},
            "shop/front-6c9d7-abcde:41000 (ID:20001) -> shop/cart-0:8080 (ID:20002) to-endpoint FORWARDED (TCP Flags: SYN)",
        ),
        (
            {"l4": _tcp(8080, 41000), "event_type": {"type": 4}, "is_reply": True, "source": _CART, "destination": _FRONT},
            "shop/front-6c9d7-abcde:41000 (ID:20001) <- shop/cart-0:8080 (ID:20002) to-endpoint FORWARDED ()",
        ),
        (
            {"event_type": {"type": 4, "sub_type": 11}, "auth_type": "SPIRE", "Summary": "ACK"},
            "shop/front-6c9d7-abcde (ID:20001) <> shop/cart-0 (ID:20002) to-network FORWARDED (ACK; Auth: SPIRE)",
        ),
        (
            {"event_type": {"type": 1, "sub_type": 133}, "verdict": "DROPPED", "Summary": "TCP Flags: SYN"},
            "shop/front-6c9d7-abcde (ID:20001) <> shop/cart-0 (ID:20002) Policy denied DROPPED (TCP Flags: SYN)",
        ),
        (
            {"destination": _WORLD, "destination_names": ["api.example.com", "cdn.example.com"], "l4": _tcp(5, 443),
             "event_type": {"type": 4, "sub_type": 3}},
            "shop/front-6c9d7-abcde:5 (ID:20001) <> api.example.com,cdn.example.com:443 (world) to-stack FORWARDED ()",
        ),
        (
            {"source": {"identity": 1}, "IP": {"source": "fd00::7", "destination": "2001:db8::1"}, "l4": _tcp(3868, 3869),
             "destination": {"identity": 10}, "event_type": {"type": 4, "sub_type": 2}, "is_reply": False},
            "[fd00::7]:3868 (host) -> [2001:db8::1]:3869 (world-ipv6) to-host FORWARDED ()",
        ),
        (
            {"source": {}, "destination": {}, "verdict": 0},
            "10.0.1.5 (unknown) <> 10.0.1.9 (unknown) UNKNOWN VERDICT_UNKNOWN ()",
        ),
        (
            {"l7": {"type": "RESPONSE", "dns": {}}, "event_type": {"type": 129}},
            "shop/front-6c9d7-abcde (ID:20001) <> shop/cart-0 (ID:20002) dns-response proxy FORWARDED ()",
        ),
        (
            {"event_type": {"type": 7}, "sock_xlate_point": 2, "verdict": "TRANSLATED", "Summary": "TCP"},
            "shop/front-6c9d7-abcde (ID:20001) <> shop/cart-0 (ID:20002) post-xlate-fwd TRANSLATED (TCP)",
        ),
    ],
)  # fmt: skip
def test_compact_as_the_hubble_command_prints_it(flow: dict[str, Any], expected: str) -> None:
    assert compact(_response(**flow)) == f"Mar  5 08:00:37.012: {expected}"
    assert compact(_response(**flow), node=True).startswith("Mar  5 08:00:37.012 [node-a]: ")


def test_a_refusal_names_the_policy_that_refused() -> None:
    flow = {
        "event_type": {"type": 5},
        "verdict": "DROPPED",
        "policy_match_type": 2,
        "traffic_direction": "INGRESS",
        "ingress_denied_by": [{"name": "web", "namespace": "demo", "kind": "AuthorizationPolicy"}],
        "drop_reason_desc": "POLICY_DENY",
    }
    cells = columns(_response(**flow))
    assert cells["TYPE"] == "policy-verdict:L3-L4 INGRESS"
    assert cells["VERDICT"] == "DENIED BY AuthorizationPolicy demo/web"


def test_a_pod_is_named_with_its_own_namespace_whatever_the_service_was() -> None:
    gateway, service = {"namespace": "istio-system", "pod_name": "far"}, {"name": "cart", "namespace": "shop"}
    flow = _response(destination=gateway, destination_service=service)
    assert columns(flow)["DESTINATION"] == "istio-system/far"
    flow.flow.destination.Clear()
    assert columns(flow)["DESTINATION"] == "shop/cart"


def test_a_refusal_by_default_says_so() -> None:
    flow = {
        "event_type": {"type": 5},
        "verdict": "DROPPED",
        "traffic_direction": "INGRESS",
        "drop_reason_desc": "POLICY_DENIED",
    }
    assert columns(_response(**flow))["VERDICT"] == "DENIED BY default"
    unauthenticated = flow | {"drop_reason_desc": "AUTH_REQUIRED"}
    assert columns(_response(**unauthenticated))["VERDICT"] == "DENIED"


def test_allowed_flows_do_not_list_policies_unless_the_event_is_a_verdict() -> None:
    allowed = {"ingress_allowed_by": [{"name": "web", "kind": "AuthorizationPolicy"}], "traffic_direction": "INGRESS"}
    assert columns(_response(event_type={"type": 4}, **allowed))["VERDICT"] == "FORWARDED"
    assert columns(_response(event_type={"type": 5}, **allowed))["VERDICT"] == "ALLOWED BY AuthorizationPolicy web"


def test_what_a_newer_node_says_is_shown_by_its_number() -> None:
    response = _response(event_type={"type": 5}, policy_match_type=99)
    response.flow.traffic_direction, response.flow.verdict, response.flow.auth_type = 77, 88, 99  # type: ignore[assignment]
    assert compact(response).endswith(" policy-verdict:unknown 77 88 (; Auth: 99)")


def test_control_characters_cannot_fake_a_line() -> None:
    evil = {"namespace": "shop", "pod_name": "evil\x1b[31mpod\r\nMar  5 all is well"}
    line = compact(_response(source=evil, Summary="a\nb\tc\x07"))
    assert line.isprintable()
    assert "evil\\x1b[31mpod\\r\\nMar  5 all is well" in line and "(a\\nb\\tc\\x07)" in line


def test_colours_are_hubbles() -> None:
    line = compact(_response(l4=_tcp(41000, 8080), event_type={"type": 4}, verdict="DROPPED"), ansi_paint)
    assert "\x1b[36mshop/front-6c9d7-abcde:\x1b[0m\x1b[33m41000\x1b[0m \x1b[35m(ID:20001)\x1b[0m" in line
    assert "\x1b[31mDROPPED\x1b[0m" in line


def test_lost_events_are_shown() -> None:
    lost = {"lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": 17, "cpu": 3}, "time": "2026-03-05T08:20:00.5Z"}
    response = ParseDict(lost, GetFlowsResponse())
    assert compact(response) == "Mar  5 08:20:00.500 EVENTS LOST: HUBBLE_RING_BUFFER CPU(3) 17"
    assert columns(response)["TYPE"] == "EVENTS LOST"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (133, "Policy denied"),
        (181, "Policy denied by denylist"),
        (189, "Authentication required"),
        (195, "Traffic is unencrypted"),
        (158, "Service backend not found"),
        (150, "Unknown L3 target address"),
        (169, "FIB lookup failed"),
        (250, "250, 0"),
    ],
)
def test_drop_reasons_in_words(number: int, words: str) -> None:
    assert drop_text(number) == words
