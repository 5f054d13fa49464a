"""The state of the mesh, and what of it a restart finds again."""

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

import control.cluster
from control.cluster import MAX_SHOWN, Cluster, NotTaken
from control.index import Index
from control.reports import PodReport
from control.store import Store
from control.table import Resources
from control.tokens import Tokens
from control.workloads import MeshNames
from mesh.manifests import parse
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE
from tests.control.conftest import DEADLINE_S

pytestmark = pytest.mark.unit

NODE = "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}"
SERVICE = "\n---\n{apiVersion: v1, kind: Service, metadata: {name: web, namespace: demo}, spec: {ports: [{port: 80}]}}"
POD = """
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: demo}
spec: {serviceAccountName: ACCOUNT, containers: [{name: c, command: [x]}]}
"""
POLICY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: none, namespace: demo}
spec: {action: DENY, rules: [{}]}
"""
RANGES = [ip_network("10.96.0.0/24")]


def cluster_on(store: Store) -> Cluster:
    return Cluster(MeshNames(), RANGES, store, Tokens(store))


def apply(cluster: Cluster, text: str) -> None:
    assert not cluster.replace_objects(parse({"all": text}).objects)


def pods(*names: str) -> list[PodReport]:
    return [PodReport("demo", name, "lab", f"uid-{name}", "n1", (ip_address(f"10.244.1.{ord(name)}"),)) for name in names]


@contextmanager
def breaking_off(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, errors: Iterable[Exception | None]
) -> Iterator[None]:
    """A method does its work, and then ends in the next of some errors, while any are left."""
    made, left = getattr(owner, method), iter(errors)

    def broken(*arguments: Any) -> Any:
        found = made(*arguments)
        error = next(left, None)
        if error is not None:
            raise error
        return found

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, broken)
        yield


@contextmanager
def without_memory(monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> Iterator[None]:
    """A method ends before it has done anything."""

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as memory_ends:
        memory_ends.setattr(owner, method, fail)
        yield


@contextmanager
def refusing(store: Store) -> Iterator[None]:
    """The database takes nothing."""
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
        yield
        connection.exec_driver_sql("PRAGMA query_only=OFF")


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_pod_that_went_while_the_database_took_nothing_is_not_there_after_a_restart(tmp_path: Path, by_itself: bool) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE)
    cluster.report("lab", pods("a", "b"))
    with refusing(store):
        cluster.report("lab", pods("a"))
        assert "make room" in cluster.unkept
    if by_itself:
        cluster.keep()
    else:
        cluster.report("lab", pods("a", "c"))
    assert not cluster.unkept
    assert {one.name for one in store.reports()} == ({"a"} if by_itself else {"a", "c"})
    store.close()


def test_what_the_database_takes_does_not_hide_what_it_lacks(tmp_path: Path) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    with refusing(store):
        apply(cluster, NODE + SERVICE)
    cluster.report("lab", pods("a"))
    assert cluster.unkept and not store.addresses()
    cluster.keep()
    assert not cluster.unkept and set(store.addresses()) == {"demo/web"}
    with refusing(store):
        apply(cluster, NODE)
    apply(cluster, NODE + SERVICE)  # as the database has it
    assert not cluster.unkept
    store.close()


def test_who_reports_nothing_wrong_is_not_remembered(tmp_path: Path) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE)
    [elsewhere] = pods("a")
    for number in range(3):
        assert cluster.report(f"lab-{number}", [PodReport("demo", "x", "lab", "u", "n2")])
        assert not cluster.report(f"lab-{number}", [elsewhere])
    assert not cluster.misplaced
    store.close()


def test_what_is_the_same_as_before_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE)
    elsewhere = [replace(one, node="n2") for one in pods(*map(chr, range(65, 65 + MAX_SHOWN + 3)))]
    for _ in range(2):
        assert len(cluster.report("lab", elsewhere)) == len(elsewhere)
    assert sum("pod not taken" in message for message in caplog.messages) == MAX_SHOWN
    cluster.report("lab", elsewhere[:1])
    assert caplog.messages[-1] == "pod not taken: pod=demo/A reporter=lab: node 'n2' is no Node object: apply it first"
    with refusing(store):
        cluster.report("lab", pods("a"))
        apply(cluster, NODE + SERVICE)
        for _ in range(2):
            cluster.keep()
    assert sum("a restart forgets it" in message for message in caplog.messages) == 1
    store.close()


def test_a_report_that_changes_nothing_tells_nobody_anything(tmp_path: Path) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE)
    told = list[int]()
    cluster.objects_changed.listen(lambda: told.append(cluster.revision))
    cluster.report("lab", pods("a"))
    revision = cluster.revision
    cluster.report("lab", pods("a"))
    assert cluster.revision == revision and not told, "nor does any report change the objects"
    apply(cluster, NODE + SERVICE)
    assert cluster.revision == revision + 1 and told == [cluster.revision]
    store.close()


def test_objects_are_told_as_they_are_now_services_with_their_addresses(tmp_path: Path) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)

    def told(*kinds: str) -> list[tuple[str, list[str]]]:
        found = [json.loads(one) for one in cluster.objects_json(kinds)]
        return [(one["kind"], one["spec"].get("clusterIPs", one["spec"].get("podCIDRs"))) for one in found]

    apply(cluster, NODE + SERVICE)
    [address] = store.addresses()["demo/web"]
    node, service = ("Node", ["10.244.1.0/24"]), ("Service", [str(address)])
    assert (told(), told("Service"), told("Node", "Service"), told("Pod")) == ([node, service], [service], [node, service], [])
    cidr = ip_network("10.244.9.0/24")
    apply(cluster, NODE.replace("10.244.1.0/24", str(cidr)) + SERVICE.replace("{ports", "{clusterIP: 10.96.0.77, ports"))
    assert told() == [("Node", [str(cidr)]), ("Service", ["10.96.0.77"])]
    apply(cluster, NODE)
    assert told() == [node] and store.addresses() == {}
    store.close()


def test_a_set_that_cannot_be_is_refused_whole_and_what_was_there_stays_in_force(tmp_path: Path) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    wrong = parse({"all": NODE.replace("n1", "n2") + SERVICE.replace("{ports", "{clusterIP: 192.0.2.1, ports")}).objects

    def refused() -> bool:
        before = dict(cluster.objects), cluster.revision, store.addresses(), dict(cluster.feed.snapshots)
        [problem] = cluster.replace_objects(wrong)
        return "not in a service range" in problem.reason and before == (
            cluster.objects,
            cluster.revision,
            store.addresses(),
            cluster.feed.snapshots,
        )

    assert refused() and not cluster.is_loaded and not cluster.has_node("n2")
    apply(cluster, NODE + SERVICE)
    cluster.report("lab", pods("a"))
    assert refused() and cluster.is_loaded and cluster.has_node("n1") and not cluster.has_node("n2")
    assert "demo/web.demo.svc.cluster.local" in cluster.feed.snapshots[ADDRESS_TYPE].resources
    store.close()


def test_a_set_that_ends_in_a_mistake_of_ours_is_named_and_what_was_there_stays_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was half made, without a policy say, and the next report told everybody."""
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE + POD.replace("ACCOUNT", "web") + POLICY)
    cluster.report("lab", pods("a"))
    revision, told, addresses = cluster.revision, dict(cluster.feed.snapshots), store.addresses()
    with breaking_off(monkeypatch, Index, "_replace_workloads", [KeyError("who")]):
        without = parse({"all": NODE + POD.replace("ACCOUNT", "web") + SERVICE}).objects
        reason = "Service demo/web, AuthorizationPolicy demo/none: cannot be taken in: internal error: KeyError: 'who'"
        with pytest.raises(NotTaken, match=re.escape(reason)):
            cluster.replace_objects(without)
    assert (cluster.revision, cluster.feed.snapshots, store.addresses()) == (revision, told, addresses)
    assert set(cluster.objects) == {"Node n1", "Pod demo/a", "AuthorizationPolicy demo/none"}
    assert cluster.runs_on("n1", "demo", "web") and cluster.has_node("n1")
    cluster.report("lab", [replace(pods("a")[0], ready=True)])
    assert cluster.feed.snapshots[AUTHORIZATION_TYPE] == told[AUTHORIZATION_TYPE], "the policy counts as before"
    assert cluster.feed.snapshots[ADDRESS_TYPE] != told[ADDRESS_TYPE], "and control goes on"
    cluster.replace_objects(without)
    assert "Service demo/web" in cluster.objects and not cluster.index.policies.nouns.keys() & {"demo/none"}
    store.close()


