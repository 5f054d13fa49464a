"""What the agent takes in of control's answers."""

import asyncio
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from agent.agent_events import AgentEvents
from agent.mesh_view import MeshView
from agent.pod import PodRequest
from mesh.delta import Resource
from mesh.identity import Identity
from mesh.inventory import Inventory
from mesh.policy import Action, Policy, Scope
from mesh.policy_set import PolicyGroup
from mesh.proto import authorization_pb2, workload_pb2
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, encode_policy
from mesh.workload import Workload
from tests.answers import update
from tests.strict import STRICT
from wire.mesh_cache import MeshCache

pytestmark = pytest.mark.unit


def test_a_type_that_nobody_asked_for_is_no_policy(tmp_path: Path) -> None:
    view = MeshView("", AgentEvents("node-a"), MeshCache(tmp_path / "mesh.sqlite"))
    deny = authorization_pb2.Authorization(name="deny", namespace="shop", action=authorization_pb2.DENY).SerializeToString()
    other = "type.googleapis.com/istio.workload.Other"
    asyncio.run(view.take(update(AUTHORIZATION_TYPE, [Resource("shop/deny", "1", deny)])))
    before = list(view.policies.policies())
    assert [one.key for one in before] == ["shop/deny"]
    assert not asyncio.run(view.take(update(other, [Resource("shop/more", "1", deny)], ["shop/deny"])))
    assert list(view.policies.policies()) == before


def test_a_pod_is_of_its_meshs_trust_domain_also_before_control_tells_of_it(tmp_path: Path) -> None:
    view = MeshView("", AgentEvents("node-a"), MeshCache(tmp_path / "mesh.sqlite"))
    web, db = (PodRequest(name, "shop", name, name, "") for name in ("web", "db"))
    assert view.identity_of(web, "node-a") == Identity("cluster.local", "shop", "web")
    told = workload_pb2.Workload(uid="c//Pod/shop/web", name="web", namespace="shop", service_account="web", node="node-a")
    told.trust_domain = "shop.example"
    asyncio.run(
        view.take(update(ADDRESS_TYPE, [Resource(told.uid, "1", workload_pb2.Address(workload=told).SerializeToString())]))
    )
    assert view.identity_of(web, "node-a") == Identity("shop.example", "shop", "web")
    assert view.identity_of(db, "node-a") == Identity("shop.example", "shop", "db")


def authorization(name: str, action: Action, version: str) -> Resource:
    """For all who prove no identity."""
    told = Policy("shop", name, Scope.GLOBAL, action, STRICT.rules)
    return Resource(told.key, version, encode_policy(told))


def told_workload(name: str, address: str) -> Resource:
    told = workload_pb2.Workload(uid=f"c//Pod/shop/{name}", name=name, namespace="shop", addresses=[ip_address(address).packed])
    return Resource(told.uid, "1", workload_pb2.Address(workload=told).SerializeToString())


def known(view: MeshView) -> tuple[list[Workload], list[Policy], Workload | None, Workload | None]:
    holders = (view.workload_at(ip_address(f"10.1.0.{number}")) for number in (1, 2))
    return [*view.inventory.workloads()], [*view.policies.policies()], *holders


@pytest.mark.parametrize(
    ("owner", "method", "type_url", "brought", "gone"),
    [
        (PolicyGroup, "put", AUTHORIZATION_TYPE, authorization("deny", Action.ALLOW, "2"), ""),
        (PolicyGroup, "put", AUTHORIZATION_TYPE, authorization("other", Action.ALLOW, "1"), "shop/deny"),
        (Inventory, "_add_workload", ADDRESS_TYPE, told_workload("web", "10.1.0.2"), ""),
        (Inventory, "_add_workload", ADDRESS_TYPE, told_workload("db", "10.1.0.2"), "c//Pod/shop/web"),
        (MeshCache, "apply", AUTHORIZATION_TYPE, authorization("other", Action.ALLOW, "1"), "shop/deny"),
    ],
)
def test_of_an_update_that_breaks_off_nothing_is_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, type_url: str, brought: Resource, gone: str
) -> None:
    """Control is asked for the difference to what was known: a half of it, without a DENY say, stayed if control went back."""
    view = MeshView("", AgentEvents("node-a"), MeshCache(tmp_path / "mesh.sqlite"))
    asyncio.run(view.take(update(AUTHORIZATION_TYPE, [authorization("deny", Action.DENY, "1")])))
    asyncio.run(view.take(update(ADDRESS_TYPE, [told_workload("web", "10.1.0.1")])))
    (web,), policies, *holders = before = known(view)
    assert holders == [web, None] and len(policies) == 1
    change = update(type_url, [brought], [gone] if gone else [])
    made, errors = getattr(owner, method), iter([MemoryError()])

    def ending(*arguments: Any) -> Any:
        for error in errors:
            raise error
        return made(*arguments)

    with monkeypatch.context() as memory_ends:
        memory_ends.setattr(owner, method, ending)
        with pytest.raises(MemoryError):
            asyncio.run(view.take(change))
    assert known(view) == before
    verdict = view.evaluate_plain(web, *map(ip_address, ("10.1.0.9", "10.1.0.1")), 80)
    assert verdict is not None and verdict.policy == "shop/deny"
    assert not asyncio.run(view.take(change)) and known(view) != before, "it is told again"


def test_nobody_is_judged_by_half_of_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory does not even suffice to go back, until it does."""
    view = MeshView("", AgentEvents("node-a"), MeshCache(tmp_path / "mesh.sqlite"))
    asyncio.run(view.take(update(AUTHORIZATION_TYPE, [authorization("deny", Action.DENY, "1")])))
    asyncio.run(view.take(update(ADDRESS_TYPE, [told_workload("web", "10.1.0.1")])))
    (web,), *_ = before = known(view)
    asked = (web, *map(ip_address, ("10.1.0.9", "10.1.0.1")), 80)
    change = update(AUTHORIZATION_TYPE, [authorization("other", Action.ALLOW, "1")], ["shop/deny"])

    def ending(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as memory_ends:
        memory_ends.setattr(PolicyGroup, "put", ending)
        for _ in range(2):
            with pytest.raises(MemoryError):
                asyncio.run(view.take(change))
            assert view.evaluate_plain(*asked) is None
    asyncio.run(view.take(update(ADDRESS_TYPE, [])))
    assert known(view) == before and view.evaluate_plain(*asked) is not None
