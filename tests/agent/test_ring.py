"""The ring keeps the newest, counts what it lost, and answers as recorded from the original."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.query import Fate, Query
from agent.ring import Ring

pytestmark = pytest.mark.unit

# The times and verdicts of 29 made-up flows, in seconds after 08:00; lost events are None.
TIMES = [37 * n for n in range(1, 30)]
DROPPED = {5, 6, 8, 12, 21}


def flow(number: int) -> tuple[str, int, bool]:
    return f"f{number:02}", TIMES[number - 1], number in DROPPED


def filled(capacity: int = 4095, events: Any = None) -> Ring[Any]:
    ring: Ring[Any] = Ring(capacity)
    for event in [flow(number) for number in range(1, 30)] if events is None else events:
        ring.append(event)
    return ring


def answer(ring: Ring[Any], dropped: bool = False, **asked: Any) -> str:
    query: Query[Any] = Query(time_ns=lambda event: event and event[1], matches=lambda event: not dropped or event[2], **asked)
    *_, (position, short) = query.begin(ring)  # type: ignore[misc]
    sent = ["LOST"] if short else []
    flows = 0
    for event in ring.read(position, 5000)[0]:
        if query.is_done(flows):
            break
        fate = query.fate(event)
        if fate is Fate.END:
            break
        if fate is Fate.SEND:
            sent.append(event[0] if event else "LOST")
            flows += event is not None
    return " ".join(sent)


def span(first: int, last: int) -> str:
    return " ".join(f"f{number:02}" for number in range(first, last + 1))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, span(1, 29)),
        ({"number": 2**64 - 1}, span(1, 29)),
        ({"number": 20}, span(10, 29)),
        ({"number": 3}, "f27 f28 f29"),
        ({"number": 3, "first": True}, "f01 f02 f03"),
        ({"first": True}, span(1, 29)),
        ({"number": 3, "dropped": True}, "f08 f12 f21"),
        ({"number": 2, "first": True, "dropped": True}, "f05 f06"),
        ({"since_ns": 17 * 60}, "f28 f29"),
        ({"since_ns": 240, "until_ns": 300}, "f07 f08"),
        ({"until_ns": 120}, "f01 f02 f03"),
        ({"until_ns": 120, "number": 2}, ""),
        ({"since_ns": 240, "number": 2, "first": True}, "f07 f08"),
        ({"since_ns": 240, "number": 2}, "f07 f08"),
        ({"since_ns": 240, "number": 3, "first": True, "dropped": True}, "f08 f12 f21"),
        ({"number": 2, "first": True, "until_ns": 60}, "f01"),
        ({"follow": True}, ""),
        ({"follow": True, "number": 2}, "f28 f29"),
        ({"follow": True, "since_ns": 1000, "until_ns": 1010}, "f28" if TIMES[27] <= 1010 else ""),
    ],
)
def test_answers_as_the_original_does(asked: dict[str, Any], expected: str) -> None:
    assert answer(filled(), **asked) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "LOST " + span(23, 29)),
        ({"number": 100}, "LOST " + span(23, 29)),
        ({"number": 3}, "f27 f28 f29"),
        ({"number": 3, "first": True}, "f23 f24 f25"),
        ({"since_ns": 0}, "LOST " + span(23, 29)),
        ({"since_ns": TIMES[26]}, "f27 f28 f29"),
    ],
)
def test_says_when_more_was_asked_for_than_is_kept(asked: dict[str, Any], expected: str) -> None:
    assert answer(filled(7), **asked) == expected


def test_lost_events_hide_nothing() -> None:
    ring = filled(events=[*(flow(n) for n in range(1, 6)), None, None, *(flow(n) for n in range(6, 13))])
    assert answer(ring, number=9) == "f04 f05 LOST LOST " + span(6, 12)
    assert answer(ring, number=3) == "f10 f11 f12"
    assert answer(ring, dropped=True) == "f05 LOST LOST f06 f08 f12"


@given(st.integers(1, 200), st.lists(st.integers(0, 3), max_size=400))
def test_a_walk_back_goes_past_what_comes_and_ends_where_all_has_gone(capacity: int, coming: list[int]) -> None:
    ring: Ring[int] = Ring(capacity)
    for number in range(150):
        ring.append(number)
    walked = []
    for (number, event), more in zip(ring.backwards(), coming, strict=False):
        walked.append(event)
        assert number == event
        for _ in range(more):
            ring.append(ring.end)
    assert walked == list(range(149, 149 - len(walked), -1))


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 40), st.integers(1, 50))
def test_a_reader_gets_each_event_once_or_learns_of_its_loss(capacity: int, before: int, after: int, limit: int) -> None:
    ring: Ring[int] = Ring(capacity)
    for number in range(before):
        ring.append(number)
    position = ring.end
    for number in range(before, before + after):
        ring.append(number)
    events, lost = ring.read(position, limit)
    assert lost == max(0, after - capacity)
    assert events == list(range(before + lost, before + lost + min(limit, min(after, capacity))))