def test_nothing_is_told_of_a_change_that_broke_off_and_could_not_be_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory ends: a report that comes meanwhile is refused, and one that comes later finds the state before."""
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE + POD.replace("ACCOUNT", "web") + POLICY)
    told = dict(cluster.feed.snapshots)
    with breaking_off(monkeypatch, Index, "_replace_policies", repeat(MemoryError())):
        with pytest.raises(MemoryError):
            cluster.replace_objects(parse({"all": NODE}).objects)
        with pytest.raises(MemoryError):
            cluster.report("lab", pods("a"))
    assert cluster.feed.snapshots == told
    cluster.report("lab", pods("a"))
    assert cluster.feed.snapshots[AUTHORIZATION_TYPE] == told[AUTHORIZATION_TYPE] and cluster.runs("demo", "web")
    store.close()


def test_a_first_set_of_which_nobody_could_be_told_is_no_mesh_without_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes that ask then are to keep what they know."""
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    objects = parse({"all": NODE + POD.replace("ACCOUNT", "web") + POLICY}).objects
    with without_memory(monkeypatch, Resources, "take"), pytest.raises(MemoryError):
        cluster.replace_objects(objects)
    assert not cluster.is_loaded
    cluster.replace_objects(objects)
    assert cluster.is_loaded and "demo/none" in cluster.feed.snapshots[AUTHORIZATION_TYPE].resources
    store.close()


