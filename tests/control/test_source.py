"""Changes of manifests on disk: what is written, what is refused, and that what is refused changes nothing."""

import asyncio
import errno
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control.cluster import Cluster
from control.folder import Folder, Texts
from control.index import Addresses, Index
from control.reports import PodReport
from control.source import MAX_LOGGED, FolderSource, Outcome
from control.store import Store
from control.tokens import Tokens
from control.workloads import MeshNames, mesh_workload
from mesh.manifests import ManifestSet, Node, Object, Pod
from mesh.workload import Workload
from tests.control.conftest import DEADLINE_S

pytestmark = pytest.mark.unit

POD = "{apiVersion: v1, kind: Pod, metadata: {name: NAME, namespace: demo}, spec: {containers: [{name: c, command: [x]}]}}"
NODE = "{apiVersion: v1, kind: Node, metadata: {name: n1}}"
SERVICE = "{apiVersion: v1, kind: Service, metadata: {name: NAME, namespace: demo, MARKS}, spec: {ports: [{port: PORT}]}}"
WISH = "labels: {istio.io/use-waypoint: gw}"


def service(name: str = "web", port: int = 80, marks: str = "labels: {}") -> str:
    return SERVICE.replace("NAME", name).replace("PORT", str(port)).replace("MARKS", marks)


