"""What the node knows of the mesh: taken in, passed on, refused in part, and remembered across a restart."""

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from mesh.delta import Resource
from mesh.identity import Identity
from mesh.local_mesh import LocalMesh
from mesh.matching import Connection
from mesh.policy import Action, Match, Policy, Scope, StringMatch
from mesh.policy_set import evaluate
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, encode_policy, encode_service, encode_workload
from mesh.trust_domains import TrustDomains
from mesh.workload import Service, TunnelProtocol, Workload
from tests.answers import answer, update
from wire.mesh_cache import MeshCache
from ztunnel import mesh_view
from ztunnel.channel import UpdateInventory, UpdatePolicies
from ztunnel.config_dump import dump_mesh
from ztunnel.mesh_view import MeshView
from ztunnel.residents import Residents

pytestmark = pytest.mark.unit

WEB = Workload("K//Pod/demo/web", "web", "demo", (ip_address("10.0.0.1"),), protocol=TunnelProtocol.HBONE, node="n1")
SERVICE = Service("web", "demo", "web.demo.svc.cluster.local", ports={80: 8080})
POLICY = Policy("demo", "deny-all", Scope.NAMESPACE, Action.ALLOW)


def take(view: MeshView, type_url: str, upserts: dict[str, bytes], removals: tuple[str, ...] = ()) -> dict[str, str]:
    resources = tuple(Resource(name, f"v-{name}", value) for name, value in upserts.items())
    return dict(asyncio.run(view.take(update(type_url, resources, removals))))


def test_taken_in_passed_on_and_remembered(tmp_path: Path) -> None:
    changes: list[UpdateInventory | UpdatePolicies] = []
    cache = MeshCache(tmp_path / "state" / "mesh.sqlite")
    view = MeshView(cache, changes.append)
    assert view.restore() == {ADDRESS_TYPE: [], AUTHORIZATION_TYPE: []} and view.restored == 0
    addresses = {WEB.uid: encode_workload(WEB), SERVICE.key: encode_service(SERVICE), "K//Pod/demo/bad": b"\x0a\x03\x1a\x01x"}
    assert list(take(view, ADDRESS_TYPE, addresses)) == ["K//Pod/demo/bad"]
    assert take(view, AUTHORIZATION_TYPE, {POLICY.key: encode_policy(POLICY)}) == {}
    assert take(view, "type.googleapis.com/other", {"x": b""}) == {}
    take(view, ADDRESS_TYPE, {"K//Pod/demo/db": encode_workload(Workload("K//Pod/demo/db", "db", "demo"))})
    take(view, ADDRESS_TYPE, {}, ("K//Pod/demo/db",))
    assert changes[:3] == [
        UpdateInventory([WEB, SERVICE], [], unfinished=True),
        UpdatePolicies([POLICY], []),
        UpdateInventory([], []),
    ]
    assert changes[-1] == UpdateInventory([], ["K//Pod/demo/db"])
    cache.close()

    assert (tmp_path / "state" / "mesh.sqlite").stat().st_mode & 0o777 == 0o600
    again = MeshView(MeshCache(tmp_path / "state" / "mesh.sqlite"), changes.append)
    versions = {url: {one.name: one.version for one in resources} for url, resources in again.restore().items()}
    assert versions == {
        ADDRESS_TYPE: {WEB.uid: f"v-{WEB.uid}", SERVICE.key: f"v-{SERVICE.key}"},
        AUTHORIZATION_TYPE: {POLICY.key: f"v-{POLICY.key}"},
    }
    assert again.inventory.workload(WEB.uid) == WEB and again.policies.policy(POLICY.key) == POLICY and again.restored == 3


def test_policies_hold_in_every_trust_domain_of_the_mesh(tmp_path: Path) -> None:
    view = MeshView(MeshCache(tmp_path / "m.sqlite"), lambda _: None, TrustDomains("cluster.local", frozenset({"old"})))
    exact = Match(principals=(StringMatch("exact", "old/ns/demo/sa/web"),))
    allow = replace(POLICY, rules=(((exact,),),))
    take(view, AUTHORIZATION_TYPE, {POLICY.key: encode_policy(allow)})
    policy = view.policies.policy(POLICY.key)
    assert policy is not None
    for domain, allowed in (("cluster.local", True), ("old", True), ("other", False)):
        peer = Connection(ip_address("10.0.0.2"), Identity(domain, "demo", "web"), ip_address("10.0.0.1"), 80)
        assert evaluate([policy], peer).allowed is allowed


