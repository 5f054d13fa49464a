"""`weft connections` against real servers."""

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from cli.connections import size

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit

_OUTBOUND: dict[str, Any] = {
    "worker": 0, "number": 7, "podUid": "u1", "direction": "outbound", "src": "10.1.1.2:41000", "originalDst": "10.96.0.10:80",
    "actualDst": "10.1.2.2:80", "protocol": "HBONE", "hboneDst": "10.1.2.2:80", "sourceWorkload": "Kubernetes//Pod/demo/client",
    "sourceIdentity": "spiffe://cluster.local/ns/demo/sa/client", "destinationWorkload": "Kubernetes//Pod/demo/web",
    "destinationIdentity": "spiffe://cluster.local/ns/demo/sa/web", "destinationService": "demo/web.demo.svc.cluster.local",
    "openedUnixNs": 0, "bytesSent": 17, "bytesReceived": 1_400_000, "policy": "",
}  # fmt: skip
_INBOUND = _OUTBOUND | {
    "direction": "inbound",
    "src": "10.9.9.9:5",
    "sourceWorkload": "",
    "policy": "demo/web",
    "protocol": "TCP",
}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("   ") if cell.strip()]


def test_both_ends_with_peer_policy_sizes_and_age(world: "World") -> None:
    opened = int((time.time() - 125) * 1e9)
    world.proxy("node-a", {}, connections=[_OUTBOUND | {"openedUnixNs": opened}])
    world.proxy("node-b", {}, connections=[_INBOUND | {"openedUnixNs": opened + 1}])
    result = world.weft("connections")
    assert (result.exit_code, result.stderr) == (0, "")
    heading, out, into = map(_cells, result.stdout.splitlines())
    assert heading == [
        "NODE",
        "DIRECTION",
        "SOURCE",
        "DESTINATION",
        "SERVICE",
        "PROTOCOL",
        "PEER",
        "POLICY",
        "SENT",
        "RECEIVED",
        "AGE",
    ]
    web, client = "spiffe://cluster.local/ns/demo/sa/web", "spiffe://cluster.local/ns/demo/sa/client"
    service = "web.demo.svc.cluster.local"
    assert out[:5] == ["node-a", "outbound", "demo/client (10.1.1.2:41000)", "demo/web:80", service]
    assert out[5:10] == ["HBONE", web, "-", "17 B", "1.4 MB"] and out[10].startswith("2m")
    assert into[:5] == ["node-b", "inbound", "10.9.9.9:5", "demo/web:80", service]
    assert into[5:8] == ["TCP", client, "demo/web"]


def test_a_hop_is_named_as_one(world: "World") -> None:
    through = {"hop": "waypoint", "actualDst": "10.1.2.9:15008", "destinationWorkload": "Kubernetes//Pod/demo/wp-1"}
    world.proxy("node-a", {}, connections=[_OUTBOUND | through])
    cells = _cells(world.weft("connections").stdout.splitlines()[1])
    assert cells[3:5] == ["waypoint demo/wp-1:15008", "web.demo.svc.cluster.local"]


def test_pods_and_directions_select(world: "World") -> None:
    world.proxy("node-a", {}, connections=[_OUTBOUND, _INBOUND])

    def numbers(*arguments: str) -> list[str]:
        return [one["direction"] for one in json.loads(world.weft("connections", "-o", "json", *arguments).stdout)]

    assert numbers("--pod", "demo/cl") == ["outbound"]
    assert numbers("--pod", "demo/w") == ["outbound", "inbound"]
    assert numbers("--direction", "inbound") == ["inbound"]
    assert numbers("--pod", "other/") == []
    hint = "weft: no open connection is of a pod other/...; weft workloads lists pods, weft observe what has ended\n"
    assert world.weft("connections", "--pod", "other/").stderr == hint
    result = world.weft("connections", "--pod", "web")
    assert result.exit_code == 2 and "'web' is no pod: write NAMESPACE/POD, or NAMESPACE/ for all of one" in result.stderr


def test_a_foreign_proxy_without_the_endpoint_is_read_from_its_config_dump(world: "World") -> None:
    connection = {"src": "10.0.0.1:1", "originalDst": "10.0.0.2:80", "actualDst": "10.0.0.2:80", "protocol": "HBONE"}
    info = {"name": "web", "namespace": "demo", "serviceAccount": "web"}
    state = {"u1": {"connections": {"inbound": [connection], "outbound": [connection]}, "info": info}, "u2": {"info": None}}
    world.proxy("node-a", {"workloadState": state})
    lines = world.weft("connections", "--pod", "demo/web").stdout.splitlines()
    assert _cells(lines[1])[:4] == ["node-a", "inbound", "10.0.0.1:1", "demo/web:80"]
    assert _cells(lines[2])[:4] == ["node-a", "outbound", "demo/web (10.0.0.1:1)", "10.0.0.2:80"]


def test_a_node_that_is_down_is_told_and_the_others_are_listed(world: "World") -> None:
    world.proxy("node-a", {}, connections=[_OUTBOUND])
    world.node_folder("node-b")
    result = world.weft("connections")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2 and "proxy of node-b: nobody serves" in result.stderr


@pytest.mark.parametrize("output", ["table", "json"])
def test_what_silent_workers_carry_is_said_to_be_missing(world: "World", output: str) -> None:
    world.proxy("node-a", {}, headers={"silent-workers": "2"}, connections=[_OUTBOUND])
    result = world.weft("connections", "-o", output)
    assert result.exit_code == 1 and result.stdout.count("10.1.1.2:41000") == 1
    said = "2 of its data workers did not answer: what they carry is missing; see why with: weft status"
    assert result.stderr == f"weft: proxy of node-a: {said}\n"


def test_sizes() -> None:
    assert [size(count) for count in (0, 999, 1000, 1_500_000, 2 * 10**9, 3 * 10**15)] == [
        "0 B",
        "999 B",
        "1.0 KB",
        "1.5 MB",
        "2.0 GB",
        "3000.0 TB",
    ]