class World:
    """Manifests in a folder, and a control plane that reads them."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder = folder
        self.cluster = Cluster(MeshNames(), [ip_network("10.96.0.0/24")], store, Tokens(store))
        self.source = FolderSource(Folder(folder), self.cluster)

    def apply(self, *texts: str, dry_run: bool = False) -> Outcome:
        files = {f"given-{number}.yaml": text for number, text in enumerate(texts)}
        return asyncio.run(self.source.apply(files, dry_run))

    def delete(self, text: str, dry_run: bool = False) -> Outcome:
        return asyncio.run(self.source.delete({"given.yaml": text}, dry_run))

    def refresh(self) -> None:
        asyncio.run(self.source.refresh())

    @property
    def written(self) -> Mapping[str, str]:
        return {path.name: path.read_text() for path in self.folder.iterdir()}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = Store(tmp_path / "control.db")
    (tmp_path / "manifests").mkdir()
    yield World(tmp_path / "manifests", store)
    store.close()


def shown(outcome: Outcome) -> list[tuple[str, str, bool]]:
    return [(one.file, one.reason, one.warning) for one in outcome.problems]


def test_what_changes_is_written_and_what_does_not_is_left_alone(world: World) -> None:
    made = world.apply(NODE, service())
    assert made.changes == [("Node n1", "created"), ("Service demo/web", "created")] and not made.is_refused
    assert set(world.written) == {"node..n1.yaml", "service.demo.web.yaml"} and set(world.cluster.objects) == {
        "Node n1",
        "Service demo/web",
    }
    (world.folder / "node..n1.yaml").write_text(NODE + " # mine")
    made = world.apply(NODE, service(port=81))
    assert made.changes == [("Node n1", "unchanged"), ("Service demo/web", "configured")]
    assert world.written["node..n1.yaml"] == NODE + " # mine", "an equal object is not written over"
    revision = world.cluster.revision
    assert world.apply(service(port=81)).changes == [("Service demo/web", "unchanged")]
    assert world.cluster.revision == revision


def test_a_node_keeps_the_ranges_that_its_manifest_does_not_name(world: World) -> None:
    """The lab chooses them, and wrote them again after each `weft apply` of that manifest, which took them away."""
    ranges = NODE.replace("}}", "}, spec: {podCIDRs: [10.244.1.0/24]}}")
    world.apply(NODE)
    assert world.apply(ranges).changes == [("Node n1", "configured")]
    written = world.written
    assert world.apply(NODE).changes == [("Node n1", "unchanged")] and world.written == written
    assert world.apply(NODE.replace("n1", "n1, labels: {a: b}")).changes == [("Node n1", "configured")]
    node = world.cluster.objects["Node n1"]
    assert isinstance(node, Node) and node.metadata.labels == {"a": "b"} and node.pod_cidrs == (ip_network("10.244.1.0/24"),)
    assert world.apply(ranges.replace("10.244.1", "10.244.2")).changes == [("Node n1", "configured")]
    node = world.cluster.objects["Node n1"]
    assert isinstance(node, Node) and node.pod_cidrs == (ip_network("10.244.2.0/24"),)


def test_what_is_there_is_deleted_and_what_is_not_is_absent(world: World) -> None:
    world.apply(NODE, service())
    gone = world.delete(f"{service(port=99)}\n---\n{service('other')}")
    assert gone.changes == [("Service demo/web", "deleted"), ("Service demo/other", "absent")]
    assert set(world.written) == {"node..n1.yaml"} and set(world.cluster.objects) == {"Node n1"}
    assert world.delete(service()).changes == [("Service demo/web", "absent")]


def test_a_dry_run_says_what_would_happen_and_changes_nothing(world: World) -> None:
    world.apply(service())
    before, revision = world.written, world.cluster.revision
    assert world.apply(service(port=81), dry_run=True).changes == [("Service demo/web", "configured")]
    assert world.delete(service(), dry_run=True).changes == [("Service demo/web", "deleted")]
    assert world.apply(service(port=0), dry_run=True).is_refused
    assert (world.written, world.cluster.revision) == (before, revision)


def test_of_a_change_with_a_mistake_nothing_is_made(world: World) -> None:
    world.apply(service())
    before = world.written
    refused = world.apply(service("new"), service(port=0))
    assert refused.is_refused and not refused.changes and world.written == before
    fixed = service().replace("spec: {", "spec: {clusterIP: 192.0.2.1, ")
    refused = world.apply(service("new"), NODE, fixed)
    assert not refused.changes and world.written == before
    assert shown(refused) == [
        (
            "given-2.yaml",
            "192.0.2.1 is not in a service range (10.96.0.0/24): choose one inside, or leave it out",
            False,
        )
    ], "named where its author wrote it"


def test_a_wrong_file_holds_up_every_change_but_its_own_mending(world: World) -> None:
    world.apply(service())
    (world.folder / "service.demo.web.yaml").write_text(service(port=0))
    refused = world.apply(service("new"))
    assert shown(refused) == [("service.demo.web.yaml", "0 is not between 1 and 65535", False)] and not refused.changes
    assert "service.demo.new.yaml" not in world.written
    assert set(world.cluster.objects) == {"Service demo/web"}, "the last good state stays in force"
    assert world.apply(service("new"), service(port=82)).changes == [
        ("Service demo/new", "created"),
        ("Service demo/web", "created"),
    ]
    assert not world.source.problems and len(world.cluster.objects) == 2


def test_files_that_are_right_each_and_cannot_be_together_change_nothing(world: World) -> None:
    world.apply(service())
    objects, revision = dict(world.cluster.objects), world.cluster.revision
    (world.folder / "mine.yaml").write_text(
        f"{NODE}\n---\n{service('new').replace('spec: {', 'spec: {clusterIP: 192.0.2.1, ')}"
    )
    world.refresh()
    [problem] = world.source.problems
    assert (problem.file, problem.document, problem.warning) == ("mine.yaml", 2, False) and "service range" in problem.reason
    assert (world.cluster.objects, world.cluster.revision) == (objects, revision)
    (world.folder / "mine.yaml").unlink()
    world.refresh()
    assert not world.source.problems


def test_a_file_that_cannot_be_read_holds_up_every_change_but_its_own(world: World) -> None:
    world.apply(service())
    (world.folder / "service.demo.web.yaml").write_bytes(b"\xff")
    refused = world.apply(service("new"))
    assert [(one.file, one.warning) for one in refused.problems] == [("service.demo.web.yaml", False)]
    assert world.source.problems == refused.problems
    assert not world.apply(service()).is_refused and not world.source.problems


def test_what_stands_elsewhere_is_changed_there(world: World) -> None:
    (world.folder / "mine.yaml").write_text(f"{NODE}\n---\n{service()}")
    world.refresh()
    where = f"it stands in mine.yaml, document 2, of {world.folder}: change it there"
    for refused in (world.apply(service(port=81)), world.delete(service())):
        assert shown(refused)[0][1:] == (where, False) and not refused.changes
    assert world.apply(service()).changes == [("Service demo/web", "unchanged")]
    assert set(world.written) == {"mine.yaml"}


@pytest.fixture
def reported(world: World) -> list[PodReport]:
    """What control knows of the pods a and b when it starts again."""
    world.apply(NODE.replace("}}", "}, spec: {podCIDRs: [10.244.1.0/24]}}"), *(POD.replace("NAME", name) for name in "ab"))
    kept = [PodReport("demo", name, "lab", f"uid-{name}", "n1", (ip_address(f"10.244.1.{ord(name)}"),)) for name in "ab"]
    assert not world.cluster.report("lab", kept)
    return kept


def test_a_start_that_a_kept_report_breaks_off_names_its_pod_and_goes_on_without_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: list[PodReport]
) -> None:
    """Control takes no reports before it has started, so nobody could put that one right, and all objects were named."""

    def mistaken(names: MeshNames, pod: Pod, *rest: Any) -> Workload:
        if pod.name == "a":
            raise KeyError("a")
        made: Workload = mesh_workload(names, pod, *rest)
        return made

    monkeypatch.setattr("control.index.mesh_workload", mistaken)
    store = Store(tmp_path / "control.db")
    started = World(world.folder, store)
    started.refresh()
    [problem] = started.source.problems
    said = "Pod demo/a: what was reported cannot be taken in: internal error: KeyError: 'a'"
    assert problem.reason.startswith(said) and "weft delete these" in problem.reason and not started.cluster.is_loaded
    pod = POD.replace("NAME", "a")
    assert started.delete(pod).changes == [("Pod demo/a", "deleted")]
    assert started.cluster.is_loaded and not started.source.problems and len(started.cluster.index.workloads.nouns) == 1
    assert not started.cluster.report("lab", reported[1:])
    assert started.apply(pod).changes == [("Pod demo/a", "created")]
    store.close()


@pytest.mark.parametrize("errors", [[MemoryError()], [KeyError("a"), MemoryError()]])
def test_where_memory_ends_at_a_start_no_pod_is_to_blame(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: list[PodReport], errors: list[Exception]
) -> None:
    """Those that it did not suffice for were to be deleted."""
    coming = iter(errors)

    def ending(*_: Any) -> Workload:
        raise next(coming, MemoryError())

    monkeypatch.setattr("control.index.mesh_workload", ending)
    store = Store(tmp_path / "control.db")
    started = World(world.folder, store)
    started.refresh()
    [problem] = started.source.problems
    assert "cannot be taken in" in problem.reason and "weft delete" not in problem.reason
    monkeypatch.setattr("control.index.mesh_workload", mesh_workload)
    started.refresh()
    assert started.cluster.is_loaded and len(started.cluster.index.workloads.nouns) == len(reported)
    store.close()


def test_a_name_that_no_file_can_have_is_refused(world: World) -> None:
    refused = world.apply(NODE.replace("n1", ".".join(["a" * 62] * 4)))
    assert shown(refused) == [("given-0.yaml", "its file name would have more than 255 bytes: shorten its name", False)]
    assert not world.written


def test_one_file_is_not_written_to(tmp_path: Path) -> None:
    path, store = tmp_path / "all.yaml", Store(tmp_path / "control.db")
    path.write_text(service())
    world = World(path, store)
    refused = world.apply(service("new"))
    assert shown(refused) == [("given-0.yaml", f"control reads the one file {path}: change it there", False)]
    assert world.apply(service()).changes == [("Service demo/web", "unchanged")]
    store.close()


def test_of_warnings_those_about_what_is_wanted_are_shown(world: World) -> None:
    made = world.apply(service("old", marks=WISH))
    assert [one.warning for one in made.problems] == [True] and made.changes == [("Service demo/old", "created")]
    assert not world.apply(service()).problems
    [problem] = world.source.problems
    assert (problem.object, problem.file, problem.warning) == ("Service demo/old", "service.demo.old.yaml", True)


def test_a_disk_that_takes_nothing_is_named_and_nothing_is_changed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("control.folder.write_new", full)
        refused = world.apply(service())
    assert shown(refused) == [("", f"cannot write to {world.folder}: No space left on device: nothing was changed", False)]
    assert not refused.changes and not world.written and not world.cluster.objects


def test_a_change_whose_asker_goes_away_is_written_whole_before_anybody_looks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its files alone would be in force else."""
    begun, let, order = threading.Event(), threading.Event(), list[str]()
    read, write = world.source._folder.read, world.source._folder.write

    def slowly(writes: Mapping[str, str | None]) -> None:
        begun.set()
        assert let.wait(DEADLINE_S)
        write(writes)
        order.append("written")

    def look() -> Texts | None:
        order.append("read")
        return read()

    async def scenario() -> None:
        monkeypatch.setattr(world.source._folder, "write", slowly)
        applying = asyncio.create_task(world.source.apply({"given.yaml": NODE}, False))
        assert await asyncio.to_thread(begun.wait, DEADLINE_S)
        monkeypatch.setattr(world.source._folder, "read", look)
        applying.cancel()
        await asyncio.gather(applying, return_exceptions=True)
        looking = asyncio.create_task(world.source.refresh())
        for _ in range(20):  # it does as much as it can
            await asyncio.to_thread(int)
        let.set()
        await looking
        assert order[:2] == ["written", "read"] and set(world.cluster.objects) == {"Node n1"}

    asyncio.run(scenario())


