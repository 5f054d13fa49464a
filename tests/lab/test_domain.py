"""A lab whose cluster is called otherwise: all its parts are told."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.addresses import node_addresses
from lab.claim import ClaimError, settled
from lab.daemon import Daemon
from lab.launch import Launch
from lab.layout import Layout
from lab.ledger import Ledger, load, save
from lab.node import NodeRun
from mesh.domains import CLUSTER_DOMAIN
from wire.places import PlacesError
from ztunnel.spelling import misspelt

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
    (environment,) = [one().env for one in launches]
    assert environment["CLUSTER_DOMAIN"] == "k8s.example"
    assert "WEFT_CLUSTER_DOMAIN" not in dict(misspelt(environment)), "no proxy takes it for a mistake of its operator's"


def test_a_lab_keeps_the_one_that_it_has(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(layout) == layout, "there is no lab yet"
    save(Ledger(domain="k8s.example"), layout.ledger)
    assert settled(layout) == layout
    monkeypatch.delenv("WEFT_CLUSTER_DOMAIN")
    assert settled(Layout.from_environment()).domain == "k8s.example"
    for other in ("other.example", CLUSTER_DOMAIN):
        monkeypatch.setenv("WEFT_CLUSTER_DOMAIN", other)
        reason = f"the cluster domain of this lab is k8s.example, and {other} is asked for: set WEFT_CLUSTER_DOMAIN to"
        with pytest.raises(ClaimError, match=re.escape(reason)):
            settled(Layout.from_environment())


def test_a_lab_of_before_gets_the_one_that_its_next_daemon_is_told(layout: Layout) -> None:
    save(Ledger({"a": 1}), layout.ledger)
    layout.ledger.write_text(layout.ledger.read_text().replace('"domain"', '"unknown"'))
    assert settled(layout) == layout

    async def scenario() -> None:
        save(Daemon(layout, True).ledger, layout.ledger)

    asyncio.run(scenario())
    assert load(layout.ledger) == Ledger({"a": 1}, domain="k8s.example")
