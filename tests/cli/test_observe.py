"""`weft observe` against real Observer servers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.json_format import ParseDict

from cli.flow_merge import LiveMerge
from cli.flow_source import follow
from mesh.proto.observer_pb2 import GetFlowsRequest, GetFlowsResponse
from tests.cli.patience import DEADLINE_S, PROGRAM
from wire.places import NodePlaces, Places

if TYPE_CHECKING:
    from tests.cli.conftest import World

pytestmark = pytest.mark.unit


def _flow(second: int, node: str, **more: Any) -> GetFlowsResponse:
    time_text = f"2026-03-05T08:00:{second:02}Z"
    flow = {
        "time": time_text,
        "uuid": f"{node}-{second}",
        "verdict": "FORWARDED",
        "IP": {"source": "10.0.1.5", "destination": "10.0.1.9"},
        "source": {"namespace": "demo", "pod_name": "client", "identity": 300},
        "destination": {"namespace": "demo", "pod_name": "web", "identity": 301},
        "l4": {"TCP": {"source_port": 40000 + second, "destination_port": 80}},
        "event_type": {"type": 4},
        "is_reply": False,
        "Summary": "opened, mutual TLS",
        "node_name": node,
    }
    return ParseDict({"flow": flow | more, "node_name": node, "time": time_text}, GetFlowsResponse())


_DENIED = {
    "verdict": "DROPPED",
    "event_type": {"type": 5},
    "policy_match_type": 2,
    "traffic_direction": "INGRESS",
    "ingress_denied_by": [{"name": "web", "namespace": "demo", "kind": "AuthorizationPolicy"}],
    "drop_reason_desc": "POLICY_DENY",
    "Summary": "denied by AuthorizationPolicy demo/web",
}


def test_flows_of_all_nodes_in_order_of_time(world: "World") -> None:
    world.observer("node-a", [_flow(1, "node-a"), _flow(4, "node-a")])
    world.observer("node-b", [_flow(2, "node-b", **_DENIED), _flow(3, "node-b")])
    result = world.weft("observe")
    assert (result.exit_code, result.stderr) == (0, "")
    allowed = "-> demo/web:80 (ID:301) to-endpoint FORWARDED (opened, mutual TLS)"
    denied = "policy-verdict:L3-L4 INGRESS DENIED BY AuthorizationPolicy demo/web (denied by AuthorizationPolicy demo/web)"
    assert result.stdout.splitlines() == [
        f"Mar  5 08:00:01.000 [node-a]: demo/client:40001 (ID:300) {allowed}",
        f"Mar  5 08:00:02.000 [node-b]: demo/client:40002 (ID:300) -> demo/web:80 (ID:301) {denied}",
        f"Mar  5 08:00:03.000 [node-b]: demo/client:40003 (ID:300) {allowed}",
        f"Mar  5 08:00:04.000 [node-a]: demo/client:40004 (ID:300) {allowed}",
    ]


def test_last_counts_over_all_nodes(world: "World") -> None:
    world.observer("node-a", [_flow(1, "node-a"), _flow(4, "node-a")])
    world.observer("node-b", [_flow(2, "node-b"), _flow(3, "node-b")])
    result = world.weft("observe", "--last", "2", "-o", "json")
    assert [json.loads(line)["flow"]["uuid"] for line in result.stdout.splitlines()] == ["node-b-3", "node-a-4"]
    result = world.weft("observe", "--first", "1", "-o", "json")
    assert [json.loads(line)["flow"]["uuid"] for line in result.stdout.splitlines()] == ["node-a-1"]


def test_a_node_that_is_down_is_reported_and_the_others_are_shown(world: "World") -> None:
    world.node_folder("node-a")
    world.observer("node-b", [_flow(2, "node-b")])
    result = world.weft("observe")
    assert result.exit_code == 1
    assert "[node-b]" in result.stdout and len(result.stdout.splitlines()) == 1
    assert result.stderr.startswith("weft: flows of node-a: ") and "hubble.sock does not exist" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_node_that_says_nothing_is_not_waited_for_long(world: "World", monkeypatch: pytest.MonkeyPatch) -> None:
    silent = world.observer("node-a", [])
    silent.silent = True
    world.observer("node-b", [_flow(2, "node-b")])
    for patience_s in (0.2, 2.0, 20.0):
        monkeypatch.setattr("cli.dial.TIMEOUT_S", patience_s)
        result = world.weft("observe")
        if result.stdout:
            break  # else it was too short for the other one as well
    silent.live.set()
    assert result.exit_code == 1 and len(result.stdout.splitlines()) == 1 and "[node-b]" in result.stdout
    words = f"no answer on {world.places.node('node-a').hubble_socket} within {patience_s:g} s; look at"
    assert result.stderr.startswith(f"weft: flows of node-a: {words}")


def test_table_and_dict(world: "World") -> None:
    world.observer("node-a", [_flow(1, "node-a")])
    assert world.weft("observe", "-o", "table").stdout.splitlines() == [
        "TIMESTAMP             SOURCE              DESTINATION   TYPE          VERDICT     SUMMARY",
        "Mar  5 08:00:01.000   demo/client:40001   demo/web:80   to-endpoint   FORWARDED   opened, mutual TLS",
    ]
    assert world.weft("observe", "-o", "dict", "--print-node-name").stdout.splitlines() == [
        "  TIMESTAMP: Mar  5 08:00:01.000",
        "       NODE: node-a",
        "     SOURCE: demo/client:40001",
        "DESTINATION: demo/web:80",
        "       TYPE: to-endpoint",
        "    VERDICT: FORWARDED",
        "    SUMMARY: opened, mutual TLS",
    ]


def test_dicts_have_a_line_between_them_as_hubbles_do(world: "World") -> None:
    world.observer("node-a", [_flow(second, "node-a") for second in (1, 2, 3)])
    lines = world.weft("observe", "-o", "dict").stdout.splitlines()
    assert [lines.count("------------"), lines[0], lines[6], lines[-1]] == [
        2,
        "  TIMESTAMP: Mar  5 08:00:01.000",
        "------------",
        "    SUMMARY: opened, mutual TLS",
    ]


def test_a_count_of_zero_is_none_as_hubble_has_it(world: "World") -> None:
    observer = world.observer("node-a", [_flow(second, "node-a") for second in range(30)])
    for option in ("--last", "--first"):
        assert world.weft("observe", option, "0").stdout == world.weft("observe").stdout
    assert len(world.weft("observe", "--last", "0").stdout.splitlines()) == 20
    assert len(world.weft("observe", "--last", "0", "--since", "2026-03-05").stdout.splitlines()) == 30
    assert world.weft("observe", "--last", "0", "--first", "2").exit_code == 0
    assert [asked.number for asked in observer.asked] == [20, 20, 20, 20, 20, 0, 2]


def test_options_reach_the_node(world: "World") -> None:
    observer = world.observer("node-a", [])
    result = world.weft("observe", "-n", "demo", "--to-port", "80", "--verdict", "dropped", "--since", "5m", "--node", "node-a")
    assert result.exit_code == 0
    (asked,) = observer.asked
    assert [list(one.destination_port) for one in asked.whitelist] == [["80"], ["80"]]
    assert [list(one.verdict) for one in asked.whitelist] == [[2], [2]]
    assert abs(asked.since.seconds - (time.time() - 300)) < 60


def test_the_nodes_own_words_about_a_bad_filter(world: "World") -> None:
    world.observer("node-a", []).refusal = "filter not supported"
    result = world.weft("observe", "-l", "app")
    assert (result.exit_code, result.stderr) == (1, "weft: flows of node-a: filter not supported\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--first", "1", "--last", "1"], "--first goes with neither"),
        (["--since", "1d"], "not a time"),
        (["--port", "http"], "is no port"),
        (["--port", "70000"], "is no port"),
        (["--port", "0000001234567"], "is no port"),
        (["-f", "-o", "table"], "-o table needs all flows"),
        (["--verdict", "ALLOWED"], "'ALLOWED'"),
        (["--pod", "shop/a", "-n", "data"], "not in namespace data"),
        (["--ip", "10.1"], "invalid IP filter '10.1'"),
        (["-l", "!!"], "invalid label selector '!!'"),
        (["--protocol", "bogus"], "unknown protocol: 'bogus'"),
        (["-n", ""], "'' is no namespace"),
        (["--to-namespace", "a/b"], "'a/b' is no namespace"),
        (["--service", "a/b/c"], "'a/b/c' is no service"),
        (["--since", "0001-01-01T00:00:00+05:00"], "not a time"),
    ],
)
def test_wrong_calls(world: "World", arguments: list[str], words: str) -> None:
    world.node_folder("node-a")
    result = world.weft("observe", *arguments)
    assert result.exit_code == 2 and words in result.stderr


_HOLDING = "import cli.flow_merge, cli.observe\ncli.flow_merge.MAX_HELD, cli.observe.HOLD_S = 2, 3600.0\n"
"""A flow waits until two others have come, however long they take."""


def _following(*options: str, before: str = "") -> list[str]:
    return [sys.executable, "-c", f"{PROGRAM}{before}cli.main.main()", "observe", "-f", *options]


def test_following_shows_flows_in_order_and_ends_well_when_interrupted(world: "World") -> None:
    """Also those of one node, whose workers tell of theirs one after the other."""
    observer = world.observer("node-a", [_flow(second, "node-a") for second in (2, 1, 4, 3)])
    environment = os.environ | {"WEFT_RUN_DIR": str(world.places.run)}
    command = _following("--last", "2", before=_HOLDING)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == ""
        lines += process.stdout.readlines()
    observer.live.set()
    assert [line[:19] for line in lines] == [f"Mar  5 08:00:0{second}.000" for second in (1, 2, 3, 4)]
    assert observer.asked[0].follow and observer.asked[0].number == 2


def test_flows_that_wait_for_older_ones_are_shown_when_following_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[GetFlowsResponse] = []
    told = asyncio.Event()
    receive = LiveMerge.receive

    def received(merge: LiveMerge, response: GetFlowsResponse, now: float) -> None:
        receive(merge, response, now)
        if response.time.seconds % 60 == 1:
            told.set()

    async def follow_one(_node: NodePlaces, _asked: Any, arrived: "asyncio.Queue[GetFlowsResponse]", _report: Any) -> None:
        for second in (2, 1):
            await arrived.put(_flow(second, "node-a"))

    async def scenario() -> None:
        node = Places(tmp_path, tmp_path, "x").node("node-a")
        following = asyncio.ensure_future(follow([node], GetFlowsRequest(), 3600.0, shown.append, print))
        await told.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert following.cancelled()

    monkeypatch.setattr("cli.flow_source._follow_one", follow_one)
    monkeypatch.setattr(LiveMerge, "receive", received)
    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
    assert [one.time.seconds % 60 for one in shown] == [1, 2]


def test_following_ends_quietly_when_its_reader_has_gone(world: "World") -> None:
    observers = world.observer("node-a", [_flow(1, "node-a"), _flow(2, "node-a")]), world.observer("node-b", [])
    environment = os.environ | {"WEFT_RUN_DIR": str(world.places.run)}
    reader, writer = os.pipe()
    os.close(reader)
    command = _following("--last", "2")
    run = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S)
    os.close(writer)
    for observer in observers:
        observer.live.set()
    assert (run.returncode, run.stderr) == (1, "")


def test_following_outlives_a_node_that_goes_and_comes_back(world: "World") -> None:
    observer = world.observer("node-a", [_flow(1, "node-a")])
    environment = os.environ | {"WEFT_RUN_DIR": str(world.places.run)}
    command = _following("--last", "1", "-o", "json")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["flow"]["uuid"] == "node-a-1"
        observer.server.stop(0).wait()
        observer.live.set()
        words = process.stderr.readline()
        back = world.observer("node-a", [_flow(2, "node-a")])
        assert json.loads(process.stdout.readline())["flow"]["uuid"] == "node-a-2"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    back.live.set()
    assert words.startswith("weft: flows of node-a: ") and words.endswith("asking again until it is back\n")
    # Nothing is asked for twice.
    assert back.asked[0].since.nanos == 1 and back.asked[0].number == 0
