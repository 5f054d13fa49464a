"""Options to requests: the recorded filters of the hubble command, and where weft means more."""

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from cli.flow_query import Filters, Window, request, whitelist

pytestmark = pytest.mark.unit
_T = datetime(2026, 3, 5, 8, 4, tzinfo=UTC)


def _dicts(**sides: dict[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    return [MessageToDict(one, preserving_proto_field_name=True) for one in whitelist(Filters(**sides))]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ({}, []),
        ({"either": {"pod": ("shop/cart",)}}, [{"source_pod": ["shop/cart"]}, {"destination_pod": ["shop/cart"]}]),
        ({"either": {"pod": ("cart",)}}, [{"source_pod": ["default/cart"]}, {"destination_pod": ["default/cart"]}]),
        (
            {"either": {"namespace": ("shop", "data")}},
            [{"source_pod": ["shop/", "data/"]}, {"destination_pod": ["shop/", "data/"]}],
        ),
        (
            {"either": {"namespace": ("shop",), "pod": ("cart",)}},
            [{"source_pod": ["shop/cart"]}, {"destination_pod": ["shop/cart"]}],
        ),
        (
            {"source": {"namespace": ("shop",)}, "destination": {"namespace": ("data",)}},
            [{"source_pod": ["shop/"], "destination_pod": ["data/"]}],
        ),
        (
            {"destination": {"namespace": ("shop",), "service": ("web", "data/db")}},
            [{"destination_pod": ["shop/"], "destination_service": ["shop/web", "data/db"]}],
        ),
        # A name without its namespace is of the one that is asked for at all, where its own side names none.
        (
            {"either": {"namespace": ("shop",)}, "destination": {"pod": ("web",)}},
            [{"source_pod": ["shop/"], "destination_pod": ["shop/web"]}, {"destination_pod": ["shop/web"]}],
        ),
        (
            {"either": {"namespace": ("shop",)}, "source": {"namespace": ("data",), "pod": ("db",)}},
            [{"source_pod": ["data/db"], "destination_pod": ["shop/"]}],
        ),
        (
            {"either": {"namespace": ("shop",)}, "source": {"service": ("web", "data/db")}},
            [
                {"source_pod": ["shop/"], "source_service": ["shop/web", "data/db"]},
                {"source_service": ["shop/web", "data/db"], "destination_pod": ["shop/"]},
            ],
        ),
        ({"destination": {"port": ("8080",)}}, [{"destination_port": ["8080"]}]),
        # The hubble command would look for a client's own port 80 here.
        (
            {"either": {"pod": ("shop/front",), "port": ("80",)}},
            [
                {"source_pod": ["shop/front"], "source_port": ["80"]},
                {"source_pod": ["shop/front"], "destination_port": ["80"]},
                {"destination_pod": ["shop/front"], "source_port": ["80"]},
                {"destination_pod": ["shop/front"], "destination_port": ["80"]},
            ],
        ),
        # An end that is asked for twice: both must hold, and the other end may be the one that was meant.
        (
            {"either": {"pod": ("shop/",)}, "source": {"pod": ("shop/front",)}},
            [{"source_pod": ["shop/front"]}, {"source_pod": ["shop/front"], "destination_pod": ["shop/"]}],
        ),
        (
            {"either": {"pod": ("data/db",)}, "source": {"pod": ("shop/front",)}},
            [{"source_pod": ["shop/front"], "destination_pod": ["data/db"]}],
        ),
    ],
)
def test_sided_options(sides: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert _dicts(**sides) == expected


def test_other_filters_join_every_side() -> None:
    filters = Filters(either={"pod": ("a/b",)}, verdicts=("dropped",), protocols=("tcp",), encrypted=True)
    assert [MessageToDict(one) for one in whitelist(filters)] == [
        {"sourcePod": ["a/b"], "verdict": ["DROPPED"], "protocol": ["tcp"], "encrypted": [True]},
        {"destinationPod": ["a/b"], "verdict": ["DROPPED"], "protocol": ["tcp"], "encrypted": [True]},
    ]


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="not in namespace"):
        whitelist(Filters(either={"pod": ("shop/cart",), "namespace": ("data",)}))
    with pytest.raises(ValueError, match="two different values"):
        both = {"port": ("81",)}
        whitelist(Filters(either={"port": ("80",)}, source=both, destination=both))


@pytest.mark.parametrize(
    ("window", "number", "first", "newest"),
    [
        (Window(), 20, False, 20),
        (Window(last=3), 3, False, 3),
        (Window(first=2), 2, True, None),
        (Window(everything=True), 0, False, None),
        (Window(follow=True), 0, False, None),
        (Window(follow=True, last=5), 5, False, 5),
        # Counted here, not by the Observer, which would answer with the oldest or with none.
        (Window(since=_T, last=2), 0, False, 2),
        (Window(until=_T, last=2), 0, False, 2),
        (Window(since=_T), 0, False, None),
        (Window(since=_T, first=2), 2, True, None),
    ],
)
def test_window(window: Window, number: int, first: bool, newest: int | None) -> None:
    asked = request(window, Filters())
    assert (asked.number, asked.first, window.newest) == (number, first, newest)
    assert asked.HasField("since") == (window.since is not None)
    assert asked.HasField("until") == (window.until is not None)


@pytest.mark.parametrize(
    "bad",
    [
        {"first": 1, "last": 1},
        {"first": 1, "everything": True},
        {"first": 1, "follow": True},
        {"last": 1, "everything": True},
        {"until": _T, "follow": True},
    ],
)
def test_windows_that_contradict_themselves(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Window(**bad)
