"""Profiles as `go tool pprof` reads them."""

import gc
import gzip
import traceback
from collections.abc import Iterator

import pytest

from mesh.proto.profile_pb2 import Profile
from ztunnel.channel import Stack
from ztunnel.pprof import FunctionNames, encode, parse

pytestmark = pytest.mark.unit

LOOP, READ, SEND = (
    ("Loop.turn", "/loop.py", 10, 12),
    ("Tunnel.read", "/tunnel.py", 20, 25),
    ("Tunnel.read", "/tunnel.py", 20, 26),
)


class Outer:
    def method(self) -> int:
        def inner() -> int:
            return 1

        return inner()


FIRST = Outer.method.__code__.co_firstlineno - 1


def read(packed: bytes) -> tuple[Profile, dict[int, str], dict[tuple[str, ...], list[int]]]:
    """The profile; its functions by location; and its samples, the process first and then the outermost function."""
    profile = Profile.FromString(gzip.decompress(packed))
    texts = profile.string_table
    names = {one.id: texts[one.name] for one in profile.function}
    places = {one.id: f"{names[one.line[0].function_id]}:{one.line[0].line}" for one in profile.location}
    samples = {}
    for one in profile.sample:
        assert texts[one.label[0].key] == "process"
        samples[(texts[one.label[0].str], *(places[place] for place in reversed(one.location_id)))] = list(one.value)
    return profile, places, samples


def test_samples_of_all_processes_with_their_places() -> None:
    stacks: list[Stack] = [((READ, LOOP), 3, 300), ((SEND, LOOP), 1, 100)]
    profile, places, samples = read(encode("cpu", {"supervisor": [], "worker 0": stacks, "worker 1": stacks[:1]}, 5, 10, 100))
    assert samples == {
        ("worker 0", "Loop.turn:12", "Tunnel.read:25"): [3, 300],
        ("worker 0", "Loop.turn:12", "Tunnel.read:26"): [1, 100],
        ("worker 1", "Loop.turn:12", "Tunnel.read:25"): [3, 300],
    }
    texts = profile.string_table
    assert texts[0] == "" and len(set(texts)) == len(texts)
    assert [(texts[one.type], texts[one.unit]) for one in profile.sample_type] == [("samples", "count"), ("cpu", "nanoseconds")]
    assert (profile.time_nanos, profile.duration_nanos, profile.period) == (5, 10 * 10**9, 10**7)
    assert texts[profile.default_sample_type] == "cpu" and len(profile.function) == 2 and len(places) == 3
    (mapping,) = profile.mapping
    assert mapping.has_functions and mapping.has_line_numbers and all(one.mapping_id == 1 for one in profile.location)
    assert {texts[one.filename]: one.start_line for one in profile.function} == {"/loop.py": 10, "/tunnel.py": 20}


def test_memory_is_known_by_line_and_named_by_its_function() -> None:
    place = ("", __file__, 0, FIRST + 5)
    profile, _, samples = read(encode("heap", {"supervisor": [((place, ("", "<frozen x>", 0, 7)), 2, 64)]}, 0, 1, 100))
    assert samples == {("supervisor", "<<frozen x>>:7", f"Outer.method:{place[3]}"): [2, 64]}
    assert profile.string_table[profile.sample_type[1].type] == "inuse_space"


def test_the_innermost_function_around_a_line() -> None:
    first, names = FIRST, FunctionNames(__file__)
    assert names.at(first) == ("Outer", first)
    assert names.at(first + 3) == ("Outer.method.inner", first + 2)
    assert names.at(first + 5) == ("Outer.method", first + 1)
    assert names.at(1) == ("<test_pprof.py>", 1) and FunctionNames("/nowhere.py").at(3) == ("<nowhere.py>", 1)


class Complaining:
    """Garbage that formats a traceback, as asyncio does of a task that nobody has asked how it ended."""

    def __init__(self) -> None:
        self.own = self

    def __del__(self) -> None:
        try:
            _ = (1 + {}["nothing"]) * 2  # type: ignore[index]
        except KeyError:
            traceback.format_exc()


@pytest.fixture
def collecting() -> Iterator[None]:
    """Garbage is looked for at almost each new object."""
    before = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)


def test_source_is_read_whatever_garbage_there_is(collecting: None) -> None:
    """Python 3.11 raises SystemError where a finalizer that formats a traceback meets ast.parse."""
    source = "def f():\n" + "    x = [1, 2, (3 + 4) * 5]\n" * 1000
    for _ in range(20):
        Complaining()
        assert len(parse(source).body) == 1
    assert gc.isenabled()
