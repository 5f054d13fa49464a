"""`weft workloads|services|policies|certificates` against real servers."""

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit

_WORKLOAD: dict[str, Any] = {
    "uid": "Kubernetes//Pod/demo/web-0", "name": "web-0", "namespace": "demo", "workloadIps": ["10.1.1.2", "fd01::2"],
    "node": "node-a", "protocol": "HBONE", "serviceAccount": "web", "status": "Healthy",
}  # fmt: skip
_SERVICE: dict[str, Any] = {
    "name": "web", "namespace": "demo", "hostname": "web.demo.svc.cluster.local",
    "vips": ["/10.96.0.10", "/fd00:96::10", "far/10.96.0.10", "far/fd00:96::10"],
    "ports": {"443": 0, "80": 8080},
    "endpoints": {"Kubernetes//Pod/demo/web-0": {"status": "Healthy"}, "Kubernetes//Pod/demo/web-1": {"status": "Unhealthy"}},
}  # fmt: skip
_POLICY: dict[str, Any] = {"name": "web", "namespace": "demo", "action": "Deny", "scope": "WorkloadSelector", "rules": [[[{}]]]}


def _known(world: "World") -> None:
    world.control().described = {
        "workloads": [_WORKLOAD | {"object": "Pod demo/web-0"}],
        "services": [_SERVICE | {"object": "Service demo/web"}],
        "policies": [_POLICY | {"object": "AuthorizationPolicy demo/web"}],
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "workloads",
            [
                "NAMESPACE   NAME    ADDRESSES          NODE     PROTOCOL   SERVICE ACCOUNT   STATUS    WAYPOINT   OBJECT",
                "demo        web-0   10.1.1.2,fd01::2   node-a   HBONE   web   Healthy   None   Pod demo/web-0",
            ],
        ),
        (
            "services",
            [
                "NAMESPACE   SERVICE   VIPS                      PORTS         ENDPOINTS   WAYPOINT   OBJECT",
                "demo        web       10.96.0.10,fd00:96::10   80:8080,443   1/2         None       Service demo/web",
            ],
        ),
        (
            "policies",
            [
                "NAMESPACE   POLICY   ACTION   SCOPE              RULES   OBJECT",
                "demo        web      Deny     WorkloadSelector   1       AuthorizationPolicy demo/web",
            ],
        ),
    ],
)
def test_tables(world: "World", kind: str, expected: list[str]) -> None:
    _known(world)
    result = world.weft(kind)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split() for line in result.stdout.splitlines()] == [line.split() for line in expected]


def test_json_is_complete_and_namespaces_select(world: "World") -> None:
    _known(world)
    assert json.loads(world.weft("workloads", "-o", "json").stdout) == [_WORKLOAD | {"object": "Pod demo/web-0"}]
    result = world.weft("workloads", "-o", "json", "-n", "other")
    assert json.loads(result.stdout) == []
    assert result.stderr == "weft: no workloads in namespace other; namespaces that have some: demo\n"


def test_a_nodes_own_view(world: "World") -> None:
    _known(world)
    world.proxy("node-a", {"workloads": [_WORKLOAD | {"status": "Unhealthy"}]})
    assert "Unhealthy" in world.weft("workloads", "--node", "node-a").stdout


def test_without_control_the_proxies_are_asked_and_each_resource_is_shown_once(world: "World") -> None:
    world.proxy("node-a", {"workloads": [_WORKLOAD]})
    world.proxy("node-b", {"workloads": {"0": _WORKLOAD, "1": _WORKLOAD | {"uid": "Kubernetes//Pod/demo/x", "name": "x"}}})
    world.node_folder("node-c")
    result = world.weft("workloads")
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["NAME", "web-0", "x"]
    assert "this is what the proxies know" in result.stderr and "proxy of node-c" in result.stderr


@pytest.mark.parametrize("command", ["workloads", "services", "policies"])
def test_where_no_mesh_runs_one_line_names_the_socket_the_reason_and_the_mend(world: "World", command: str) -> None:
    result = world.weft(command)
    socket = world.places.control_socket
    said = f"weft: control plane: not on this machine: nobody serves {socket}; start a mesh with: weft lab up\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", said)
    world.node_folder("node-a")  # of a mesh whose control plane runs elsewhere
    said = f"weft: proxy of node-a: nobody serves {world.places.node('node-a').admin_socket}; look at the log of weft-ztunnel\n"
    assert world.weft(command).stderr == said
    world.places.control_state.mkdir(parents=True)
    said = f"weft: control plane: {socket} does not exist: nobody serves it; look at the log of weft-control\n"
    assert world.weft(command).stderr == said


def test_a_node_without_a_proxy_is_an_error_in_one_line(world: "World") -> None:
    world.proxy("node-a", {}, ready=(200, b"ready"))
    world.node_folder("node-b")
    result = world.weft("certificates")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("weft: proxy of node-b: nobody serves ")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b"<html>", "/config_dump: no JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[" * 200_000, "/config_dump: no JSON: maximum recursion depth exceeded"),
        (b"[]", "/config_dump: list, not dict"),
        (b"null", "/config_dump: NoneType, not dict"),
    ],
)
@pytest.mark.parametrize("command", ["status", "workloads", "certificates", "connections"])
def test_a_proxy_that_answers_something_else_does_not_hide_the_others(
    world: "World", page: bytes, words: str, command: str
) -> None:
    leaf = {"serialNumber": "1", "validFrom": "never", "expirationTime": "2026-11-22T00:03:18Z"}
    known = {"identity": "spiffe://t/ns/n/sa/well", "state": "Available", "certChain": [leaf]}
    world.proxy("node-a", {"workloads": [{"namespace": "n", "name": "well"}], "certificates": [known], "workloadState": {}})
    world.proxy("node-b", page)
    result = world.weft(command, *(["--node", "node-a", "--node", "node-b"] if command == "workloads" else []))
    assert f"proxy of node-b: {words}" in result.stdout + result.stderr and "internal error" not in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "well" in result.stdout or command in ("status", "connections")


def test_certificates(world: "World") -> None:
    leaf = {"serialNumber": "255", "validFrom": "2026-11-21T00:01:18Z", "expirationTime": "2026-11-22T00:03:18Z"}
    identity = "spiffe://cluster.local/ns/demo/sa/web"
    world.proxy(
        "node-a", {"certificates": [{"identity": identity, "state": "Available", "certChain": [leaf | {"pem": "LS0t"}]}]}
    )
    result = world.weft("certificates")
    assert result.exit_code == 0
    cells = [cell.strip() for cell in result.stdout.splitlines()[1].split("   ")]
    assert (cells[0], cells[1], cells[2]) == ("node-a", identity, "Available")
    assert cells[-2:] == ["2026-11-22 00:03:18Z", "ff"]
    (one,) = json.loads(world.weft("certificates", "-o", "json").stdout)
    assert (one["node"], one["not_after"]) == ("node-a", "2026-11-22T00:03:18+00:00")
