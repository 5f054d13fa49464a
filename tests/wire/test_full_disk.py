"""The journal of what control answered on a disk that takes nothing more: real file systems, full or read-only."""

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.delta import Resource
from mesh.resources import ADDRESS_TYPE
from tests.answers import answer
from tests.disk import fill, small_disk
from wire.mesh_cache import MeshCache

pytestmark = pytest.mark.kernel

FIRST, SECOND = Resource("a", "1", b"x"), Resource("a", "2", b"y")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "128k") as folder:
        yield folder


def apply(cache: MeshCache, *resources: Resource, removals: tuple[str, ...] = ()) -> None:
    cache.apply(ADDRESS_TYPE, answer(ADDRESS_TYPE, resources, removals))


def test_on_a_full_disk_answers_wait_in_their_order_until_there_is_room(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(disk)
    cache = MeshCache(disk / "mesh.sqlite")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "make room, or name a folder that can be written (WEFT_STATE_DIR)" in caplog.text
    apply(cache, FIRST, Resource("b", "1", b"z"))
    assert cache.load(ADDRESS_TYPE) == [] and not cache.answered(ADDRESS_TYPE)
    assert len(caplog.records) == 1
    (disk / "fill").unlink()
    apply(cache, SECOND, removals=("b",))
    cache.close()
    assert MeshCache(disk / "mesh.sqlite").load(ADDRESS_TYPE) == [SECOND]


def test_a_disk_that_is_full_for_a_while_is_spoken_of_twice(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cache = MeshCache(disk / "mesh.sqlite")
    apply(cache, FIRST)
    fill(disk)
    for number in range(4):
        apply(cache, Resource(str(number), "1", bytes(1 << 10)))
    (disk / "fill").unlink()
    for name in ("c", "d"):
        apply(cache, Resource(name, "1", b"z"))
    cache.close()
    said = [record.getMessage().partition(": ")[2].partition(":")[0] for record in caplog.records]
    assert said == ["cannot keep what is known of the mesh", "what is known of the mesh is kept again"]
    assert [one.name for one in MeshCache(disk / "mesh.sqlite").load(ADDRESS_TYPE)] == ["a", "0", "1", "2", "3", "c", "d"]


def test_a_disk_that_never_takes_anything_keeps_nobody_from_starting(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    cache = MeshCache(disk / "node" / "mesh.sqlite")
    assert cache.load(ADDRESS_TYPE) == []
    apply(cache, FIRST)
    assert not cache.answered(ADDRESS_TYPE)
    cache.close()


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_what_was_known_is_read_from_a_disk_that_takes_nothing_more(disk: Path, trouble: str) -> None:
    cache = MeshCache(disk / "mesh.sqlite")
    apply(cache, FIRST)
    cache.close()
    if trouble == "full":
        fill(disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    again = MeshCache(disk / "mesh.sqlite")
    assert again.load(ADDRESS_TYPE) == [FIRST]
    apply(again, *(Resource(str(number), "1", bytes(32 << 10)) for number in range(4)))
    assert again.load(ADDRESS_TYPE) == [FIRST]
    again.close()


def test_a_journal_with_a_gap_is_never_written(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, as it was at an older moment: a part of a mesh would be taken for the mesh."""
    cache = MeshCache(disk / "mesh.sqlite")
    apply(cache, FIRST)
    fill(disk)
    monkeypatch.setattr("wire.mesh_cache._MAX_WAITING_BYTES", 1 << 10)
    apply(cache, Resource("large", "1", bytes(4 << 10)))
    (disk / "fill").unlink()
    apply(cache, SECOND)
    cache.close()
    assert MeshCache(disk / "mesh.sqlite").load(ADDRESS_TYPE) == [FIRST]