def test_a_report_that_nobody_was_told_of_is_told_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE + POD.replace("ACCOUNT", "web"))
    with without_memory(monkeypatch, Resources, "take"), pytest.raises(MemoryError):
        cluster.report("lab", pods("a"))
    assert not cluster.feed.snapshots[ADDRESS_TYPE].resources
    cluster.report("lab", pods("a"))
    assert cluster.feed.snapshots[ADDRESS_TYPE].resources
    revision = cluster.revision
    cluster.report("lab", pods("a"))
    assert cluster.revision == revision, "it is told once"
    store.close()


def test_a_report_is_not_judged_by_what_is_left_of_an_index_that_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nodes may lack: the pods of all of them were taken for misplaced, and gone, and dialled in plain then."""
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE + POD.replace("ACCOUNT", "web"))
    cluster.report("lab", pods("a"))
    told = dict(cluster.feed.snapshots)
    with without_memory(monkeypatch, Index, "replace_objects"), pytest.raises(MemoryError):
        cluster.replace_objects(parse({"all": NODE + POD.replace("ACCOUNT", "web") + SERVICE}).objects)
    assert not cluster.report("lab", pods("a")) and {one.name for one in store.reports()} == {"a"}
    assert cluster.feed.snapshots == told
    store.close()


@pytest.mark.parametrize("types", [0, 1])
def test_a_change_that_breaks_off_before_it_is_told_is_told_by_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types: int
) -> None:
    """As where memory ends: a new DENY was in force for control, and no node heard of it before the next policy changed."""
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE + POD.replace("ACCOUNT", "web"))
    objects = parse({"all": NODE + POD.replace("ACCOUNT", "web") + SERVICE + POLICY}).objects
    errors = chain([None] * types, repeat(MemoryError()))
    with breaking_off(monkeypatch, Resources, "take", errors), pytest.raises(MemoryError):
        cluster.replace_objects(objects)
    assert not cluster.feed.snapshots[AUTHORIZATION_TYPE].resources.keys() & {"demo/none"}
    cluster.replace_objects(objects)
    assert "demo/none" in cluster.feed.snapshots[AUTHORIZATION_TYPE].resources
    assert any("web" in name for name in cluster.feed.snapshots[ADDRESS_TYPE].resources)
    store.close()


@pytest.mark.parametrize("persistent", [True, False])
def test_a_report_that_breaks_off_leaves_in_force_what_was_and_is_taken_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, persistent: bool
) -> None:
    """It was remembered and told of nobody: its reporter, which tries again, has nothing new to say then."""
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE + POD.replace("ACCOUNT", "web") + POD.replace("ACCOUNT", "web").replace("name: a", "name: b"))
    cluster.report("lab", pods("a"))
    told = dict(cluster.feed.snapshots)
    with monkeypatch.context() as patched:
        made = Index._replace_workloads

        def replace_workloads(index: Index, dirty: Iterable[tuple[str, str]]) -> None:
            keys = list(dirty)
            if ("demo", "b") in keys and (persistent or index is before):
                raise MemoryError
            made(index, keys)

        before = cluster.index
        patched.setattr(Index, "_replace_workloads", replace_workloads)
        with pytest.raises(MemoryError):
            cluster.report("lab", [replace(pods("a")[0], ready=True), *pods("b")])
    assert cluster.feed.snapshots == told and {one.name for one in store.reports()} == {"a"}
    cluster.report("lab", [replace(pods("a")[0], ready=True), *pods("b")])
    assert {one.split("/")[-1] for one in cluster.feed.snapshots[ADDRESS_TYPE].resources} >= {"a", "b"}
    assert {one.name: one.ready for one in store.reports()} == {"a": True, "b": False}
    store.close()


def test_of_many_objects_that_cannot_be_taken_in_some_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    nodes = "\n---\n".join(NODE.replace("n1", f"n{number}") for number in range(MAX_SHOWN + 2))

    def fail(*_: object) -> None:
        raise KeyError("who")

    monkeypatch.setattr(Index, "replace_objects", fail)
    with pytest.raises(NotTaken, match=rf"^Node n0, .*, Node n{MAX_SHOWN - 1} and 2 more: cannot"):
        cluster.replace_objects(parse({"all": nodes.replace("10.244.1.0/24", "")}).objects)
    assert not cluster.is_loaded and not cluster.index.nodes
    store.close()


def test_a_restart_finds_the_pods_that_were_reported_and_waits_for_what_is_written_of_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE + written("web"))
    cluster.report("lab", pods("a"))
    again = cluster_on(store)
    assert not again.is_loaded and not again.index.workloads.nouns
    apply(again, NODE + written("web"))
    assert again.is_loaded and again.index.workloads.nouns == cluster.index.workloads.nouns != {}
    store.close()


def test_a_report_is_written_as_what_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of pods one may come a second."""
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE)
    monkeypatch.delattr(Store, "replace_all_reports")
    cluster.report("lab", pods("a", "b"))
    cluster.report("lab", pods("b", "c"))
    assert {one.name for one in store.reports()} == {"b", "c"}
    store.close()


