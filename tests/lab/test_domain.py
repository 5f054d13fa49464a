"""A lab whose cluster is called otherwise: all its parts are told."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.addresses import node_addresses
from lab.daemon import Daemon
from lab.launch import Launch
from lab.layout import Layout
from lab.node import NodeRun
from mesh.domains import CLUSTER_DOMAIN
from wire.places import PlacesError

pytestmark = pytest.mark.unit


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Layout:
    monkeypatch.setenv("WEFT_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("WEFT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("WEFT_CLUSTER_DOMAIN", "K8s.Example.")
    return Layout.from_environment()


def test_it_is_one_that_dns_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_CLUSTER_DOMAIN", "")
    assert Layout.from_environment().domain == CLUSTER_DOMAIN
    monkeypatch.setenv("WEFT_CLUSTER_DOMAIN", "a_b")
    with pytest.raises(PlacesError, match=r"^WEFT_CLUSTER_DOMAIN='a_b': not a DNS domain: write one like cluster\.local$"):
        Layout.from_environment()


def test_the_control_plane_and_the_next_daemon_hear_of_it(layout: Layout) -> None:
    async def scenario() -> Launch:
        launch: Launch = Daemon(layout, True)._control_launch()
        return launch

    launch = asyncio.run(scenario())
    assert launch.argv[-2:] == ("--cluster-domain", "k8s.example")
    assert launch.env["WEFT_CLUSTER_DOMAIN"] == "k8s.example"


@pytest.mark.parametrize("foreign", [(), ("/opt/ztunnel",)])
def test_proxies_hear_of_it(layout: Layout, monkeypatch: pytest.MonkeyPatch, foreign: tuple[str, ...]) -> None:
    launches: list[Callable[[], Launch]] = []

    class Started:
        def __init__(self, _name: str, launch: Callable[[], Launch], _record: Path) -> None:
            launches.append(launch)

        async def run(self) -> None:
            """It runs."""

    async def scenario() -> Any:
        async with asyncio.TaskGroup() as group:
            NodeRun(layout, "a", node_addresses(1, ()))._start("ztunnel", group, ["ztunnel"], foreign=foreign)

    monkeypatch.setattr("lab.node.Program", Started)
    monkeypatch.setattr("lab.node.cgroup.create", lambda _path: None)
    asyncio.run(scenario())
    assert [one().env["CLUSTER_DOMAIN"] for one in launches] == ["k8s.example"]
