"""Filters select what Hubble's own node selects: recorded selections of the original over 29 made-up flows."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from mesh.flow_filter import compile_filter, select
from mesh.label_selector import by_key, parse_label, parse_selector
from mesh.proto import flow_pb2, observer_pb2

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).parent / "hubble"
RESPONSES = [
    json_format.Parse(line, observer_pb2.GetFlowsResponse()) for line in (VECTORS / "flows.jsonl").read_text().splitlines()
]
FLOWS = [response.flow for response in RESPONSES if response.HasField("flow")]
CASES = [json.loads(line) for line in (VECTORS / "filters.jsonl").read_text().splitlines()]
DEVIATIONS = {
    # Addresses compare as addresses: another way to write the same one selects the same flows.
    "--ip fd00:0:0::7": ["f18", "f19", "f20"],
    "--ip FD00::7": ["f18", "f19", "f20"],
}


def filters(documents: list[dict[str, Any]]) -> list[flow_pb2.FlowFilter]:
    return [json_format.ParseDict(document, flow_pb2.FlowFilter()) for document in documents]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["flags"])
def test_selects_what_the_original_selects(case: dict[str, Any]) -> None:
    allow, deny = filters(case["allow"]), filters(case["deny"])
    if case.get("refused") or "--cel-expression" in case["flags"]:
        with pytest.raises(ValueError, match=r"filter|pattern"):
            select(allow, deny)
        return
    selected = select(allow, deny)
    assert [flow.uuid for flow in FLOWS if selected(flow)] == DEVIATIONS.get(case["flags"], case["selects"])


def test_a_field_of_a_newer_client_is_refused_not_ignored() -> None:
    newer = flow_pb2.FlowFilter.FromString(b"\xf8\x07\x01")  # field 127, varint
    with pytest.raises(ValueError, match="does not know"):
        compile_filter(newer)


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ("app in (web, api),tier!=db", ["k8s:app=web"], True),
        ("app notin (web)", ["k8s:app=web"], False),
        ("app notin (web)", [], True),
        ("k8s:app=web", ["reserved:app=web"], False),
        ("weight>3", ["k8s:weight=4"], True),
        ("weight<3", ["k8s:weight=4"], False),
        ("weight>3", ["k8s:weight=²"], False),
        ("reserved:world", ["reserved:world"], True),
    ],
)
def test_label_selectors(selector: str, labels: list[str], expected: bool) -> None:
    assert parse_selector(selector)(by_key(labels)) is expected


def test_what_would_take_long_is_refused() -> None:
    with pytest.raises(ValueError, match="selector of 2000000 characters: at most 1024"):
        parse_selector("a," * 1_000_000)
    each = flow_pb2.FlowFilter(source_label=[",".join(["a=b"] * 101)] * 10)
    with pytest.raises(ValueError, match="filters of 1010 values: at most 1000"):
        select([each], [])


@pytest.mark.parametrize("selector", ["app in web", "=x", "a=b=c=", "in (x)", "weight>heavy", ",", "a b"])
def test_malformed_selectors_are_refused(selector: str) -> None:
    with pytest.raises(ValueError, match="label selector"):
        parse_selector(selector)


@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=3))
def test_any_text_is_a_selector_or_refused(text: str, labels: list[str]) -> None:
    try:
        assert parse_selector(text)(by_key(labels)) in (True, False)
    except ValueError as error:
        assert "label selector" in str(error)


@given(
    st.text(max_size=60), st.sampled_from(["source_ip", "source_pod", "node_name", "source_fqdn", "source_port", "http_path"])
)
def test_any_text_is_a_filter_or_refused(text: str, field: str) -> None:
    wanted = flow_pb2.FlowFilter()
    getattr(wanted, field).append(text)
    try:
        assert [compile_filter(wanted)(flow) for flow in FLOWS]
    except ValueError as error:
        assert str(error)


def test_labels_without_source_or_value() -> None:
    assert parse_label("zone=z1") == ("", "zone", "z1") and parse_label("reserved:host") == ("reserved", "host", "")
