"""A policy that was not sent, a network of another name: each gap is said, once, and again when it has changed."""

import asyncio
from types import SimpleNamespace

import pytest

from mesh.inventory import Inventory
from mesh.policy import Action, Policy, Scope
from mesh.policy_store import PolicyStore
from mesh.workload import Workload
from ztunnel import gaps
from ztunnel.gaps import Gaps
from ztunnel.zds_session import PodInfo

pytestmark = pytest.mark.unit

PODS = [PodInfo("u1", "shop", "web", "default"), PodInfo("u2", "shop", "db", "default")]


def test_each_gap_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, eventually: object) -> None:
    view = SimpleNamespace(inventory=Inventory(), policies=PolicyStore())
    watch = Gaps(view, lambda: PODS, "")
    watch.look()
    listed = tuple(f"shop/p{number}" for number in range(7))
    view.inventory.apply([Workload("a", "web", "shop", authorization_policies=listed)], [])
    watch.look()
    watch.look()
    said = "pod shop/web: policies that it lists were not sent by the control plane and are not enforced: "
    assert caplog.messages == [said + "shop/p0, shop/p1, shop/p2, shop/p3, shop/p4 and 2 more"]
    view.policies.apply([Policy("shop", f"p{number}", Scope.WORKLOAD_SELECTOR, Action.DENY) for number in range(6)], [])
    monkeypatch.setattr(gaps, "DELAY_S", 0.0)

    async def change_twice() -> None:
        watch.look_soon()
        watch.look_soon()
        await eventually(lambda: len(caplog.messages) > 1)  # type: ignore[operator]
        await asyncio.sleep(0)

    asyncio.run(change_twice())
    assert caplog.messages[1:] == [said + "shop/p6"]
    view.policies.apply([Policy("shop", "p6", Scope.WORKLOAD_SELECTOR, Action.DENY)], [])
    watch.look()
    assert len(caplog.messages) == 2


def test_a_network_of_another_name_is_said_once_for_all_pods(caplog: pytest.LogCaptureFixture) -> None:
    view = SimpleNamespace(inventory=Inventory(), policies=PolicyStore())
    view.inventory.apply([Workload(name, name, "shop", network="near") for name in ("web", "db")], [])
    for network in ("near", ""):
        watch = Gaps(view, lambda: PODS, network)
        watch.look()
        watch.look()
    (said,) = caplog.messages
    assert said.startswith("pods of this node are on network 'near', this proxy on '': set NETWORK=near, or mend")


def test_a_namesake_in_another_cluster_has_no_gaps_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    view = SimpleNamespace(inventory=Inventory(), policies=PolicyStore())
    ours = Workload("ours", "web", "shop", node="n", cluster_id="ours")
    theirs = Workload("theirs", "web", "shop", node="n", cluster_id="theirs", network="far", authorization_policies=("shop/p",))
    view.inventory.apply([theirs, ours], [])
    Gaps(view, lambda: PODS, "", "n", "ours").look()
    assert not caplog.messages
