"""Tunnels are asked whether their peer is there, each in its own time; idle ones cost nothing in between."""

from typing import cast

import pytest

from ztunnel.channel import Configure
from ztunnel.http2 import PING_INTERVAL_S
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
