"""What carries a lab's name, or lies where a lab would put it, and is somebody else's: it is neither used nor removed."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import cgroup, neighbours, netns
from lab.client import Lab, LabError
from lab.layout import Layout
from lab.node import program_environment
from tests.disk import small_disk
from tests.lab.host import BASE, deployment, leftovers, pod, runs
from tests.lab.world import World, eventually, unique_layout

pytestmark = pytest.mark.lab


@pytest.fixture
def layout() -> Iterator[Layout]:
    made = unique_layout()
    yield made
    for folder in (made.places.run, made.places.state):
        shutil.rmtree(folder, ignore_errors=True)


def test_a_cgroup_that_no_lab_made_is_neither_used_nor_emptied(layout: Layout) -> None:
    cgroup.create(layout.cgroup)
    with subprocess.Popen(["sleep", "100"]) as other:
        try:
            (layout.cgroup / "cgroup.procs").write_text(str(other.pid))
            with pytest.raises(LabError, match=f"{layout.cgroup} is there, and no lab made it: set WEFT_PREFIX"):
                Lab(layout).up({"x": BASE}, mesh=False)
            assert not Lab(layout).down()
            assert runs(other.pid) and not layout.places.run.exists() and not layout.places.state.exists()
        finally:
            other.kill()
            other.wait()
            cgroup.remove(layout.cgroup)


def test_without_cgroup_v2_the_mend_is_said(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def unmounted() -> Path:
        raise RuntimeError("no cgroup v2 is mounted: mount one with: mount -t cgroup2 none /sys/fs/cgroup/unified")

    monkeypatch.setattr(neighbours, "cgroup2_mount", unmounted)
    for touch in (lambda lab: lab.up({"x": BASE}), Lab.down):
        with pytest.raises(LabError, match="no cgroup v2 is mounted: mount one"):
            touch(Lab(layout))


def test_cgroup_v2_that_cannot_be_written_is_not_taken_for_a_wrong_folder(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(cgroup, "create", refused)
    with pytest.raises(LabError, match=f"{layout.lab_cgroup} cannot be made: Read-only file system: a lab needs cgroup v2"):
        Lab(layout).up({"x": BASE})


@pytest.mark.parametrize(
    ("root", "entry", "variable"),
    [
        ("run", "nodes/n/x", "WEFT_RUN_DIR"),
        ("state", "control/root-key.pem", "WEFT_STATE_DIR"),
        ("state", "lab/api.py", "WEFT_STATE_DIR"),
    ],
)
def test_folders_of_others_are_neither_used_nor_emptied(layout: Layout, root: str, entry: str, variable: str) -> None:
    theirs: Path = getattr(layout.places, root) / entry
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    with pytest.raises(LabError, match=f"{theirs.parents[entry.count('/') - 1]} is there, and no lab made it: set {variable}"):
        Lab(layout).up({"x": BASE}, mesh=False)
    assert not Lab(layout).down()
    assert theirs.read_text() == "precious" and not layout.cgroup.exists()


def test_down_leaves_what_lies_beside_the_labs_own(layout: Layout) -> None:
    beside = layout.places.state / "beside"
    with small_disk(beside, "64k"), World(BASE, mesh=False, layout=layout) as world:
        (beside / "file").write_text("precious")
        assert world.down() and (beside / "file").read_text() == "precious"
        assert os.listdir(layout.places.state) == ["beside"] and os.path.ismount(beside)


def test_a_namespace_of_others_is_left_alone(layout: Layout) -> None:
    """And the node, or pod, that would have it, says so."""
    theirs = [layout.node_netns("c"), layout.pod_netns("a", "shop/p")]
    try:
        with World(BASE, mesh=False, layout=layout) as world:
            for name in theirs:
                netns.create(name)
            inodes = [netns.inode(name) for name in theirs]
            node = "apiVersion: v1\nkind: Node\nmetadata: {name: c}\n---\n"
            world.apply(node + pod("p", "[sleep, infinity]", "nodeName: a"), wait=False)
            for said in ("Node c: there", "Pod shop/p: no network yet: there"):
                words = f"{said} is a network namespace {layout.places.prefix}-"
                eventually(lambda words=words: [one for one in world.status()["unready"] if one.startswith(words)])
        assert [netns.inode(name) for name in theirs] == inodes
    finally:
        for name in theirs:
            netns.delete(name)


def test_a_removal_that_is_broken_off_again_and_again_comes_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with World(BASE + "---" + deployment(2), mesh=False) as world:
        left = 0

        def breaking(step: Any) -> Any:
            def called(*arguments: Any) -> None:
                nonlocal left
                if left == 0:
                    raise OSError("broken off")
                left -= 1
                step(*arguments)

            return called

        def removed(attempt: int) -> bool:
            nonlocal left
            left = attempt
            try:
                return world.down()
            except LabError as error:
                assert "could not be removed whole: broken off; try again" in str(error)
                return False

        for owner, name in ((netns, "delete"), (cgroup, "remove"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
        assert next(attempt for attempt in range(100) if removed(attempt)) > 3
        monkeypatch.undo()
        assert leftovers(world) == [] and not world.down()


def test_of_two_that_bring_up_the_same_lab_one_starts_it(layout: Layout) -> None:
    labs, errors = [Lab(layout), Lab(layout)], []

    def up(lab: Lab) -> None:
        try:
            lab.up({"x": BASE}, mesh=False, timeout_s=150)
        except LabError as error:
            errors.append(error)

    threads = [threading.Thread(target=up, args=(lab,)) for lab in labs]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert sorted(bool(lab._daemon) for lab in labs) == [False, True]
        environment = program_environment(layout)
        second = subprocess.run([sys.executable, "-m", "lab"], env=environment, capture_output=True, text=True, timeout=100)
        assert second.returncode == 1 and second.stderr.startswith("weft-lab: another process of this lab's serves it already")
        assert labs[0].running()
    finally:
        for lab in sorted(labs, key=lambda one: -one._daemon):
            lab.down()
