"""Who goes on next: one source after the other."""

import pytest

from ztunnel.rota import Rota

pytestmark = pytest.mark.unit


class Task:
    """Has a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def go_on(self) -> None:
        raise NotImplementedError

    def crashed(self, error: Exception) -> None:
        raise NotImplementedError


def drained(rota: Rota) -> list[str]:
    names = []
    while (what := rota.take()) is not None:
        assert isinstance(what, Task)
        names.append(what.name)
    return names


def test_a_source_has_one_place_however_much_it_has_left() -> None:
    rota = Rota()
    for number in range(4):
        rota.add("flooder", Task(f"f{number}"))
    rota.add("good", Task("g"))
    rota.add("other", Task("o"))
    assert drained(rota) == ["f0", "g", "o", "f1", "f2", "f3"]
    assert not rota.waiting and rota.take() is None


def test_who_comes_back_queues_behind_all_others() -> None:
    rota, again = Rota(), Task("again")
    rota.add("flooder", again)
    rota.add("good", Task("g"))
    taken = rota.take()
    assert taken is again
    rota.add("flooder", again)
    assert drained(rota) == ["g", "again"]


def test_who_has_ended_is_forgotten() -> None:
    rota, gone = Rota(), Task("gone")
    rota.add("source", gone)
    rota.add("source", Task("left"))
    rota.discard("source", gone)
    rota.discard("source", gone)
    rota.discard("nobody", gone)
    assert drained(rota) == ["left"]
    rota.add("source", gone)
    rota.discard("source", gone)
    assert not rota.waiting


def test_strangers_have_every_other_turn_and_each_of_their_sources_has_its_own() -> None:
    rota = Rota()
    for number in range(4):
        rota.add("crowd", Task(f"c{number}"), stranger=True)
    rota.add("newcomer", Task("n"), stranger=True)
    for source in "ab":
        for number in range(2):
            rota.add(source, Task(f"{source}{number}"))
    assert drained(rota) == ["c0", "a0", "n", "b0", "c1", "a1", "c2", "b1", "c3"]
    assert not rota.waiting and rota.take() is None


def test_a_stranger_who_has_ended_is_forgotten() -> None:
    rota, gone = Rota(), Task("gone")
    rota.add("source", gone, stranger=True)
    rota.discard("source", gone)
    assert not rota.waiting and rota.take() is None
    rota.add("source", gone, stranger=True)
    rota.add("source", Task("left"), stranger=True)
    rota.add("source", Task("known"))
    rota.discard("source", gone)
    assert drained(rota) == ["left", "known"] and not rota.waiting
