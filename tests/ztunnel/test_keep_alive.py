"""Tunnels are asked whether their peer is there, each in its own time; idle ones cost nothing in between."""

from typing import cast

import pytest

from ztunnel.channel import Configure
from ztunnel.keep_alive import PING_INTERVAL_S, PING_TIMEOUT_S, KeepAlive
from ztunnel.loop import Loop
from ztunnel.node import Node
from ztunnel.tunnel import Tunnel

pytestmark = pytest.mark.unit


class Idle:
    """What a node sees of a tunnel."""

    offence = ""

    def __init__(self) -> None:
        self.open = True
        self.asked_at: list[float] = []

    def keep_alive(self, now: float) -> None:
        self.asked_at.append(now)


def test_each_tunnel_is_asked_in_its_own_time_until_it_closes() -> None:
    node = Node(Loop(), Configure("n1", "", "c", "cluster.local", 0), lambda _: None)
    loop, begin = node.loop, node.loop.now
    early, late = Idle(), Idle()
    node.add_tunnel(cast(Tunnel, early))
    loop.now = begin + 1
    node.add_tunnel(cast(Tunnel, late))
    for second in range(int(3 * PING_INTERVAL_S)):
        loop.now = begin + second
        node.tick()
        if second == 2 * PING_INTERVAL_S:
            early.open = False
            node.remove_tunnel(cast(Tunnel, early))
    assert early.asked_at == [begin + PING_INTERVAL_S, begin + 2 * PING_INTERVAL_S]
    assert late.asked_at == [begin + 1 + PING_INTERVAL_S, begin + 1 + 2 * PING_INTERVAL_S]
    node.remove_tunnel(cast(Tunnel, late))
    assert not len(node.keep_alives)


def test_a_peer_that_answers_is_asked_again_and_one_that_does_not_is_asked_once() -> None:
    keep_alive = KeepAlive(now=100.0)
    assert not keep_alive.asks(99.9 + PING_INTERVAL_S)
    assert keep_alive.asks(100.0 + PING_INTERVAL_S)
    keep_alive.answered()
    assert keep_alive.asks(100.0 + 2 * PING_INTERVAL_S)
    assert not keep_alive.asks(100.0 + 3 * PING_INTERVAL_S), "the last one waits for its answer"


def test_who_neither_answers_nor_says_anything_else_is_lost() -> None:
    keep_alive, sent_at = KeepAlive(now=100.0), 100.0 + PING_INTERVAL_S
    assert not keep_alive.is_lost(1000.0, heard_at=100.0), "nothing was asked"
    assert keep_alive.asks(sent_at)
    assert not keep_alive.is_lost(sent_at + PING_TIMEOUT_S - 0.1, heard_at=100.0)
    assert keep_alive.is_lost(sent_at + PING_TIMEOUT_S, heard_at=100.0)
    assert not keep_alive.is_lost(sent_at + PING_TIMEOUT_S, heard_at=sent_at + 1), "it says something, if not that"
    keep_alive.answered()
    assert not keep_alive.is_lost(1000.0, heard_at=100.0)
