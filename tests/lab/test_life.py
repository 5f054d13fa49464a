"""How pods begin, fail, change and end; and that a lab leaves nothing behind, whatever happens to its daemon."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab import cgroup, netns, teardown
from lab.client import Lab, LabError, ManifestError
from lab.layout import Layout
from tests.disk import fill, small_disk
from tests.lab.host import BASE, daemon_pid, deployment, host_network, leftovers, pod, processes, runs
from tests.lab.world import World, eventually, unique_layout
from wire import keyring
from wire.places import Places

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(BASE, mesh=False) as made:
        yield made


def lives(world: World) -> dict[str, str]:
    return {pod["name"]: pod["uid"] for pod in world.status()["pods"] if pod["name"].startswith("web-")}


def test_a_deployment_grows_shrinks_and_changes(world: World) -> None:
    with world.having(deployment(3)):
        three = lives(world)
        assert sorted(three) == ["web-0", "web-1", "web-2"]
        world.apply(deployment(1))
        assert lives(world) == {"web-0": three["web-0"]}
        gone = world.layout.pod_netns("b", "shop/web-1")
        assert not netns.exists(gone) and not world.layout.pod_cgroup("b", "shop/web-1").exists()
        world.apply(deployment(1, label="two"))
        assert lives(world) == {"web-0": three["web-0"]}, "labels alone must not end a pod"
        addresses = world.pod("shop/web-0")["addresses"]
        world.apply(deployment(1, command="[sleep, '1000000']"))
        assert lives(world)["web-0"] != three["web-0"]
        assert world.pod("shop/web-0")["addresses"] == addresses
        world.apply(deployment(3))
        assert lives(world).keys() == three.keys()
        world.apply(deployment(0))
        assert lives(world) == {}


def test_a_program_that_ends_is_started_again_with_growing_pauses(world: World) -> None:
    with world.having(pod("crash", "[sh, -c, 'echo started; exit 3']"), wait=False):
        eventually(lambda: world.pod("shop/crash")["restarts"] >= 2)

        def waits() -> bool:
            found = world.pod("shop/crash")
            return "ended with code 3; starting it again in" in found["reason"] and not found["ready"]

        eventually(waits)
        assert "".join(world.logs("shop/crash")).count("started") >= 2


@pytest.mark.parametrize(
    ("policy", "code", "phase"), [("Never", 0, "Succeeded"), ("Never", 4, "Failed"), ("OnFailure", 0, "Succeeded")]
)
def test_a_program_may_come_to_its_end(world: World, policy: str, code: int, phase: str) -> None:
    with world.having(pod("ending", f"[sh, -c, 'exit {code}']", f"restartPolicy: {policy}"), wait=False):
        eventually(lambda: world.pod("shop/ending")["phase"] == phase)
        assert world.pod("shop/ending")["containers"][0]["exit_code"] == code


def test_a_command_that_is_not_there_is_named(world: World) -> None:
    with world.having(pod("missing", "[no-such-program]", "restartPolicy: Never"), wait=False):
        eventually(lambda: "cannot run 'no-such-program': No such file" in world.pod("shop/missing")["reason"])


def test_an_init_container_that_fails_keeps_the_pod_from_starting(world: World) -> None:
    init = "initContainers: [{name: i, command: [sh, -c, 'exit 9']}]"
    with world.having(pod("stuck", "[sleep, infinity]", init), wait=False):
        eventually(lambda: "container i: ended with code 9" in world.pod("shop/stuck")["reason"])
        assert world.pod("shop/stuck")["phase"] == "Pending"

        def told() -> None:
            with pytest.raises(LabError, match=r"not ready after 0 s:(.|\n)*Pod shop/stuck: container i: ended with code 9"):
                world.up({"x": BASE}, mesh=False, timeout_s=0.3)

        eventually(told)  # while it runs once more it has not ended


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ("httpGet: {path: /, port: 8000}", "port 8000: "),
        ("tcpSocket: {port: 8000}", "port 8000: "),
        ("exec: {command: [test, -e, /tmp/ready]}", "test -e /tmp/ready: exit 1"),
    ],
)
def test_readiness_follows_its_probe(world: World, probe: str, reason: str) -> None:
    server = "[sh, -c, 'until [ -e /tmp/ready ]; do sleep 0.05; done; exec python3 -m http.server -d /tmp 8000']"
    readiness = f", readinessProbe: {{{probe}, periodSeconds: 1, failureThreshold: 1}}"
    with world.having(pod("probed", server, container=readiness), wait=False):
        eventually(lambda: reason in world.pod("shop/probed")["reason"])
        world.output("shop/probed", "touch", "/tmp/ready")
        eventually(lambda: world.pod("shop/probed")["ready"])
        world.output("shop/probed", "rm", "-r", "/tmp/ready")
        if probe.startswith("exec"):
            eventually(lambda: not world.pod("shop/probed")["ready"])


def test_a_service_leads_to_ready_pods_only(world: World) -> None:
    """And its name is known to pods that were there before it."""
    readiness = ", readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}"
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\n"
    service += "spec: {selector: {app: late}, ports: [{port: 8000}]}"
    server = pod("late", "[sh, -c, 'touch /tmp/ready; exec python3 -m http.server -d /tmp 8000']", container=readiness)
    server = server.replace("{name: late,", "{name: late, labels: {app: late},")
    ask = ("curl", "-sS", "-m", "3", "-o", "/dev/null", "http://late:8000/")
    with world.having(pod("asker", "[sleep, infinity]")), world.having(server + "---\n" + service):
        eventually(lambda: world.run("shop/asker", *ask).returncode == 0)
        world.output("shop/late", "rm", "/tmp/ready")
        eventually(lambda: world.run("shop/asker", *ask).returncode == 7)
        world.output("shop/late", "touch", "/tmp/ready")
        eventually(lambda: world.run("shop/asker", *ask).returncode == 0)


def test_programs_are_asked_to_end_and_those_that_cannot_hear_are_not_waited_for(world: World) -> None:
    script = "import signal, sys; signal.signal(15, lambda *_: sys.exit(print(1234))); print(0, flush=True); signal.pause()"
    grace = "terminationGracePeriodSeconds: 60"
    with world.having(pod("polite", f"[python3, -c, '{script}']", grace)):
        eventually(lambda: "0" in "".join(world.logs("shop/polite")))
        with world.log_path("shop/polite").open() as log:
            began = time.monotonic()
            world.apply(pod("polite", "[sleep, infinity]", grace))
            assert "1234" in log.read()
        world.apply(pod("polite", "[sleep, '99999']", grace))
        assert time.monotonic() - began < 60, "the second one's time of grace"


def test_what_cannot_be_is_refused_and_named(world: World) -> None:
    with pytest.raises(ManifestError, match="there is no Node z"):
        world.apply(pod("lost", "[sleep, infinity]", "nodeName: z"))
    with pytest.raises(ManifestError, match=r"more.yaml document 1: Pod shop/bad: spec.containers\[0\].command: required"):
        world.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: bad, namespace: shop}\nspec: {containers: [{name: c}]}")


def test_a_name_too_long_for_a_socket_is_refused_before_anything_is_made() -> None:
    node = f"apiVersion: v1\nkind: Node\nmetadata: {{name: {'n' * 63}}}"
    for run, name in (("/run/" + "r" * 110, "/run/r"), ("/run/" + "r" * 30, "Node nnn")):
        lab = Lab(Layout(Places(Path(run), Path(run + "-state"), "too-long")))
        with pytest.raises(LabError, match=f"^{name}.*107 bytes.*WEFT_RUN_DIR"):
            lab.up({"x": node}, mesh=False)
        assert not lab.layout.run.exists() and not lab.layout.cgroup.exists()


def test_a_lab_that_shares_a_part_of_its_names_is_neither_brought_up_nor_removed(world: World) -> None:
    own = world.layout.places
    elsewhere = Path("/run/elsewhere")
    for places in (
        Places(elsewhere, elsewhere, own.prefix),
        Places(own.run, elsewhere, "elsewhere"),
        Places(elsewhere, own.state, "elsewhere"),
    ):
        other = Lab(Layout(places))
        for touch in (lambda lab: lab.up({"x": BASE}, mesh=False), Lab.down):
            with pytest.raises(LabError, match=f"another lab is up .WEFT_PREFIX={own.prefix} WEFT_RUN_DIR={own.run} "):
                touch(other)
        assert not elsewhere.exists()
    eventually(lambda: not world.status()["unready"])


def test_the_next_daemon_adopts_what_runs(world: World) -> None:
    with world.having(deployment(2) + "---" + pod("crashed", "[sleep, infinity]")):
        before = processes(world)
        os.kill(daemon_pid(world), signal.SIGKILL)
        eventually(lambda: not world.running())
        os.kill(before["shop/crashed"], signal.SIGKILL)
        with pytest.raises(LabError, match="the daemon of this lab has ended"):
            world.status()
        world.up({"x": BASE}, mesh=False)
        after = processes(world)
        assert after.pop("shop/crashed") != before.pop("shop/crashed")
        assert world.pod("shop/crashed")["restarts"] == 1
        assert after == before
        world.apply(deployment(1))
        assert sorted(lives(world)) == ["web-0"]


def test_the_next_daemon_keeps_the_cluster_domain() -> None:
    """It began with the usual one: pods, proxies and control had been told another."""
    layout = unique_layout()
    named = replace(layout, domain="k8s.example", names_domain=True)
    with World(BASE, mesh=False, layout=named) as world:
        before = daemon_pid(world)
        with pytest.raises(LabError, match=r"domain of this lab is k8s\.example, and other\.example is asked for"):
            Lab(replace(named, domain="other.example")).up({"x": BASE}, mesh=False)
        assert daemon_pid(world) == before
        os.kill(before, signal.SIGKILL)
        eventually(lambda: not world.running())
        world.layout = layout
        world.up({"x": BASE}, mesh=False)
        environment = Path(f"/proc/{daemon_pid(world)}/environ").read_bytes().split(b"\0")
        assert b"WEFT_CLUSTER_DOMAIN=k8s.example" in environment


def test_the_next_daemon_removes_what_was_deleted_meanwhile(world: World) -> None:
    world.apply(deployment(2))
    node, uid = world.pod("shop/web-1")["node"], world.pod("shop/web-1")["uid"]
    os.kill(daemon_pid(world), signal.SIGKILL)
    eventually(lambda: not world.running())
    manifests = world.layout.places.control_state / "manifests"
    (manifests / "deployment.shop.web.yaml").unlink()
    world.up({"x": BASE}, mesh=False)
    assert lives(world) == {} and uid
    assert not netns.exists(world.layout.pod_netns(node, "shop/web-1"))
    assert not world.layout.pod_cgroup(node, "shop/web-1").exists()


def test_the_next_daemon_removes_a_node_that_was_deleted_meanwhile_whole(world: World) -> None:
    world.apply("apiVersion: v1\nkind: Node\nmetadata: {name: c}")
    node = world.layout.places.node("c")
    assert node.run.exists() and node.state.exists()
    os.kill(daemon_pid(world), signal.SIGKILL)
    eventually(lambda: not world.running())
    (manifest,) = (world.layout.places.control_state / "manifests").glob("node.*c.yaml")
    manifest.unlink()
    world.up({"x": BASE}, mesh=False)
    assert not netns.exists(world.layout.node_netns("c")) and not world.layout.node_cgroup("c").exists()
    assert not node.run.exists() and not node.state.exists(), "weft status would name it"


def test_the_next_daemon_does_not_run_again_what_came_to_its_end(world: World) -> None:
    ended = pod("ended", "[sh, -c, 'echo once; exit 4']", "restartPolicy: Never")
    missed = pod("missed", "[sh, -c, 'echo once; sleep 1000000']", "restartPolicy: Never")
    with world.having(ended + "---" + missed, wait=False):
        eventually(lambda: world.pod("shop/ended")["phase"] == "Failed" and world.pod("shop/missed")["ready"])
        eventually(lambda: "".join(world.logs("shop/missed")) == "once\n")
        before = processes(world)["shop/missed"]
        os.kill(daemon_pid(world), signal.SIGKILL)
        eventually(lambda: not world.running())
        os.kill(before, signal.SIGKILL)

        def told() -> None:
            with pytest.raises(LabError, match="Pod shop/ended: container c: ended with code 4"):
                world.up({"x": BASE}, mesh=False, timeout_s=0.3)

        eventually(told)  # a daemon that has just begun knows less
        eventually(lambda: world.pod("shop/missed")["phase"] == "Failed")
        assert world.pod("shop/missed")["reason"] == "container c: ended, its exit code unknown"
        for name in ("ended", "missed"):
            assert "".join(world.logs(f"shop/{name}")) == "once\n"


def test_a_full_disk_leaves_no_program_that_nobody_knows_of() -> None:
    layout = unique_layout()
    with (
        small_disk(layout.places.run, "1m") as disk,
        World(BASE + "---" + pod("p", "[sleep, infinity]"), False, layout=layout) as full,
    ):
        full.up({"long.yaml": f"# {'x' * (2 << 20)}"}, mesh=False)  # as much as one may say at a time
        path = layout.pod_cgroup(full.pod("shop/p")["node"], "shop/p")
        fill(disk)
        service = "apiVersion: v1\nkind: Service\nmetadata: {{name: s{}, namespace: shop}}\nspec: {{ports: [{{port: 1}}]}}\n"
        full.apply(
            "---\n".join(service.format(number) for number in range(60)), wait=False
        )  # whose names are more than one page
        os.kill(processes(full)["shop/p"], signal.SIGKILL)
        eventually(lambda: full.pod("shop/p")["restarts"] >= 2 and "No space left" in full.pod("shop/p")["reason"])
        (disk / "fill").unlink()
        eventually(lambda: full.pod("shop/p")["ready"])
        eventually(lambda: cgroup.processes(path) == [processes(full)["shop/p"]])
        eventually(lambda: "s59.shop.svc" in full.output("shop/p", "cat", "/etc/hosts"))
    layout.places.run.rmdir()


def test_a_volume_below_a_folder_that_is_a_link_is_in_the_pod_and_nowhere_else(world: World) -> None:
    """/var/run is one, to /run."""
    name = world.layout.places.prefix + "-app"
    mounts = f", volumeMounts: [{{name: v, mountPath: /var/run/{name}}}]"
    with world.having(pod("linked", "[sleep, infinity]", "volumes: [{name: v, emptyDir: {}}]", mounts)):
        assert world.output("shop/linked", "sh", "-c", f"touch /var/run/{name}/x && ls /run/{name}") == "x\n"
    assert not Path("/run", name).exists()


def test_control_is_started_again(world: World) -> None:
    with world.having(deployment(1)):
        before, uid = eventually(lambda: world.status()["control"]["pid"]), lives(world)
        os.kill(before, signal.SIGKILL)
        eventually(lambda: world.status()["control"]["pid"] not in (0, before))
        world.apply(deployment(2))
        assert lives(world)["web-0"] == uid["web-0"]


def test_a_node_comes_and_goes(world: World) -> None:
    third = "apiVersion: v1\nkind: Node\nmetadata: {name: c}\nspec: {podCIDRs: [10.77.0.0/24]}"
    with world.having(third), world.having(pod("far", "[python3, -m, http.server, '8000']", "nodeName: c")):
        assert len(world.pod("shop/far")["addresses"]) == 1, "a node with v4 only has pods with v4 only"
        with world.having(pod("near", "[sleep, infinity]", "nodeName: a")):
            url = f"http://{world.pod('shop/far')['addresses'][0]}:8000/"
            eventually(lambda: world.run("shop/near", "curl", "-sS", "-m", "3", "-o", "/dev/null", url).returncode == 0)
        keys = [keyring.scope(world.layout.places.prefix, node) + "key" for node in ("a", "c")]
        for key in keys:
            keyring.store(key, b"sealed", 100)
    assert [keyring.read(key) for key in keys] == [b"sealed", None], "a node takes its keys with it"
    assert not netns.exists(world.layout.node_netns("c")) and not world.layout.node_cgroup("c").exists()
    assert "10.77" not in netns.run(["ip", "-n", world.layout.node_netns("a"), "route"])


@pytest.mark.parametrize("crash", [False, True], ids=["in order", "after the daemon was killed"])
def test_down_leaves_nothing_and_the_host_never_changed(crash: bool) -> None:
    before = host_network()
    with World(BASE + "---" + deployment(2) + "---" + pod("p", "[sleep, infinity]"), mesh=False) as world:
        assert host_network() == before
        pids = list(processes(world).values())
        keyring.store(keyring.scope(world.layout.places.prefix, "a") + "key", b"sealed", 100)
        if crash:
            os.kill(daemon_pid(world), signal.SIGKILL)
        assert world.down()
        assert leftovers(world) == []
        assert not any(runs(pid) for pid in pids)
        assert not world.down()
    assert host_network() == before


def test_down_touches_no_lab_whose_name_begins_the_same() -> None:
    shorter = unique_layout()
    longer = type(shorter)(
        type(shorter.places)(
            shorter.places.run.with_name(f"{shorter.places.prefix}-b"),
            shorter.places.state.with_name(f"{shorter.places.prefix}-b"),
            f"{shorter.places.prefix}-b",
        )
    )
    with World(BASE, mesh=False, layout=shorter), World(BASE, mesh=False, layout=longer) as other:
        key = keyring.scope(longer.places.prefix, "a") + "key"
        keyring.store(key, b"sealed", 100)
        teardown.remove(shorter)
        assert keyring.read(key) == b"sealed"
        assert netns.exists(longer.node_netns("a")) and netns.exists(longer.fabric_netns)
        eventually(lambda: other.status()["unready"] == [])


def test_up_again_changes_nothing() -> None:
    with World(BASE + "---" + deployment(2), mesh=False) as other:
        before = [(one["uid"], one["containers"][0]["pid"]) for one in other.status()["pods"]]
        lines: list[str] = []
        other.up({"world.yaml": BASE + "---" + deployment(2)}, mesh=False, progress=lines.append)
        assert [(one["uid"], one["containers"][0]["pid"]) for one in other.status()["pods"]] == before
        assert [line for line in lines if "created" in line] == []
