"""The runtime's requests: what the real plugin sends is understood, and nothing else gets near a path or a system call."""

import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.plugin import parse_add, parse_delete
from agent.pod import PodRequest
from mesh.exclusions import INBOUND_PORTS, OUTBOUND_PORTS, Exclusions

pytestmark = pytest.mark.unit

ADD: dict[str, Any] = {
    "Netns": "/var/run/netns/cni-1",
    "PodName": "pp",
    "PodNamespace": "amb",
    "IPs": [{"Interface": 2, "Address": {"IP": "10.244.1.17", "Mask": "////AA=="}, "Gateway": "10.244.1.1"}],
    "UID": "6b732c90-457b-4b44-a08f-fb8fbc76572e",
}


def test_reads_what_the_plugin_sends() -> None:
    assert parse_add(json.dumps(ADD).encode()) == PodRequest(
        uid="6b732c90-457b-4b44-a08f-fb8fbc76572e",
        namespace="amb",
        name="pp",
        service_account="default",
        netns="/var/run/netns/cni-1",
        addresses=(ip_address("10.244.1.17"),),
    )


def test_reads_the_further_fields() -> None:
    more = ADD | {"ServiceAccount": "web", "Labels": {"app": "web", "a/b": ""}, "CgroupPath": "/sys/fs/cgroup/x", "New": [1]}
    request = parse_add(json.dumps(more).encode())
    assert (request.service_account, request.cgroup) == ("web", "/sys/fs/cgroup/x")
    assert request.labels == (("a/b", ""), ("app", "web"))


def test_annotations_become_exclusions_and_a_bad_one_is_trouble_and_no_refusal() -> None:
    annotations = {OUTBOUND_PORTS: "5432, 3306", INBOUND_PORTS: "9100,x", "somebody.io/else": {"not": "ours"}}
    request = parse_add(json.dumps(ADD | {"Annotations": annotations}).encode())
    assert request.exclusions == Exclusions(outbound_ports=(3306, 5432))
    (trouble,) = request.troubles
    assert trouble.startswith(f"annotation {INBOUND_PORTS}: 'x' is not a port: write ")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"UID": None}, "UID is missing"),
        ({"UID": "../x"}, "UID"),
        ({"UID": 5}, "UID"),
        ({"PodName": "a/b"}, "PodName"),
        ({"Netns": "netns"}, "Netns"),
        ({"Netns": ""}, "Netns"),
        ({"Netns": "/proc/1/../x"}, "Netns"),
        ({"CgroupPath": "/a\0b"}, "CgroupPath"),
        ({"IPs": [{"Address": {"IP": "10.0.0.300"}}]}, r"IPs\[0\]"),
        ({"IPs": [{}]}, r"IPs\[0\]"),
        ({"IPs": "10.0.0.1"}, "IPs"),
        ({"Labels": {"app": 5}}, "Labels"),
        ({"Labels": {"a b": "x"}}, "Labels"),
        ({"Annotations": []}, "Annotations"),
        ({"Annotations": {INBOUND_PORTS: 9100}}, "Annotations: .*excludeInboundPorts: 9100 is not text"),
    ],
)
def test_refusals_name_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        parse_add(json.dumps(ADD | change).encode())


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_refuses_what_is_no_object(body: bytes) -> None:
    for parse in (parse_add, parse_delete):
        with pytest.raises(ValueError, match=r"body|UID"):
            parse(body)


def test_delete_takes_the_uid() -> None:
    assert parse_delete(b'{"UID": "u-1"}') == "u-1"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*ADD, "Labels", "Annotations", "CgroupPath", "ServiceAccount"]), JSON)
def test_any_value_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    try:
        request = parse_add(json.dumps(ADD | {field: value}).encode())
        assert request.netns.startswith("/") and "/" not in request.uid
    except ValueError as error:
        assert str(error)
