"""`weft status` against real servers, with nodes that are well, ill and gone."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from cli import dial
from lab.client import Lab
from lab.layout import Layout
from mesh.proto import agent_pb2, control_pb2

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit


def _agent(**more: Any) -> agent_pb2.StatusResponse:
    base: dict[str, Any] = {
        "version": "0.1.0",
        "proxy": agent_pb2.ProxyState(connected=True, ready=True),
        "control": agent_pb2.ControlState(connected=True),
        "pods": [
            agent_pb2.EnrolledPod(
                namespace="demo",
                name="web",
                service_account="web",
                addresses=["10.1.1.2", "fd01::2"],
                state="enrolled",
                captured_v4=2,
            )
        ],
        "maps": [agent_pb2.MapFill(name="original", used=5, capacity=1000)],
    }
    return agent_pb2.StatusResponse(**(base | more))


def _dump() -> dict[str, Any]:
    now = datetime.now(UTC)
    leaf = {
        "serialNumber": "255",
        "validFrom": (now - timedelta(minutes=1)).isoformat(),
        "expirationTime": (now + timedelta(hours=24, minutes=30)).isoformat(),
    }
    identity = "spiffe://cluster.local/ns/demo/sa/web"
    connections = {"inbound": [{"src": "10.1.2.2:1", "protocol": "HBONE"}], "outbound": []}
    return {
        "certificates": [{"identity": identity, "state": "Available", "certChain": [leaf], "rootCerts": []}],
        "workloadState": {"uid-1": {"state": "Up", "connections": connections}},
    }


def _control(world: "World") -> None:
    expires = int(time.time()) + 3650 * 86400 + 1800
    world.control().status = control_pb2.StatusResponse(version="0.1.0", objects=5, workloads=2, root_expires_unix_s=expires)


def test_shows_what_is_excluded_from_capture(world: "World") -> None:
    _control(world)
    agent = _agent(excluded=["outbound port 3306"])
    agent.pods[0].excluded.append("inbound port 9100")
    world.agent("node-a", agent)
    world.proxy("node-a", _dump())
    result = world.weft("status")
    assert result.exit_code == 0
    assert (
        "NODE     POD        EXCLUDED FROM CAPTURE\n"
        "node-a   (all)      outbound port 3306\n"
        "node-a   demo/web   inbound port 9100\n"
    ) in result.stdout


def test_all_well(world: "World") -> None:
    _control(world)
    world.agent("node-a", _agent())
    world.proxy("node-a", _dump())
    result = world.weft("status")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "control: running 0.1.0, 5 objects, 2 workloads, 0 services, 0 policies, root certificate for 3650d\n"
        "\n"
        "NODE     AGENT           PROXY   CONTROL     ENROLLED   CERTIFICATES   FIRST EXPIRES   CONNECTIONS\n"
        "node-a   running 0.1.0   ready   connected   1/1        1/1            1d              1\n"
        "\n"
        "NODE     POD        SERVICE ACCOUNT   ADDRESSES          STATE      CAPTURED V4   CAPTURED V6\n"
        "node-a   demo/web   web               10.1.1.2,fd01::2   enrolled   2             0\n"
        "\n"
        "NODE     MAP        USED   CAPACITY   FILL\n"
        "node-a   original   5      1000       0.5 %\n"
        "\n"
        "nothing is wrong\n"
    )


def test_calls_that_control_refused_are_counted(world: "World") -> None:
    world.control().status = control_pb2.StatusResponse(version="0.1.0", refused_calls=12)
    world.agent("node-a", _agent())
    world.proxy("node-a", _dump())
    line, *_ = world.weft("status").stdout.splitlines()
    assert line.endswith(", 12 calls refused")
    assert json.loads(world.weft("status", "-o", "json").stdout)["control"]["refusedCalls"] == "12"


def test_a_node_and_the_control_plane_that_are_gone(world: "World") -> None:
    world.agent("node-a", _agent())
    world.proxy("node-a", _dump(), ready=(500, b"not ready, pending: state manager\n"))
    world.node_folder("node-b")
    world.places.control_state.mkdir(parents=True)  # it ran here
    result = world.weft("status")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "control: does not answer"
    assert "node-b   down            down       -           -          -              -               -" in lines
    wrong = [line for line in lines if line.startswith("wrong: ")]
    assert [line.split(": ")[1] for line in wrong] == ["control", "node-a", "node-b", "node-b"]
    assert wrong[1] == "wrong: node-a: the proxy is not ready, waiting for: state manager"
    assert "agent of node-b" in wrong[2] and wrong[2].endswith("; look at the log of weft-agent")
    (world.places.run / "lab").mkdir()
    lines = world.weft("status").stdout.splitlines()
    assert [line.rpartition("; ")[2] for line in lines if line.startswith("wrong: node-b: ")] == [
        "look at: weft lab logs node-b/agent",
        "look at: weft lab logs node-b/ztunnel",
    ]


def test_on_a_node_whose_control_plane_runs_elsewhere_nothing_is_wrong(world: "World") -> None:
    world.agent("node-a", _agent(control=agent_pb2.ControlState(connected=True, address="10.0.0.7:15012")))
    world.proxy("node-a", _dump())
    result = world.weft("status")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("control: not on this machine, but at 10.0.0.7:15012", "nothing is wrong")
    assert json.loads(world.weft("status", "-o", "json").stdout)["control"] is None
    told = world.weft("apply", "-f", "-", input="{}").stderr
    reason = f"not on this machine: nobody serves {world.places.control_socket}"
    assert told == f"weft: control plane: {reason}; run this where weft-control runs\n"


def test_what_is_nearly_full_is_a_warning_and_said_once(world: "World") -> None:
    _control(world)
    said = "warning: map original is 90 % full (9 of 10): once it is full, connections are refused"
    world.agent("node-a", _agent(problems=[said], maps=[agent_pb2.MapFill(name="original", used=9, capacity=10)]))
    world.proxy("node-a", _dump())
    result = world.weft("status")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if "% full" in line] == [said.replace("warning: ", "warning: node-a: ")]


def test_what_the_parts_say_does_not_steer_the_terminal(world: "World") -> None:
    _control(world)
    world.agent("node-a", _agent(problems=["a\x1b[2Jb"], version="\x1b]0;t\x07"))
    world.proxy("node-a", {"certificates": [{"identity": "i\n", "state": "Unavailable: \x9b2J"}]}, (500, b"x\x1b[2J\n"))
    shown = [world.weft(*command.split()) for command in ("status", "version", "certificates")]
    text = "".join(one.stdout + one.stderr for one in shown)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "wrong: node-a: a\\x1b[2Jb" in text and "wrong: node-a: certificate of i\\n: Unavailable: \\x9b2J" in text


def test_a_failures_words_do_not_steer_the_terminal(world: "World") -> None:
    world.observer("node-a", []).refusal = "no \x1b[2J such\tfilter"
    result = world.weft("observe", "-l", "app")
    assert result.stderr == "weft: flows of node-a: no \\x1b[2J such filter\n"


def test_json_says_the_same(world: "World") -> None:
    _control(world)
    world.agent("node-a", _agent(problems=["map original is full"]))
    world.proxy("node-a", _dump())
    result = world.weft("status", "-o", "json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    assert answer["findings"] == [{"where": "node-a", "text": "map original is full", "warning": False}]
    assert answer["nodes"][0]["agent"]["pods"][0]["serviceAccount"] == "web"
    assert answer["nodes"][0]["certificates"][0]["expiresInSeconds"] > 86000


def test_a_lab_without_a_mesh_has_the_same_keys(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    _control(world)
    world.agent("node-a", _agent())
    world.proxy("node-a", _dump())
    usual = json.loads(world.weft("status", "-o", "json").stdout)
    monkeypatch.setattr("cli.status._is_without_mesh", lambda: True)
    without = json.loads(world.weft("status", "-o", "json").stdout)
    assert usual.keys() == without.keys() and (usual["mesh"], without["mesh"]) == (True, False)


def test_a_lab_that_does_not_answer_is_waited_for_no_longer_than_others(
    world: "World", monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_s: list[float] = []

    def silent(_lab: Lab, _method: str, _path: str, _body: bytes, timeout_s: float) -> bytes:
        waited_s.append(timeout_s)
        raise TimeoutError

    monkeypatch.setattr(Lab, "_request", silent)
    monkeypatch.setattr(dial, "TIMEOUT_S", 7.0)
    _control(world)
    world.agent("node-a", _agent())
    world.proxy("node-a", _dump())
    Layout(world.places).socket.touch()
    assert json.loads(world.weft("status", "-o", "json").stdout)["mesh"] is True, "its nodes are asked all the same"
    assert waited_s == [7.0]


def test_no_mesh_at_all(world: "World") -> None:
    result = world.weft("status")
    assert result.exit_code == 1
    assert result.stderr == f"weft: no node here: {world.places.run}/nodes is empty; start a mesh with: weft lab up\n"


def test_an_unknown_node(world: "World") -> None:
    world.node_folder("node-a")
    result = world.weft("status", "--node", "nod-a")
    assert (result.exit_code, result.stderr) == (1, "weft: node nod-a: not on this machine; known here: node-a\n")


def test_version_names_the_parts_that_run(world: "World") -> None:
    _control(world)
    world.agent("node-a", _agent())
    world.proxy("node-b", {"version": {"version": "weft-0.1.0"}})
    lines = world.weft("version").stdout.splitlines()
    assert lines[-3:] == ["control: 0.1.0", "agent node-a: 0.1.0", "proxy node-b: 0.1.0"]
    assert [line.split(":")[0] for line in world.weft("version", "--client").stdout.splitlines()] == [
        "weft",
        "python",
        "openssl",
        "kernel",
    ]
