"""A node's diagnostics say what is wrong in sentences, and nothing where nothing is."""

from typing import Any

import pytest

from agent.problems import problems, with_mend
from mesh.proto.agent_pb2 import ControlState, EnrolledPod, MapFill, ProgramState, ProxyState, StatusResponse
from tests.zds_packets import BIND_ERROR

pytestmark = pytest.mark.unit

PORTS = 28232
NO_NAMESPACE = "failure to start proxy : [Errno 22] cannot enter the network namespace: Invalid argument"


def status(**changes: Any) -> StatusResponse:
    well = {
        "proxy": ProxyState(connected=True, ready=True, pid=7),
        "control": ControlState(connected=True, address="control:15012"),
        "pods": [EnrolledPod(namespace="demo", name="web", state="enrolled", captured_v4=100)],
        "maps": [MapFill(name="origins", used=10, capacity=100)],
        "programs": [ProgramState(name="connect4", hook="cgroup/connect4", attached=True)],
    }
    return StatusResponse(**(well | changes))


def test_nothing_is_wrong() -> None:
    assert list(problems(status(), PORTS)) == []
    assert list(problems(status(control=ControlState()), PORTS)) == []  # runs without control by choice


def test_says_why_the_last_proxy_is_away() -> None:
    (said,) = problems(status(proxy=ProxyState()), PORTS, "it owes 3 answers")
    assert said.startswith("no proxy is connected (the last one: it owes 3 answers): ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proxy": ProxyState()}, "no proxy is connected"),
        ({"proxy": ProxyState(connected=True, pid=7)}, "process 7) has not acknowledged"),
        ({"control": ControlState(address="c:1", error="refused")}, "control c:1 is away (refused)"),
        ({"pods": [EnrolledPod(namespace="demo", name="web", state="pending", reason="why")]}, "demo/web is pending: why"),
        (
            {"pods": [EnrolledPod(namespace="demo", name="web", state="enrolled", troubles=["annotation x: bad"])]},
            "pod demo/web: annotation x: bad",
        ),
        (
            {"pods": [EnrolledPod(namespace="demo", name="web", state="enrolled", captured_v6=23000)]},
            "warning: pod demo/web has 23000 captured IPv6 connections",
        ),
        ({"maps": [MapFill(name="origins", used=80, capacity=100)]}, "warning: map origins is 80 % full"),
        ({"programs": [ProgramState(name="connect4", hook="cgroup/connect4")]}, "connect4 is not attached"),
    ],
)
def test_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    found = list(problems(status(**changes), PORTS))
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(
    ("reason", "mend"),
    [
        (
            f"failure to start proxy : {BIND_ERROR}",
            ": a process of the pod holds port 15008, which is the proxy's: have it listen",
        ),
        (NO_NAMESPACE, ": its namespace is broken: delete the pod"),
        ("no proxy is connected", ""),
        ("", ""),
    ],
)
def test_a_proxys_refusal_gets_its_mend(reason: str, mend: str) -> None:
    assert with_mend(reason).startswith(reason + mend) and bool(mend) == (with_mend(reason) != reason)
