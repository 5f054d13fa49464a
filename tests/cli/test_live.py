"""The command against a real mesh: two nodes, real agents, proxies and pods, each step as a user types it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cli.patience import PROGRAM
from tests.frozen import frozen_group
from wire.cgroup import cgroup2_mount

pytestmark = pytest.mark.lab
_WAIT_S = 90.0


def _pod(name: str, node: str, command: list[str]) -> dict[str, object]:
    container: dict[str, object] = {"name": "main", "command": command}
    if name == "web":
        container |= {"ports": [{"containerPort": 8080}], "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
    spec = {"nodeName": node, "serviceAccountName": name, "containers": [container]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "live", "labels": {"app": name}},
        "spec": spec,
    }


def _topology() -> str:
    ambient = {"istio.io/dataplane-mode": "ambient"}
    serve = ["/usr/bin/python3", "-m", "http.server", "--directory", "/usr/share/common-licenses", "8080"]
    objects: list[dict[str, object]] = [
        *({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in ("one", "two")),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "live", "labels": ambient}},
        *(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "live"}}
            for name in ("web", "user")
        ),
        _pod("web", "two", serve),
        _pod("user", "one", ["/usr/bin/sleep", "infinity"]),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "live"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    ]
    return yaml.safe_dump_all(objects)


_DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-user, namespace: live}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/live/sa/user]}}]}]
"""


@dataclass(frozen=True)
class _Live:
    folder: Path
    environment: dict[str, str]

    def weft(self, *arguments: str, input: str | None = None) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", PROGRAM + "cli.main.main()", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, input=input, timeout=180)

    def nothing_is_wrong(self) -> bool:
        """Soon after a start: a pod's certificate comes a moment after the pod."""
        status = self.weft("status")
        assert (status.returncode, status.stderr) == (0, "")
        return status.stdout.endswith("nothing is wrong\n")

    def frozen(self) -> AbstractContextManager[None]:
        """The lab starts nothing for the length of a `with` block."""
        return frozen_group(cgroup2_mount() / self.environment["WEFT_PREFIX"] / ".lab")

    def first_proxy(self) -> int:
        """The pid of that of node one; 0 while it does not run."""
        nodes = json.loads(self.weft("lab", "status", "-o", "json").stdout)["nodes"]
        return int(next(node for node in nodes if node["name"] == "one")["programs"]["ztunnel"]["pid"])

    def fetch(self) -> "subprocess.CompletedProcess[str]":
        return self.weft("lab", "exec", "live/user", "--", "curl", "-s", "-m", "20", "http://web.live/")


def _eventually(holds: Callable[[], int]) -> int:
    deadline = time.monotonic() + _WAIT_S
    while not (held := holds()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.1)
    return held


@pytest.fixture(scope="module")
def live() -> Iterator[_Live]:
    prefix = f"wc{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="weft-live-") as folder:
        places = {"WEFT_PREFIX": prefix, "WEFT_RUN_DIR": f"/run/{prefix}", "WEFT_STATE_DIR": f"/var/lib/{prefix}"}
        made = _Live(Path(folder), os.environ | places)
        (made.folder / "topology.yaml").write_text(_topology())
        try:
            up = made.weft("lab", "up", str(made.folder / "topology.yaml"))
            assert up.returncode == 0, up.stderr
            assert "live/web" in up.stdout and "Pod live/web created" in up.stderr
            yield made
        finally:
            down = made.weft("lab", "down")
            assert down.returncode == 0, down.stderr
            for left in (Path(f"/run/{prefix}"), Path(f"/var/lib/{prefix}")):
                assert not left.exists()


def test_nothing_is_wrong_and_everything_is_listed(live: _Live) -> None:
    _eventually(live.nothing_is_wrong)
    assert json.loads(live.weft("status", "-o", "json").stdout)["ok"] is True
    workloads = json.loads(live.weft("workloads", "-o", "json").stdout)
    assert {one["object"]: one["protocol"] for one in workloads} == {"Pod live/user": "HBONE", "Pod live/web": "HBONE"}
    for node in ("one", "two"):
        assert {one["name"] for one in json.loads(live.weft("workloads", "--node", node, "-o", "json").stdout)} == {
            "user",
            "web",
        }
    (service,) = json.loads(live.weft("services", "-o", "json").stdout)
    assert service["ports"] == {"80": 8080}
    certificates = json.loads(live.weft("certificates", "-o", "json").stdout)
    names = {(one["node"], one["identity"], one["state"]) for one in certificates}
    identity = "spiffe://cluster.local/ns/live/sa/"
    assert names == {("one", f"{identity}user", "Available"), ("two", f"{identity}web", "Available")}


