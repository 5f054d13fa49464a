"""A lab without a mesh: three nodes, twelve pods and some odd ones, reached and run as Kubernetes would."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import netns
from lab.client import LabError
from lab.layout import SOURCE_ROOT
from tests.lab.test_three_nodes import SERVERS, UNTIL_ALL_ANSWERED
from tests.lab.world import World

pytestmark = pytest.mark.lab

ODD_ONES = """
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: team}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: team}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: several, namespace: team, labels: {tier: odd}}
spec:
  nodeName: east
  securityContext: {runAsUser: 12345, runAsGroup: 23456}
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
    - {name: first, command: [sh, -c, "echo first >/data/order"], volumeMounts: [{name: shared, mountPath: /data}]}
    - {name: second, command: [sh, -c, "echo second >>/data/order"], volumeMounts: [{name: shared, mountPath: /data}]}
  containers:
    - name: one
      command: [sh, -c, "sleep infinity"]
      workingDir: /var
      env:
        - {name: GREETING, value: "I run on $(WHERE)"}
        - {name: WHERE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
      volumeMounts: [{name: shared, mountPath: /data}]
      readinessProbe: {exec: {command: [test, -e, /data/order]}, periodSeconds: 1}
    - name: two
      command: [sleep, infinity]
      securityContext: {runAsUser: 0}
      volumeMounts: [{name: shared, mountPath: /elsewhere, readOnly: true}]
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: team}
spec:
  nodeName: south
  hostNetwork: true
  containers: [{name: c, command: [sleep, infinity]}]
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    files = {"three.yaml": (SOURCE_ROOT / "lab/examples/three-nodes.yaml").read_text(), "odd.yaml": ODD_ONES}
    with World(files, mesh=False) as made:
        yield made


def fetch(world: World, pod: str, url: str, *options: str) -> str:
    return world.output(pod, "curl", "-sS", "-m", "20", *options, url)


def address(world: World, pod: str, version: int) -> str:
    text = str(world.pod(pod)["addresses"][0 if version == 4 else 1])
    return f"[{text}]" if version == 6 else text


def test_pods_spread_over_three_nodes(world: World) -> None:
    nodes = [pod["node"] for pod in world.status()["pods"]]
    assert sorted(nodes.count(name) for name in ("north", "east", "south")) == [4, 5, 5]


@pytest.mark.parametrize("version", [4, 6])
def test_every_pod_reaches_every_server_by_its_address(world: World, version: int) -> None:
    """Same node and across nodes; the server sees the client's own address."""
    for server in (f"team/web-{number}" for number in range(4)):
        for client in ("team/client-0", "team/client-1", "team/client-2"):
            url = f"http://{address(world, server, version)}:8080/"
            assert fetch(world, client, url) == server.removeprefix("team/") + "\n"
            seen = address(world, client, version).strip("[]")
            newest = "".join(world.logs(server, lines=5))  # some may be its probe's
            assert seen in newest, f"{server} did not see {client}"


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_service_spreads_connections_over_its_pods(world: World, family: str) -> None:
    for client in ("team/client-0", "team/client-1", "team/client-2"):
        assert set(world.output(client, "sh", "-c", UNTIL_ALL_ANSWERED, family).split()) == SERVERS


@pytest.mark.parametrize("name", ["web", "web.team", "web.team.svc", "web.team.svc.cluster.local"])
def test_services_have_all_their_names(world: World, name: str) -> None:
    assert fetch(world, "team/client-3", f"http://{name}/").startswith("web-")


def test_a_pod_reaches_itself_through_its_service(world: World) -> None:
    names = world.output("team/web-0", "sh", "-c", "for i in $(seq 60); do curl -sS -m 5 http://web/; done").split()
    assert "web-0" in names and len(names) == 60


def test_node_processes_and_host_network_pods_use_services_too(world: World) -> None:
    vip = world.output("team/host", "getent", "ahostsv4", "web").split()[0]
    assert fetch(world, "team/host", f"http://{vip}/").startswith("web-")
    with world.on_node("north", ["curl", "-sS", "-m", "20", f"http://{vip}/"], stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=60)[0].startswith("web-")
    assert (
        world.pod("team/host")["addresses"]
        == next(one for one in world.status()["nodes"] if one["name"] == "south")["addresses"]
    )


def syns_sent_again(world: World) -> int:
    """By the pod since it began."""
    lines = world.output("team/client-0", "cat", "/proc/net/netstat").splitlines()
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(values[names.index("TCPSynRetrans")])


@pytest.mark.parametrize("url", ["http://nobody/", "http://web:81/", "http://10.200.0.1/"])
def test_what_leads_nowhere_fails_at_once(world: World, url: str) -> None:
    def answered() -> bool:
        before = syns_sent_again(world)
        done = world.run("team/client-0", "curl", "-sS", "-m", "20", url)
        assert done.returncode == 7, done
        return syns_sent_again(world) == before

    assert any(answered() for _ in range(3)), "before a SYN is sent again, which takes a second"


def test_an_unknown_name_fails_at_once(world: World) -> None:
    """Else the resolver waits for a second, four times: with each domain that it appends, and without."""

    def took_s() -> float:
        done = world.run("team/client-0", "curl", "-sS", "-m", "20", "-w", "%{time_total}", "http://nosuch.example/")
        assert done.returncode == 6, done
        return float(done.stdout)

    assert min(took_s() for _ in range(3)) < 4