def test_local_configuration_and_control_side_by_side(tmp_path: Path) -> None:
    changes: list[UpdateInventory | UpdatePolicies] = []
    view = MeshView(MeshCache(tmp_path / "mesh.sqlite"), changes.append)
    assert dump_mesh(view)["staticConfig"] == {"workloads": [], "policies": [], "services": []}
    local = replace(WEB, node="local", services={SERVICE.key: {80: 1}})
    view.take_local(LocalMesh((local,), (SERVICE,), (POLICY,)))
    assert changes == [UpdatePolicies([POLICY], []), UpdateInventory([local, SERVICE], [])]
    shown = dump_mesh(view)
    assert shown["staticConfig"]["workloads"][0]["services"] == {SERVICE.key: {80: 1}}
    assert [len(shown["staticConfig"][key]) for key in ("services", "policies")] == [1, 1] and shown["workloads"]
    database = replace(WEB, uid="K//Pod/demo/db")
    take(view, ADDRESS_TYPE, {WEB.uid: encode_workload(WEB), database.uid: encode_workload(database)})
    assert view.inventory.workload(WEB.uid) == WEB, "control knows better"
    take(view, ADDRESS_TYPE, {}, (WEB.uid, SERVICE.key, database.uid))
    assert view.inventory.workload(WEB.uid) == local and view.inventory.service(SERVICE.key) == SERVICE
    assert changes[-1] == UpdateInventory([local, SERVICE], [WEB.uid, SERVICE.key, database.uid])
    assert list(view.inventory.workloads()) == [local]
    take(view, AUTHORIZATION_TYPE, {}, (POLICY.key,))
    assert view.policies.policy(POLICY.key) == POLICY
    assert view.restore() == {ADDRESS_TYPE: [], AUTHORIZATION_TYPE: []}, "what is local is not kept as control's"


def test_what_is_local_is_a_part_until_control_has_told_all(tmp_path: Path) -> None:
    """Else a pod would be served without the policies, and past the waypoints, that only control knows."""
    changes: list[UpdateInventory | UpdatePolicies] = []
    view = MeshView(MeshCache(tmp_path / "mesh.sqlite"), changes.append)
    view.take_local(LocalMesh((WEB,), (SERVICE,), ()))
    view.restore()

    def unfinished() -> set[bool]:
        return {one.unfinished for one in view.statements() if isinstance(one, UpdateInventory)}

    assert unfinished() == {True}
    take(view, ADDRESS_TYPE, {})
    assert unfinished() == {True}
    take(view, AUTHORIZATION_TYPE, {POLICY.key: encode_policy(POLICY)})
    assert unfinished() == {False} and changes[-1] == UpdateInventory([], [], False)
    again = MeshView(MeshCache(tmp_path / "mesh.sqlite"), lambda _: None)
    again.take_local(LocalMesh((WEB,), (SERVICE,), ()))
    again.restore()
    assert not any(one.unfinished for one in again.statements() if isinstance(one, UpdateInventory)), "the disk has told all"


def test_local_configuration_that_changes_is_told_as_far_as_it_is_another_and_control_says_nothing(tmp_path: Path) -> None:
    changes: list[UpdateInventory | UpdatePolicies] = []
    view = MeshView(MeshCache(tmp_path / "mesh.sqlite"), changes.append)
    database, cache = replace(WEB, uid="K//Pod/demo/db", name="db"), replace(WEB, uid="K//Pod/demo/cache", name="cache")
    other = replace(POLICY, name="other")
    view.take_local(LocalMesh((WEB, database, cache), (SERVICE,), (POLICY, other)))
    take(view, ADDRESS_TYPE, {cache.uid: encode_workload(cache)})  # control comes to know one of them, just as it is told here
    del changes[:]
    moved = replace(database, node="elsewhere")
    view.take_local(LocalMesh((replace(WEB), moved), (), (replace(POLICY), replace(other, action=Action.DENY))))
    assert changes == [UpdatePolicies([replace(other, action=Action.DENY)], []), UpdateInventory([moved], [SERVICE.key])]
    assert view.inventory.workload(cache.uid) == cache and dump_mesh(view)["staticConfig"]["services"] == []
    view.take_local(LocalMesh((WEB, moved), (), (POLICY, replace(other, action=Action.DENY))))
    assert len(changes) == 2, "nothing is another"
    view.take_local(LocalMesh())
    assert changes[2:] == [UpdateInventory([], [WEB.uid, database.uid]), UpdatePolicies([], [POLICY.key, other.key])]
    assert [one.uid for one in view.inventory.workloads()] == [cache.uid]
    take(view, ADDRESS_TYPE, {}, (cache.uid,))
    assert not list(view.inventory.workloads()), "it was taken away here meanwhile"


