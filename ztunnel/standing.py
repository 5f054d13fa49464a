"""Whether a worker is in line for who comes: by the time that it has, the bulk that it moves, and the pods that it serves."""

import time
from collections.abc import Collection, Iterator, Mapping

from ztunnel.headroom import Headroom
from ztunnel.limits import Holder
from ztunnel.loop import MANY_BULKY_TURNS
from ztunnel.node import Node
from ztunnel.pod import Closable, Pod
from ztunnel.session_nice import BEHIND, SessionNice


class Standing:
    """Of a worker that is not the only one of its node."""

    def __init__(self, node: Node, headroom: Headroom, pods: Mapping[str, Pod], unserved: Collection[str]) -> None:
        """`pods`: those that it serves, by uid; `unserved`: those that it was told of and cannot serve."""
        self._node = node
        self._headroom = headroom
        self._pods = pods
        self._unserved = unserved
        self._session_nice = SessionNice()

    def renew(self) -> None:
        """Promise time to the others, or none, and hear what they promise: to be called several times a second."""
        loop, headroom = self._node.loop, self._headroom
        bulky, loop.bulky_turns = loop.bulky_turns >= MANY_BULKY_TURNS, 0
        headroom.renew(loop.now, time.process_time(), self._is_full or bulky)
        small_at = 0.0 if bulky else loop.small_at  # remains of many bulk streams look like small messages
        loop.small_elsewhere_at = headroom.small_elsewhere_at(loop.now, small_at)
        self._session_nice.set(BEHIND if bulky and loop.has_company_elsewhere else 0)
        aside = bulky and headroom.others_have_time(loop.now)
        for listener in self._listeners():
            listener.stand_aside(aside)
            listener.stand_behind()

    def begin_bulk(self) -> None:
        """Leave who comes, and who has nothing open beside it, to another one that has time."""
        self._headroom.take_back()
        if self._headroom.others_have_time(self._node.loop.now):
            for listener in self._listeners():
                listener.stand_aside(True)
            for tunnel in self._node.inbound_tunnels.beside_busy():
                tunnel.drain()

    @property
    def _is_full(self) -> bool:
        """It may soon have to refuse connections, or lacks a pod: of what is left to us there nobody would hear."""
        lacking = bool(self._unserved) or not self._pods
        return lacking or any(holder.half_full(connections) for holder, connections in self._holders())

    def _listeners(self) -> Iterator[Closable]:
        for pod in self._pods.values():
            yield from pod.listeners

    def _holders(self) -> Iterator[tuple[Holder, int]]:
        yield self._node.holder, self._node.connections
        for pod in self._pods.values():
            yield pod.holder, pod.held_connections
