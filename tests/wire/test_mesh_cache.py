"""The journal of what control answered: what it comes to, what damage costs, and that it stays as small as the mesh."""

import sqlite3
from functools import partial
from pathlib import Path

import pytest

from mesh.delta import Resource
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE
from tests.answers import answer
from wire import mesh_cache
from wire.mesh_cache import MeshCache

pytestmark = pytest.mark.unit

FIRST = Resource("a", "1", b"x")
SECOND = Resource("a", "2", b"y", ("/10.0.0.1", "/10.0.0.2"))


def apply(cache: MeshCache, *resources: Resource, removals: tuple[str, ...] = (), refused: tuple[str, ...] = ()) -> None:
    cache.apply(ADDRESS_TYPE, answer(ADDRESS_TYPE, resources, removals), refused)


@pytest.mark.parametrize("damage", [b"no database at all" * 300, b""])
def test_a_file_that_is_no_database_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "mesh.sqlite").write_bytes(damage)
    cache = MeshCache(tmp_path / "mesh.sqlite")
    apply(cache, FIRST, Resource("b", "1", b"z"))
    apply(cache, SECOND, removals=("a", "b"))
    assert cache.load(ADDRESS_TYPE) == [SECOND]


@pytest.mark.parametrize(
    "written",
    [
        "CREATE TABLE resource (type TEXT, name TEXT); PRAGMA user_version = 1",
        "CREATE TABLE answer (number INTEGER PRIMARY KEY, type TEXT, body BLOB, refused TEXT); PRAGMA user_version = 5",
        "CREATE TABLE resource (type TEXT, name TEXT); PRAGMA user_version = 4",
    ],
    ids=["older", "newer", "not whole"],
)
def test_a_file_of_another_release_is_made_anew(tmp_path: Path, written: str) -> None:
    other = sqlite3.connect(tmp_path / "mesh.sqlite")
    other.executescript(written)
    other.execute("INSERT INTO " + written.split()[2] + " (type) VALUES (?)", (ADDRESS_TYPE,))
    other.commit()
    other.close()
    cache = MeshCache(tmp_path / "mesh.sqlite")
    assert cache.load(ADDRESS_TYPE) == [] and not cache.answered(ADDRESS_TYPE)
    apply(cache, FIRST)
    assert cache.load(ADDRESS_TYPE) == [FIRST]


def test_a_damaged_file_costs_what_was_known_and_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "mesh.sqlite"
    cache = MeshCache(path)
    apply(cache, FIRST, Resource("b", "1", bytes(200 << 10)))
    cache.close()
    data = bytearray(path.read_bytes())
    data[64 << 10 : 128 << 10] = b"\xff" * (64 << 10)
    path.write_bytes(data)
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        sqlite3.connect(path).execute("SELECT body FROM answer").fetchall()
    cache = MeshCache(path)
    assert cache.load(ADDRESS_TYPE) == [] and not cache.answered(ADDRESS_TYPE)
    apply(cache, SECOND)
    cache.close()
    assert MeshCache(path).load(ADDRESS_TYPE) == [SECOND]


@pytest.mark.parametrize("opened_before", [False, True], ids=["before it is opened", "before it is read"])
def test_a_file_in_which_somebody_writes_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, opened_before: bool
) -> None:
    """A predecessor on a slow disk, or one that is stopped. Who read nothing is told of all by control, which replaces it."""
    path = tmp_path / "mesh.sqlite"
    predecessor = MeshCache(path)
    apply(predecessor, FIRST)
    predecessor.apply(AUTHORIZATION_TYPE, answer(AUTHORIZATION_TYPE, [FIRST]))
    predecessor.close()
    writing = sqlite3.connect(path)
    with monkeypatch.context() as impatient:
        impatient.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0.01))
        early = MeshCache(path) if opened_before else None
        writing.execute("BEGIN EXCLUSIVE")
        cache = early or MeshCache(path)
        for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
            assert cache.load(type_url) == [] and not cache.answered(type_url)
        apply(cache, Resource("b", "1", b"z"))
    assert "cannot keep what is known of the mesh: database is locked" in caplog.text
    writing.rollback()
    assert MeshCache(path).load(ADDRESS_TYPE) == [FIRST]
    apply(cache, Resource("c", "1", b"z"))
    apply(cache, Resource("d", "1", b"z"))
    assert sorted(one.name for one in MeshCache(path).load(ADDRESS_TYPE)) == ["b", "c", "d"]
    assert MeshCache(path).load(AUTHORIZATION_TYPE) == [FIRST], "nobody has said anything else of it"
    writing.close()


def two_proxies(path: Path) -> tuple[MeshCache, MeshCache]:
    """Who has written down two resources, and its successor."""
    predecessor = MeshCache(path)
    apply(predecessor, FIRST, Resource("b", "1", b"z"))
    predecessor.hold()
    return predecessor, MeshCache(path)