def test_a_worker_that_starts_is_told_all_in_pieces_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_view, "_PIECE", 2)
    view = MeshView(MeshCache(tmp_path / "mesh.sqlite"), lambda _: None)
    pods = [Workload(f"K//Pod/demo/{number}", str(number), "demo") for number in range(5)]
    take(view, ADDRESS_TYPE, {pod.uid: encode_workload(pod) for pod in pods})
    statements = list(view.statements())
    assert [len(message.upserts) for message in statements] == [2, 2, 1, 0]
    assert {one for message in statements[:3] for one in map(str, message.upserts)} == set(map(str, pods))


def test_residents_are_local_workloads_and_pods() -> None:
    residents = Residents("n1")
    plain = Workload("K//Pod/demo/db", "db", "demo", service_account="db", node="n1")
    away = Workload("K//Pod/demo/far", "far", "demo", service_account="far", protocol=TunnelProtocol.HBONE, node="n2")
    residents.update([WEB, plain, away, SERVICE], [])
    web, db, far = (Identity("cluster.local", "demo", name) for name in ("default", "db", "far"))
    assert residents.meshed() == {web}
    assert residents.at_home(web) and residents.at_home(db) and not residents.at_home(far)
    residents.set_pods([("demo", "far")])
    assert residents.at_home(far)
    residents.set_pods([])
    residents.update([Workload(WEB.uid, "web", "demo", node="n2")], [plain.uid])
    assert not residents.meshed() and not any(map(residents.at_home, (web, db, far)))


