"""A proxy of another make, or of another version: what it says in another form costs that part, and nothing else."""

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit

_UID = "Kubernetes//Pod/amb2/ann"
_WAYPOINT = {"destination": "amb2/wp.amb2.svc.cluster.local", "hboneMtlsPort": 15008}
_LEAF = {"serialNumber": "320", "validFrom": "2026-11-21T00:01:18Z", "expirationTime": "2026-11-22T00:03:18Z"}
_OPEN = {"src": "10.244.1.7:4711", "originalDst": None, "actualDst": "10.244.0.8:8080", "protocol": "HBONE"}
_GOLDEN: dict[str, Any] = {
    "workloads": [
        {
            "uid": _UID, "name": "ann", "namespace": "amb2", "workloadIps": ["10.244.1.7"], "node": "n1", "protocol": "HBONE",
            "serviceAccount": "default", "status": "Healthy", "waypoint": _WAYPOINT, "capacity": 1,
        },
        {"uid": "Kubernetes//Pod/amb2/bob", "name": "bob", "namespace": "amb2", "workloadIps": ["10.244.1.8"]},
    ],
    "services": [
        {
            "name": "s3", "namespace": "amb2", "hostname": "s3.amb2.svc.cluster.local", "vips": ["/10.96.74.127"],
            "ports": {"80": 8080}, "endpoints": {_UID: {"port": {"80": 8080}, "status": "Healthy", "workloadUid": _UID}},
            "waypoint": _WAYPOINT,
        }
    ],
    "policies": [{"action": "Deny", "dryRun": False, "name": "p", "namespace": "amb", "rules": [[[{}]]], "scope": "Global"}],
    "certificates": [
        {
            "identity": "spiffe://cluster.local/ns/amb/sa/default", "state": "Available", "rootCerts": [],
            "certChain": [_LEAF],
        }
    ],
    "workloadState": {
        _UID: {
            "state": "Up", "info": {"name": "ann", "namespace": "amb2", "serviceAccount": "default"},
            "connections": {"inbound": [_OPEN], "outbound": [_OPEN | {"originalDst": "10.96.74.127:80"}]},
        }
    },
    "controlPlane": {"address": "https://control:15012", "connected": True, "error": ""},
    "version": {"version": "1.27"},
}  # fmt: skip
_CONNECTIONS: list[Any] = [
    _OPEN
    | {
        "direction": direction, "podUid": _UID, "sourceWorkload": _UID, "destinationWorkload": "Kubernetes//Pod/amb2/bob",
        "destinationService": "amb2/s3.amb2.svc.cluster.local", "openedUnixNs": 1, "bytesSent": 2, "bytesReceived": 3,
    }
    for direction in ("inbound", "outbound")
]  # fmt: skip
_ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1 << 70) | st.floats() | st.text(max_size=5) | st.just("9" * 5000),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def _mutated(draw: st.DrawFn, golden: Any) -> Any:
    """The document with one to three of its values, at any depth, in another's place."""
    document = copy.deepcopy(golden)
    for _ in range(draw(st.integers(1, 3))):
        inside = document
        while True:
            key = draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
            if isinstance(inside[key], dict | list) and inside[key] and draw(st.booleans()):
                inside = inside[key]
                continue
            inside[key] = draw(_ODD)
            break
    return document


@pytest.mark.parametrize("command", ["status", "workloads", "services", "policies", "certificates", "connections", "version"])
@given(dump=_mutated(_GOLDEN), form=st.sampled_from(["table", "json"]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_dump_is_an_internal_error(world: "World", command: str, dump: Any, form: str) -> None:
    world.proxy("node-a", dump)
    chosen = [] if command == "version" else ["--node", "node-a"]
    result = world.weft(command, *chosen, *(["-o", "json"] if form == "json" else []))
    world.withdraw("node-a")
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)


@given(found=_mutated(_CONNECTIONS))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_list_of_connections_is_an_internal_error(world: "World", found: Any) -> None:
    world.proxy("node-a", {}, connections=found)
    result = world.weft("connections")
    world.withdraw("node-a")
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)


def test_what_is_odd_is_named_and_the_rest_is_shown(world: "World") -> None:
    odd = copy.deepcopy(_GOLDEN)
    odd["workloads"][1:1] = ["a pod", None]
    odd["services"][0]["ports"] = {"http": 80}
    world.proxy("node-a", odd)
    result = world.weft("workloads", "--node", "node-a")
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["NAME", "ann", "bob"]
    left = "/config_dump.workloads[1] is not an object, /config_dump.workloads[2] is not an object"
    more = "/config_dump.services[0].ports is not ports with their targets"
    assert result.stderr == f"weft: proxy of node-a: left out what has another form than expected: {left}, {more}\n"
    assert "s3.amb2" in world.weft("services", "--node", "node-a", "-o", "json").stdout


def test_what_is_sound_stays_as_it_came(world: "World") -> None:
    world.proxy("node-a", _GOLDEN)
    for kind in ("workloads", "services", "policies"):
        result = world.weft(kind, "--node", "node-a", "-o", "json")
        assert (json.loads(result.stdout), result.stderr) == (_GOLDEN[kind], "")