def test_each_problem_is_logged_once_and_of_many_some(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "control.source")
    (world.folder / "a.yaml").write_text(service(port=0))
    world.refresh()
    assert "port: 0 is not between 1 and 65535" in caplog.text
    assert "manifests: refused: nodes are told nothing until it is mended" in caplog.text
    caplog.clear()
    (world.folder / "b.yaml").write_text(service("b", marks=WISH))
    world.refresh()
    assert "port: 0 is not" not in caplog.text
    (world.folder / "a.yaml").unlink()
    world.refresh()
    assert "manifests: 1 objects in force, revision=1" in caplog.text
    (world.folder / "a.yaml").write_text("\n---\n".join(service(f"x{number}", 0) for number in range(MAX_LOGGED + 3)))
    caplog.clear()
    world.refresh()
    assert sum("is not between" in record.getMessage() for record in caplog.records) == MAX_LOGGED
    assert "manifests: and 3 more: see weft status" in caplog.text
    assert "manifests: refused: the last good state stays in force" in caplog.text and world.cluster.is_loaded
    (world.folder / "a.yaml").write_text("\n---\n".join(service(f"y{number}", 0) for number in range(MAX_LOGGED)))
    caplog.clear()
    world.refresh()
    assert sum("is not between" in record.getMessage() for record in caplog.records) == MAX_LOGGED
    assert "more: see weft status" not in caplog.text


