"""Every fuzz target, without the fuzzer: its seeds, what hypothesis makes of them, and whatever else."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import main
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.unit


def damaged(seed: bytes) -> st.SearchStrategy[bytes]:
    """A seed with a part replaced, taken out or doubled."""
    places = st.integers(0, len(seed))

    def damage(ends: tuple[int, int], words: bytes, twice: bool) -> bytes:
        start, end = sorted(ends)
        return seed[:start] + words + (seed[start:end] * 2 if twice else b"") + seed[end:]

    return st.builds(damage, st.tuples(places, places), st.binary(max_size=12), st.booleans())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    for seed in TARGETS[name].seeds:
        assert len(seed) <= TARGETS[name].max_bytes
        TARGETS[name].feed(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    target = TARGETS[name]

    @given(st.one_of(st.binary(max_size=300), *map(damaged, target.seeds)))
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    def feed(data: bytes) -> None:
        target.feed(data)

    feed()


def test_an_unknown_target_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert "no target nonsense: choose from http2-server," in capsys.readouterr().err