def test_a_request_is_seen_at_both_ends(live: _Live) -> None:
    assert "GPL-3" in live.fetch().stdout

    def seen() -> bool:
        lines = live.weft("observe", "--pod", "live/user", "--port", "8080", "--all", "-o", "json").stdout.splitlines()
        flows = [json.loads(line)["flow"] for line in lines]
        return {(flow["node_name"], flow["verdict"], flow["IP"].get("encrypted")) for flow in flows} >= {
            ("one", "FORWARDED", True),
            ("two", "FORWARDED", True),
        }

    _eventually(seen)
    identity = 'src.identity="spiffe://cluster.local/ns/live/sa/user"'
    _eventually(lambda: identity in live.weft("lab", "logs", "two/ztunnel").stdout)


def test_a_live_connection_is_listed_at_both_ends(live: _Live) -> None:
    command = [sys.executable, "-m", "cli.main", "lab", "exec", "live/user", "--"]
    command += ["bash", "-c", "exec 3<>/dev/tcp/web.live/80; echo open; read -r; exec 3>&-"]
    with subprocess.Popen(command, env=live.environment, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None and process.stdout is not None and process.stdout.readline() == "open\n"

        def directions() -> set[tuple[str, str]]:
            found = json.loads(live.weft("connections", "--pod", "live/user", "-o", "json").stdout)
            return {(one["node"], one["direction"]) for one in found}

        _eventually(lambda: directions() == {("one", "outbound"), ("two", "inbound")})
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(60) == 0
        _eventually(lambda: directions() == set())


def test_a_policy_comes_into_force_names_itself_and_goes(live: _Live) -> None:
    applied = live.weft("apply", "-f", "-", input=_DENY)
    assert (applied.returncode, applied.stdout) == (0, "AuthorizationPolicy live/no-user created\n")
    _eventually(lambda: live.fetch().returncode != 0)
    observe = ("observe", "--verdict", "dropped", "--to-pod", "live/web", "--last", "1")
    _eventually(lambda: "DENIED BY AuthorizationPolicy live/no-user" in live.weft(*observe).stdout)
    assert "AuthorizationPolicy live/no-user" in live.weft("policies").stdout
    assert live.weft("delete", "-f", "-", input=_DENY).stdout == "AuthorizationPolicy live/no-user deleted\n"
    _eventually(lambda: live.fetch().returncode == 0)


def test_invalid_manifests_change_nothing(live: _Live) -> None:
    bad = live.weft("apply", "-f", "-", input=_DENY.replace("DENY", "MAYBE"))
    assert bad.returncode == 1 and bad.stdout == ""
    assert "AuthorizationPolicy live/no-user: spec.action" in bad.stderr
    assert "no-user" not in live.weft("policies").stdout


def test_commands_in_pods_give_their_streams_and_exit_codes(live: _Live) -> None:
    echoed = live.weft("lab", "exec", "live/user", "--", "sh", "-c", "cat; exit 7", input="through")
    assert (echoed.returncode, echoed.stdout) == (7, "through")
    assert live.weft("lab", "exec", "live/nobody", "--", "true").returncode == 1


def test_up_again_changes_nothing(live: _Live) -> None:
    before = json.loads(live.weft("lab", "status", "-o", "json").stdout)["pods"]
    again = live.weft("lab", "up", str(live.folder / "topology.yaml"))
    assert again.returncode == 0 and "created" not in again.stderr
    after = json.loads(live.weft("lab", "status", "-o", "json").stdout)["pods"]
    pids = [[container["pid"] for pod in pods for container in pod["containers"]] for pods in (before, after)]
    assert pids[0] == pids[1]


def test_a_proxy_that_is_gone_is_what_status_says(live: _Live) -> None:
    pid = _eventually(live.first_proxy)
    with live.frozen():  # it would start another before anybody has looked
        os.kill(pid, signal.SIGKILL)
        _eventually(lambda: live.weft("status").returncode == 1)
    _eventually(lambda: live.weft("status").returncode == 0)
    _eventually(lambda: live.fetch().returncode == 0)


def test_logs_for_programs_and_a_node_that_is_not_there(live: _Live) -> None:
    for arguments in (["two/ztunnel"], ["--node", "two"]):
        shown = live.weft("lab", "logs", *arguments, "-n", "10000", "-o", "json").stdout  # a line for each request above
        lines = [json.loads(line) for line in shown.splitlines()]
        assert any(line["origin"] == "two/ztunnel" and "serving pod live/web" in line["line"] for line in lines)
    missing = live.weft("lab", "status", "--node", "tow")
    assert missing.returncode == 1 and missing.stderr == "weft: node tow: not in this lab; known here: one, two\n"


def test_a_lab_without_a_mesh_as_asked_is_nothing_wrong(live: _Live) -> None:
    topology = str(live.folder / "topology.yaml")
    assert live.weft("lab", "up", "--no-mesh", topology).returncode == 0
    status = live.weft("status")
    assert (status.returncode, status.stderr) == (0, "") and "without a mesh" in status.stdout
    answer = json.loads(live.weft("status", "-o", "json").stdout)
    assert answer == {"ok": True, "mesh": False, "control": None, "nodes": [], "findings": []}
    assert live.weft("lab", "up", topology).returncode == 0
    _eventually(live.nothing_is_wrong)
    _eventually(lambda: live.fetch().returncode == 0)