def test_what_the_database_does_not_take_is_written_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control.cluster, "RETRY_S", 0.001)
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE)

    async def scenario() -> None:
        trying = asyncio.ensure_future(cluster.keep_trying())
        for names in ("ab", "cd"):
            with refusing(store):
                cluster.report("lab", pods(*names))
            assert cluster.unkept
            async with asyncio.timeout(DEADLINE_S):
                while cluster.unkept:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            assert {one.name for one in store.reports()} == set(names)
        trying.cancel()

    asyncio.run(scenario())
    store.close()


def written(account: str) -> str:
    return POD.replace("ACCOUNT", account)


@pytest.mark.parametrize("is_written_first", [True, False])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_pod_that_is_written_with_another_account_runs_once_it_is_reported_as_another(
    tmp_path: Path, restarts: bool, is_written_first: bool
) -> None:
    """Else a node would be given an identity that nothing there has, and proxies would take who runs there for it."""
    store = Store(tmp_path / "control.db")
    cluster = cluster_on(store)
    apply(cluster, NODE + (written("web") if is_written_first else ""))
    cluster.report("lab", pods("a"))
    apply(cluster, NODE + written("web"))
    assert cluster.index.runs_on("n1", "demo", "web") and cluster.index.workloads.nouns
    apply(cluster, NODE)
    if restarts:
        cluster = cluster_on(store)
    apply(cluster, NODE + written("vault"))
    assert not cluster.index.runs("demo", "vault") and not cluster.index.workloads.nouns, "the former one is what runs"
    cluster.report("lab", [replace(one, ready=True) for one in pods("a")])
    assert not cluster.index.runs("demo", "vault") and not cluster.index.workloads.nouns
    apply(cluster, NODE + written("web"))
    assert cluster.index.runs_on("n1", "demo", "web"), "it was itself all the time"
    apply(cluster, NODE + written("vault"))
    cluster.report("lab", [replace(one, uid="another") for one in pods("a")])
    [workload] = cluster.index.workloads.nouns.values()
    assert cluster.index.runs_on("n1", "demo", "vault") and workload.service_account == "vault"
    store.close()
