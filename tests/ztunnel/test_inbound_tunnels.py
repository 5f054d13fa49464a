"""Which tunnel goes when there are too many."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ztunnel import inbound_tunnels
from ztunnel.inbound_tunnels import AT_ONCE, PER_SOURCE, InboundTunnels

pytestmark = pytest.mark.unit


class Tunnel:
    """As far as it is looked at."""

    def __init__(self, streams: int = 0) -> None:
        self.http = SimpleNamespace(streams=dict.fromkeys(range(streams)), idle=not streams)


def fill(tunnels: InboundTunnels, count: int, source: str, streams: int = 0) -> list[Any]:
    made: list[Any] = [Tunnel(streams) for _ in range(count)]
    assert not any(tunnels.add(tunnel, source) for tunnel in made)
    return made


def test_a_source_loses_its_own_longest_idle() -> None:
    tunnels, new = InboundTunnels(), cast(Any, Tunnel())
    fill(tunnels, 3, "good")
    own = fill(tunnels, PER_SOURCE, "crowd")
    tunnels.used(own[0])
    gone = tunnels.add(new, "crowd")
    assert gone == own[1 : 1 + AT_ONCE], "several at a time: the next ones find room"
    for one in gone:
        tunnels.remove(one)
    assert len(tunnels) == PER_SOURCE + 4 - AT_ONCE
    fill(tunnels, AT_ONCE - 1, "crowd")


def test_who_carries_a_stream_again_and_again_is_not_the_longest_idle() -> None:
    tunnels = InboundTunnels()
    own = fill(tunnels, PER_SOURCE - 1, "crowd")
    for one in (own[0], own[0], own[-1], own[0], own[0]):
        tunnels.used(one)
    own += fill(tunnels, 1, "crowd")
    tunnels.used(own[1])
    assert tunnels.add(cast(Any, Tunnel()), "crowd") == own[2 : 2 + AT_ONCE]


def test_where_all_are_busy_the_new_one_goes() -> None:
    tunnels, new = InboundTunnels(), cast(Any, Tunnel())
    fill(tunnels, PER_SOURCE, "crowd", streams=1)
    assert tunnels.add(new, "crowd") == [new]


def test_many_sources_together_lose_the_longest_idle_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_tunnels, "TOTAL", 5)
    tunnels = InboundTunnels()
    first, second, *_ = [fill(tunnels, 1, f"{number}", number > 1)[0] for number in range(5)]
    assert tunnels.add(Tunnel(), "one more") == [first, second]  # type: ignore[arg-type]


def test_nothing_is_remembered_of_who_is_gone() -> None:
    tunnels = InboundTunnels()
    (one,) = fill(tunnels, 1, "a")
    tunnels.remove(one)
    tunnels.remove(one)
    tunnels.used(one)
    assert not tunnels._all and not tunnels._of


def test_idle_ones_are_beside_busy_ones_where_both_are_of_one_source() -> None:
    tunnels = InboundTunnels()
    idle = fill(tunnels, 3, "sends bulk")
    fill(tunnels, 3, "another")
    assert tunnels.beside_busy() == []
    fill(tunnels, 1, "sends bulk", streams=1)
    assert tunnels.beside_busy() == idle[::-1]
    idle[1].http.idle = False  # it goes already, or has yet to come up
    assert tunnels.beside_busy() == [idle[2], idle[0]]
    idle = fill(tunnels, 9, "sends bulk")
    assert tunnels.beside_busy() == idle[: -1 - AT_ONCE : -1], "those that carried a stream last"