def test_a_headless_service_names_its_pods(world: World) -> None:
    found = world.output("team/client-0", "getent", "ahostsv4", "each.team.svc.cluster.local")
    assert {line.split()[0] for line in found.splitlines()} == {address(world, f"team/web-{number}", 4) for number in range(4)}
    assert world.output("team/client-0", "getent", "ahostsv4", "web-2.each").split()[0] == address(world, "team/web-2", 4)


def test_init_containers_run_in_order_and_share_volumes(world: World) -> None:
    assert world.run("team/several", "cat", "/data/order", container="one").stdout == "first\nsecond\n"
    assert world.run("team/several", "cat", "/elsewhere/order", container="two").stdout == "first\nsecond\n"
    refused = world.run("team/several", "touch", "/elsewhere/new", container="two")
    assert refused.returncode != 0 and "Read-only file system" in refused.stderr


def test_user_environment_and_folder_are_as_asked(world: World) -> None:
    shown = world.run("team/several", "sh", "-c", 'id -u; id -g; whoami; pwd; echo "$GREETING"; hostname', container="one")
    assert shown.stdout.split("\n") == ["12345", "23456", "user12345", "/var", "I run on east", "several", ""]
    assert world.run("team/several", "id", "-u", container="two").stdout == "0\n"


def test_a_pod_cannot_leave_its_network_or_see_the_labs_secrets(world: World) -> None:
    status = world.output("team/client-0", "cat", "/proc/self/status")
    bounding = int(re.search(r"CapBnd:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    net_admin, net_raw, sys_admin = 12, 13, 21
    assert bounding >> net_raw & 1 and not bounding >> net_admin & 1 and not bounding >> sys_admin & 1
    assert world.run("team/client-0", "ip", "link", "set", "lo", "down").returncode != 0
    assert world.run("team/client-0", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward").returncode != 0
    assert world.run("team/client-0", "nsenter", "--net=/proc/1/ns/net", "true").returncode != 0
    state = world.layout.places.state
    assert (state / "control").is_dir()
    assert world.run("team/client-0", "ls", f"{state}/control").returncode != 0
    assert world.run("team/client-0", "ls", str(world.layout.places.run)).returncode != 0


def test_a_pod_has_no_keyrings(world: World) -> None:
    """They belong to users, and its root is the host's."""
    number = {"x86_64": 250, "aarch64": 219}[platform.machine()]
    script = f"import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.syscall({number}, 0, -4, 1), ctypes.get_errno())"
    assert world.output("team/client-0", "python3", "-c", script) == "-1 1\n"


def test_a_pod_sees_its_own_processes_and_files_only(world: World) -> None:
    assert world.output("team/client-0", "ps", "-e", "-o", "comm=").split() == ["sleep", "ps"]
    own, folders = f"{world.layout.places.prefix}-own", ("/tmp", "/run", "/etc", "/var/lib")
    world.output("team/client-0", "touch", *(f"{folder}/{own}" for folder in folders))
    assert world.run("team/client-3", "sh", "-c", f"ls /tmp /run | grep {own}").stdout == ""
    assert not any(Path(folder, own).exists() for folder in folders)


def test_programs_run_in_their_pods_cgroup(world: World) -> None:
    pod = world.pod("team/client-0")
    expected = f"/{world.layout.places.prefix}/{pod['node']}/pods/team.client-0"
    assert f"0::{expected}\n" in world.output("team/client-0", "cat", "/proc/self/cgroup")
    assert f"0::{expected}\n" in Path(f"/proc/{pod['containers'][0]['pid']}/cgroup").read_text()


def test_exit_codes_and_streams_pass_through(world: World) -> None:
    assert world.run("team/client-0", "sh", "-c", "exit 7").returncode == 7
    assert world.run("team/client-0", "sh", "-c", "kill -9 $$").returncode == 137
    missing = world.run("team/client-0", "no-such-program")
    reason = "lab: cannot run 'no-such-program': No such file or directory\n"
    assert (missing.returncode, missing.stderr) == (127, reason)
    process = world.popen("team/client-0", ["wc", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.communicate(b"x" * 100_000, timeout=60)[0].strip() == b"100000"


def test_exec_takes_its_options_in_kubectls_order_too(world: World) -> None:
    places = world.layout.places
    folders = {"WEFT_RUN_DIR": str(places.run), "WEFT_STATE_DIR": str(places.state), "WEFT_PREFIX": places.prefix}
    command = [sys.executable, "-m", "cli.main", "lab", "exec"]

    def run(*words: str) -> tuple[int, str]:
        found = subprocess.run([*command, *words], env=os.environ | folders, capture_output=True, text=True, timeout=60)
        return found.returncode, found.stdout + found.stderr

    name = world.pod("team/client-0")["containers"][0]["name"]
    for words in (("team/client-0", "-c", name), ("-c", name, "team/client-0")):
        assert run(*words, "--", "sh", "-c", "echo $0 -- $1", "-c", "--") == (0, "-c -- --\n")
    assert run("team/client-0", "sh", "-c", "echo fine") == (0, "fine\n")
    code, error = run("team/client-0", "-c", "nix", "--", "true")
    assert code == 1 and "nix" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("pod", "reason"), [("team/none", "there is no pod team/none"), ("team/several", "no container third")]
)
def test_what_does_not_run_is_named(world: World, pod: str, reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        world.run(pod, "true", container="third")


def test_pods_have_no_router_of_their_own_prefix(world: World) -> None:
    """Neighbours talk through their node, so that its service rules see both directions."""
    routes = json.loads(netns.run(["ip", "-n", world.pod("team/client-0")["netns"], "-j", "route"]))
    assert {route["dst"] for route in routes} == {"default", "10.1.0.1"}