@pytest.mark.parametrize("first", [ADDRESS_TYPE, AUTHORIZATION_TYPE])
def test_nobody_decides_by_a_part_of_the_first_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Without the services a pod would send past their waypoints, without the policies it would let in whomever they forbid."""
    monkeypatch.setattr(mesh_view, "_PIECE", 1)
    changes: list[UpdateInventory | UpdatePolicies] = []
    view = MeshView(MeshCache(tmp_path / "mesh.sqlite"), changes.append)
    view.restore()
    state = {
        ADDRESS_TYPE: {WEB.uid: encode_workload(WEB), SERVICE.key: encode_service(SERVICE), "last": b"not to be read"},
        AUTHORIZATION_TYPE: {POLICY.key: encode_policy(POLICY)},
    }
    for type_url in sorted(state, key=lambda one: one != first):
        assert [one.unfinished for one in view.statements() if isinstance(one, UpdateInventory)][-1]
        take(view, type_url, state[type_url])
    told = [one.unfinished for one in changes if isinstance(one, UpdateInventory)]
    assert told == [*[True] * (len(told) - 1), False] and len(told) == 3
    assert isinstance(changes[-1], UpdateInventory) and not any(
        one.unfinished for one in view.statements() if isinstance(one, UpdateInventory)
    )
    changes.clear()
    take(view, AUTHORIZATION_TYPE, {}, (POLICY.key,))
    take(view, ADDRESS_TYPE, {"K//Pod/demo/db": encode_workload(replace(WEB, uid="K//Pod/demo/db"))})
    assert [isinstance(one, UpdateInventory) and one.unfinished for one in changes] == [False, False]


def test_a_large_update_is_taken_in_by_pieces_and_takes_away_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_view, "_PIECE", 2)
    told: list[UpdateInventory | UpdatePolicies] = []
    view = MeshView(MeshCache(tmp_path / "mesh.sqlite"), told.append)
    pods = [Workload(f"K//Pod/demo/{number}", str(number), "demo") for number in range(5)]
    take(view, ADDRESS_TYPE, {WEB.uid: encode_workload(WEB)})
    take(view, ADDRESS_TYPE, {pod.uid: encode_workload(pod) for pod in pods}, (WEB.uid, pods[0].uid, pods[4].uid))
    assert told[1:] == [
        UpdateInventory(pods[:2], [], unfinished=True),
        UpdateInventory(pods[2:4], [], unfinished=True),
        UpdateInventory(pods[4:], [WEB.uid, pods[4].uid]),
    ]
    assert list(view.inventory.workloads()) == pods
    assert {one.name for one in view.restore()[ADDRESS_TYPE]} == {pod.uid for pod in pods}


def test_an_update_that_broke_off_leaves_a_part_until_it_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_view, "_PIECE", 2)
    changes: list[UpdateInventory | UpdatePolicies] = []
    broken = False

    def change(message: UpdateInventory | UpdatePolicies) -> None:
        if broken and len(changes) == 1:
            raise RuntimeError("broken")
        changes.append(message)

    view = MeshView(MeshCache(tmp_path / "m.sqlite"), change)
    several = [replace(WEB, uid=f"K//Pod/demo/{number}") for number in range(5)]
    broken = True
    with pytest.raises(RuntimeError):
        take(view, ADDRESS_TYPE, {one.uid: encode_workload(one) for one in several})
    broken = False
    take(view, AUTHORIZATION_TYPE, {POLICY.key: encode_policy(POLICY)})
    assert changes == [UpdateInventory(several[:2], [], unfinished=True), UpdatePolicies([POLICY], [])]
    take(view, ADDRESS_TYPE, {one.uid: encode_workload(one) for one in several})
    assert changes[-1] == UpdateInventory(several[4:], [])


@pytest.mark.parametrize("type_url", [ADDRESS_TYPE, AUTHORIZATION_TYPE])
def test_where_memory_ends_within_a_change_no_worker_begins_with_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_url: str
) -> None:
    """The policy that was to be replaced is gone: who started with what is left would let in whomever it keeps out."""
    changes: list[UpdateInventory | UpdatePolicies] = []
    view = MeshView(MeshCache(tmp_path / "m.sqlite"), changes.append)
    told = {ADDRESS_TYPE: {WEB.uid: encode_workload(WEB)}, AUTHORIZATION_TYPE: {POLICY.key: encode_policy(POLICY)}}
    for url, resources in told.items():
        take(view, url, resources)

    def unfinished() -> set[bool]:
        return {one.unfinished for one in view.statements() if isinstance(one, UpdateInventory)}

    assert unfinished() == {False}
    half = view.inventory if type_url == ADDRESS_TYPE else view.policies
    whole = half.apply

    def broken(_upserts: list[object], removals: list[str]) -> None:
        whole([], [*told[type_url], *removals])
        raise MemoryError

    with monkeypatch.context() as memory_ends:
        memory_ends.setattr(half, "apply", broken)
        before = len(changes)
        with pytest.raises(MemoryError):
            take(view, type_url, told[type_url])
    assert unfinished() == {True} and len(changes) == before, "who runs goes on with what it was told"
    other = ADDRESS_TYPE if type_url == AUTHORIZATION_TYPE else AUTHORIZATION_TYPE
    take(view, other, told[other])
    assert unfinished() == {True}
    take(view, type_url, told[type_url])
    assert unfinished() == {False} and [one for one in changes if isinstance(one, UpdateInventory)][-1].unfinished is False
    assert view.inventory.workload(WEB.uid) == WEB and view.policies.policy(POLICY.key) == POLICY


def test_a_cache_that_holds_a_part_of_the_first_state_is_no_better_than_none(tmp_path: Path) -> None:
    """One that ended after its first addresses and before its first policies would let in whom they forbid."""
    cache = MeshCache(tmp_path / "mesh.sqlite")
    cache.apply(ADDRESS_TYPE, answer(ADDRESS_TYPE, [Resource(WEB.uid, "1", encode_workload(WEB))]))
    view = MeshView(cache, lambda _: None)
    view.restore()
    assert [message.unfinished for message in view.statements() if isinstance(message, UpdateInventory)] == [True]
    cache.apply(AUTHORIZATION_TYPE, answer(AUTHORIZATION_TYPE, []))  # there are none: that is an answer
    again = MeshView(cache, lambda _: None)
    again.restore()
    assert [message.unfinished for message in again.statements() if isinstance(message, UpdateInventory)] == [False]