def test_what_refuses_manifests_is_an_error_and_what_does_not_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    (world.folder / "a.yaml").write_text(service(port=0))
    world.refresh()
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    caplog.clear()
    (world.folder / "a.yaml").write_text(service(marks=WISH))
    world.refresh()
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.parametrize(("look_s", "pause_s"), [(0.001, 0.1), (0.02, 0.4), (3.0, 1.0), (-0.001, 1.0), (-0.5, 10.0)])
def test_the_folder_is_looked_at_as_often_as_a_look_is_cheap(
    world: World, monkeypatch: pytest.MonkeyPatch, look_s: float, pause_s: float
) -> None:
    """One that fails (below zero) may fail again at once."""
    world.refresh()
    now, pauses = [0.0], list[float]()

    def read() -> None:
        now[0] += abs(look_s)
        if look_s < 0:
            raise KeyError("who")

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        raise asyncio.CancelledError

    monkeypatch.setattr(world.source._folder, "read", read)
    monkeypatch.setattr("control.source.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("control.source.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(world.source.follow())
    assert pauses == [pytest.approx(pause_s)]


def test_what_changes_on_disk_is_followed(world: World) -> None:
    async def scenario() -> None:
        changed = asyncio.Event()
        world.cluster.objects_changed.listen(changed.set)
        following = asyncio.ensure_future(world.source.follow())
        for name in ("one", "two"):
            (world.folder / f"{name}.yaml").write_text(service(name))
            while f"Service demo/{name}" not in world.cluster.objects:
                await changed.wait()
                changed.clear()
        following.cancel()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


@pytest.mark.parametrize("where", ["control.folder.Folder._list", "control.examination.check_references"])
def test_a_mistake_of_ours_leaves_in_force_what_was_and_control_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("who")

    def fail_otherwise(*_: object) -> None:
        raise ValueError("what")

    world.apply(service())
    revision = world.cluster.revision
    (world.folder / "new.yaml").write_text(service("new"))
    with monkeypatch.context() as patched:
        patched.setattr(where, fail)
        for _ in range(3):
            world.refresh()
        [problem] = world.source.problems
        assert "internal error: KeyError: 'who'" in problem.reason and not problem.warning
        assert sum("internal error" in record.getMessage() for record in caplog.records if record.exc_info) == 1
        patched.setattr(where, fail_otherwise)
        for _ in range(2):
            world.refresh()
        [problem] = world.source.problems
        assert "internal error: ValueError: what" in problem.reason
        assert sum("internal error" in record.getMessage() for record in caplog.records if record.exc_info) == 2
        refused = world.apply(service("other"))
        assert refused.problems == [problem] and not refused.changes and "service.demo.other.yaml" not in world.written
    assert set(world.cluster.objects) == {"Service demo/web"} and world.cluster.revision == revision
    world.refresh()
    assert not world.source.problems and set(world.cluster.objects) == {"Service demo/web", "Service demo/new"}


def test_a_change_that_breaks_off_while_it_comes_into_force_is_made_by_the_next_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a policy that is written, and told of nobody, would be in force after the next restart."""
    world.apply(NODE)
    before = world.written
    with monkeypatch.context() as memory_ends:

        def fail(*_: object) -> None:
            raise MemoryError

        memory_ends.setattr(Index, "replace_objects", fail)
        [problem] = world.apply(service()).problems
        assert "no memory is left" in problem.reason and world.written == before, "who asked reads so, and nothing is left"
        (world.folder / "mine.yaml").write_text(service())
        world.refresh()
        assert world.source.problems == [problem], "and control follows the folder as before"
    published = world.cluster.revision
    world.refresh()
    assert world.cluster.revision > published and "Service demo/web" in world.cluster.objects and not world.source.problems
    published = world.cluster.revision
    world.refresh()
    assert world.cluster.revision == published, "what has come into force is not looked at again"


class Indexing:
    """Whether the index takes in a Service of the name `bad`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = True
        replace_objects = Index.replace_objects

        def replaced(index: Index, objects: Iterable[Object], addresses: Addresses) -> None:
            wanted = list(objects)
            replace_objects(index, wanted, addresses)
            if self.fails and any(one.name == "bad" for one in wanted):
                raise KeyError("who")

        monkeypatch.setattr(Index, "replace_objects", replaced)


def test_what_control_cannot_take_in_is_said_once_and_can_be_mended_by_a_change(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.apply(service())
    indexing, revision = Indexing(monkeypatch), world.cluster.revision
    (world.folder / "service.demo.bad.yaml").write_text(service("bad"))
    for _ in range(3):
        world.refresh()
    [problem] = world.source.problems
    assert problem.reason.startswith("Service demo/bad: cannot be taken in: internal error: KeyError: 'who'")
    assert sum("internal error" in record.getMessage() for record in caplog.records if record.exc_info) == 1
    assert set(world.cluster.objects) == {"Service demo/web"} and world.cluster.revision == revision
    assert world.delete(service("bad")).changes == [("Service demo/bad", "deleted")]
    assert not world.source.problems and set(world.cluster.objects) == {"Service demo/web"}
    (world.folder / "service.demo.bad.yaml").write_text(service("bad"))
    world.refresh()
    indexing.fails = False
    world.refresh()
    assert not world.source.problems and len(world.cluster.objects) == 2, "tried again by itself"


def test_a_change_that_control_cannot_take_in_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a control that starts anew had no valid set."""
    world.apply(service(), service("other"))
    Indexing(monkeypatch)
    before = world.written
    refused = world.apply(service("bad"), service(port=81))
    [problem] = refused.problems
    assert not refused.changes and problem.reason.startswith("Service demo/bad, Service demo/web: cannot be taken in: internal")
    assert world.written == before and not world.source.problems
    assert world.apply(service(port=82)).changes == [("Service demo/web", "configured")]


def test_what_somebody_wrote_in_place_of_a_change_is_his(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking the change back would have it lost."""
    world.apply(service(), service("old"), service("other"))
    write = world.source._folder.write
    mine = {"service.demo.web.yaml": "kind: [", "service.demo.old.yaml": "{"}

    written: list[str] = []

    def replaced(writes: Mapping[str, str | None]) -> None:
        write(writes)
        for name in mine.keys() & writes.keys() - set(written):
            (world.folder / name).write_text(mine[name])
            written.append(name)

    for change, text in ((world.apply, service(port=81) + "\n---\n" + service("other", 81)), (world.delete, service("old"))):
        before = world.written
        with monkeypatch.context() as patched:
            patched.setattr(world.source._folder, "write", replaced)
            [problem] = change(text).problems
        assert world.written == before | {problem.file: mine.pop(problem.file)}, "the rest is taken back"
        (world.folder / problem.file).write_text(before[problem.file])
    assert not mine


def test_a_change_that_cannot_be_taken_back_is_not_called_undone(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the disk came to be full: it is written, and whoever starts control anew has it before him."""
    world.apply(service(), service("other"))
    Indexing(monkeypatch)
    write, full = world.source._folder.write, False

    def once(writes: Mapping[str, str | None]) -> None:
        nonlocal full
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        full = True
        write(writes)

    monkeypatch.setattr(world.source._folder, "write", once)
    caplog.set_level(logging.INFO)
    caplog.clear()
    [mistake, left] = world.apply(service("bad")).problems
    assert "cannot be taken in" in mistake.reason and "service.demo.bad.yaml" in world.written
    assert left.reason.startswith("the change cannot be taken back: No space left on device: ")
    assert world.source.problems == [mistake]
    assert not [one for one in caplog.messages if one.startswith("manifests: written:")], "it is refused"


def test_a_change_beside_which_somebody_writes_what_is_wrong_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its asker reads that nothing was changed."""
    world.apply(service(), service("other"))
    before, write = world.written, world.source._folder.write

    def beside(writes: Mapping[str, str | None]) -> None:
        write(writes)
        (world.folder / "mine.yaml").write_text("kind: [")

    monkeypatch.setattr(world.source._folder, "write", beside)
    refused = world.apply(service(port=81), service("new"))
    assert [one.file for one in refused.problems] == ["mine.yaml"] and not refused.changes
    assert world.written == before | {"mine.yaml": "kind: ["}
    assert world.source.problems == refused.problems and len(world.cluster.objects) == 2


def test_a_file_that_could_not_be_read_for_want_of_memory_is_read_by_the_next_look(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stayed refused, and all manifests with it, until somebody changed one."""
    world.apply(NODE)
    (world.folder / "mine.yaml").write_text(service())
    with monkeypatch.context() as memory_ends:

        def fail(_: Mapping[str, str]) -> ManifestSet:
            raise MemoryError

        memory_ends.setattr("control.catalogue.parse", fail)
        world.refresh()
        said = len(caplog.records)
        for _ in range(3):
            world.refresh()
    assert len(caplog.records) == said, "said once"
    assert [one.file for one in world.source.problems] == ["mine.yaml"] and set(world.cluster.objects) == {"Node n1"}
    world.refresh()
    assert not world.source.problems and set(world.cluster.objects) == {"Node n1", "Service demo/web"}


def test_a_mistake_of_ours_does_not_end_the_following(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        failed, changed = asyncio.Event(), asyncio.Event()
        read = world.source._folder.read
        loop = asyncio.get_running_loop()

        def fail_once() -> Texts | None:
            if not failed.is_set():
                loop.call_soon_threadsafe(failed.set)
                raise RuntimeError
            return read()

        monkeypatch.setattr(world.source._folder, "read", fail_once)
        world.cluster.objects_changed.listen(changed.set)
        (world.folder / "one.yaml").write_text(service("one"))
        following = asyncio.ensure_future(world.source.follow())
        await asyncio.wait([following, asyncio.ensure_future(changed.wait())], return_when=asyncio.FIRST_COMPLETED)
        assert not following.done() and "Service demo/one" in world.cluster.objects
        following.cancel()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