def test_an_answer_that_a_predecessor_hears_late_undoes_nothing_newer(tmp_path: Path) -> None:
    path = tmp_path / "mesh.sqlite"
    predecessor, successor = two_proxies(path)
    assert {one.name for one in successor.load(ADDRESS_TYPE)} == {"a", "b"}
    apply(successor, Resource("a", "3", b"newest"), removals=("b",))
    apply(predecessor, SECOND, Resource("b", "2", b"z"))
    assert MeshCache(path).load(ADDRESS_TYPE) == [Resource("a", "3", b"newest")]


def test_who_goes_on_when_its_successor_has_ended_writes_down_what_it_heard_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "mesh.sqlite"
    predecessor, successor = two_proxies(path)
    apply(successor, SECOND)
    successor.close()
    apply(predecessor, SECOND)
    apply(predecessor, Resource("a", "3", b"newest"), removals=("b",))
    predecessor.keep_waiting()
    assert MeshCache(path).load(ADDRESS_TYPE) == [SECOND, Resource("b", "1", b"z")], "the file is a successor's still"
    predecessor.resume()
    predecessor.keep_waiting()  # there may be no further answer for days
    assert MeshCache(path).load(ADDRESS_TYPE) == [Resource("a", "3", b"newest")]
    predecessor.keep_waiting()
    apply(predecessor, Resource("c", "1", b"z"))
    assert MeshCache(path).load(ADDRESS_TYPE) == [Resource("a", "3", b"newest"), Resource("c", "1", b"z")]


def test_a_successors_own_file_is_left_to_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of another release: what a predecessor would write into it is a part of the mesh."""
    path = tmp_path / "mesh.sqlite"
    predecessor = MeshCache(path)
    apply(predecessor, FIRST)
    predecessor.hold()
    path.unlink()
    apply(MeshCache(path), Resource("b", "1", b"z"))
    apply(predecessor, SECOND)
    predecessor.resume()
    apply(predecessor, SECOND)
    assert MeshCache(path).load(ADDRESS_TYPE) == [Resource("b", "1", b"z")]
    assert "nothing more is kept in it until the next start" in caplog.text


def test_who_is_left_aside_for_long_keeps_a_bounded_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_cache, "_MAX_WAITING_BYTES", 4096)
    cache = MeshCache(tmp_path / "mesh.sqlite")
    apply(cache, FIRST)
    cache.hold()
    for number in range(100):
        apply(cache, Resource("a", str(number), bytes(100)))
    cache.resume()
    apply(cache, SECOND)
    assert cache.load(ADDRESS_TYPE) == [FIRST], "with a gap it would be a part of the mesh"


def test_a_type_that_cannot_be_forgotten_ends_the_journal(tmp_path: Path) -> None:
    """What comes later of another type, without what was there of it, would be taken for all of it."""
    path = tmp_path / "mesh.sqlite"
    cache = MeshCache(path)
    apply(cache, FIRST)
    cache.apply(AUTHORIZATION_TYPE, b"no answer")
    cache.close()
    broken = sqlite3.connect(path)
    broken.execute("CREATE TRIGGER no BEFORE DELETE ON answer BEGIN SELECT RAISE(ABORT, 'no'); END")
    broken.close()
    cache = MeshCache(path)
    assert cache.load(ADDRESS_TYPE) == [FIRST] and cache.load(AUTHORIZATION_TYPE) == []
    apply(cache, Resource("b", "1", b"z"))
    assert not path.exists()


def test_what_was_refused_is_not_kept_but_what_it_would_have_replaced(tmp_path: Path) -> None:
    cache = MeshCache(tmp_path / "mesh.sqlite")
    apply(cache, FIRST)
    apply(cache, SECOND, Resource("b", "1", b"z"), refused=("a",))
    assert cache.load(ADDRESS_TYPE) == [FIRST, Resource("b", "1", b"z")]


def test_an_answer_that_cannot_be_read_costs_all_of_its_type_and_nothing_else(tmp_path: Path) -> None:
    """A part of a mesh would be taken for the mesh."""
    cache = MeshCache(tmp_path / "mesh.sqlite")
    apply(cache, FIRST)
    cache.apply(ADDRESS_TYPE, b"no answer")
    cache.apply(AUTHORIZATION_TYPE, answer(AUTHORIZATION_TYPE, []))
    assert cache.load(ADDRESS_TYPE) == [] and not cache.answered(ADDRESS_TYPE) and cache.answered(AUTHORIZATION_TYPE)


def test_the_file_does_not_grow_with_the_number_of_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joins = []
    join = MeshCache._joined
    monkeypatch.setattr(MeshCache, "_joined", lambda *arguments: joins.append(1) or join(*arguments))
    large = bytes(8 << 10)
    cache = MeshCache(tmp_path / "mesh.sqlite")
    apply(cache, *(Resource(str(number), "1", large) for number in range(32)))
    for number in range(200):
        if number == 100:
            cache.close()
            cache = MeshCache(tmp_path / "mesh.sqlite")
        apply(cache, Resource(str(number % 32), str(number), large))
    assert 1 <= len(joins) <= 4, "each costs as much as the mesh"
    assert {one.name: one.version for one in cache.load(ADDRESS_TYPE)} == {str(n % 32): str(n) for n in range(168, 200)}
    cache.close()
    assert (tmp_path / "mesh.sqlite").stat().st_size < 2 << 20
