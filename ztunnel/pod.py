"""A pod that this worker serves: its namespace, its listeners, its tunnels both ways, and its connections."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from mesh.workload import Address, Workload
from ztunnel.baggage import baggage_of
from ztunnel.channel import AddPod
from ztunnel.connection_record import Flag
from ztunnel.ledger import DRAINED
from ztunnel.limits import Held, Holder, PartHeld, Usage
from ztunnel.node import Node
from ztunnel.outliers import Outliers
from ztunnel.pod_netns import Netns
from ztunnel.pool import Pool
from ztunnel.tunnel import Tunnel
from ztunnel.walk import ENDINGS_PER_TURN, Walk
from ztunnel.ways import Ways

if TYPE_CHECKING:
    from ztunnel.inbound import Errand


class Guest(Protocol):
    """An accepted connection that waits for something to become known."""

    def turn_away(self, flag: Flag, error: str) -> None:
        """Close it."""


class Closable(Protocol):
    """A listener."""

    def stand_behind(self) -> None:
        """Go behind the pod's home in the line, if it has time again."""

    def stand_aside(self, aside: bool) -> None:
        """Leave all who come to the other workers, or do so no longer."""

    def drain(self) -> None:
        """Take what waits in the kernel's queue, some a turn, and then stop listening."""

    def close(self) -> None:
        """Stop listening."""


class DNS(Protocol):
    """Answers the pod's questions for names."""

    def add(self, fds: list[int]) -> None:
        """Answer on further sockets too."""

    def drain(self) -> None:
        """Take no more questions."""

    def close(self) -> None:
        """End everything now."""


class Pod:
    """One pod; owns its namespace descriptor, listeners, tunnels and connections."""

    def __init__(self, node: Node, message: AddPod, netns_fd: int) -> None:
        self.node = node
        self.uid = message.uid
        self.namespace = message.namespace
        self.name = message.name
        self.service_account = message.service_account
        self.netns = Netns(node.loop, netns_fd, node.home_fd, node.config.packet_mark, node.config.tuning)
        self.keeps_source = node.config.keep_source_address and not message.own
        """The application sees the client's own address."""
        limits = node.config.pod_limits
        self.holder = Holder(limits, Held(limits.buffered_bytes, node.loop.held))
        self._held_of: WeakValueDictionary[Address, PartHeld] = WeakValueDictionary()
        self.pool = Pool(node, self.netns, self.holder.held)
        self.outliers = Outliers(node.config.tuning.outlier_failures)
        self.ways = Ways(node, self.outliers)
        self.listeners: list[Closable] = []
        self.dns: DNS | None = None
        self.tunnels: dict[Tunnel, None] = {}
        self.errand: Errand | None = None
        """Of the last request that was not like the one before it: a peer's next tunnel mostly wants the same."""
        self.connections = 0
        """In the ledger."""
        self.guests: dict[Guest, None] = {}
        self.lingering: dict[object, None] = {}
        """Tunnels through gateways whose connection has ended."""
        self.draining = False
        self.closed = False
        """Nothing begins any more, and what fails is for no other endpoint to try."""
        self._ending = Walk(node.loop, self._all_that_is_open, self._end_each, ENDINGS_PER_TURN)
        self._workload: Workload | None = None
        self._looked_at = -1
        self._described: Workload | None = None
        self._baggage = b""

    @property
    def held_connections(self) -> int:
        """Connections of its applications and its peers' tunnels, those that wait, and those of which last bytes do."""
        return self.connections + len(self.tunnels) + len(self.guests) + len(self.lingering)

    def has_room(self) -> bool:
        """Whether the pod, and the node, may have one more connection; counted where not."""
        return not self.holder.refuses("connections", self.held_connections) and self.node.has_room()

    def has_room_for_stream(self) -> bool:
        """The same for one more stream of a peer's tunnel."""
        node = self.node.holder
        return not (self.holder.refuses("streams", self.holder.streams) or node.refuses("streams", node.streams))

    def held_of(self, source: Address) -> PartHeld:
        """On whose account bytes of a peer's tunnels wait."""
        held = self._held_of.get(source)
        if held is None:
            held = self._held_of[source] = PartHeld(self.holder.held)
        return held

    def count_stream(self, change: int) -> None:
        """A stream began (1), or ended (-1)."""
        self.holder.streams += change
        self.node.holder.streams += change

    def connection_left(self) -> None:
        """One of its connections is in the ledger no more."""
        self.connections -= 1

    def request_left(self) -> None:
        """The same of one that came in a stream."""
        self.count_stream(-1)
        self.connection_left()

    def usage(self) -> Usage:
        """What it holds in this worker."""
        return self.holder.usage(self.held_connections, self.node.handshakes.count(self.uid))

    def workload(self) -> Workload | None:
        """The mesh's view of the pod, as it is now; not before all that goes with it is known, nor once it is closed."""
        if self._looked_at != self.node.generation and not self.node.unfinished and not self.closed:
            self._looked_at = self.node.generation
            node, config = self.node, self.node.config
            name = self.namespace, self.name, self.service_account
            self._workload = node.inventory.workload_of_pod(*name, config.node, config.cluster_id)
            if self._workload is None:
                node.mention(f"{config.cluster_id}//Pod/{self.namespace}/{self.name}")
        return self._workload

    def baggage(self, workload: Workload) -> bytes:
        """Its baggage; the same workload is asked for again and again."""
        if workload is not self._described:
            self._described, self._baggage = workload, baggage_of(workload)
        return self._baggage

    def stop_listening(self) -> None:
        """Accept nothing more."""
        listeners, self.listeners = self.listeners, []
        for listener in listeners:
            listener.close()

    def drain(self) -> None:
        """Let what is open, or has come to the door, finish, and take nothing new; `every_tunnel` is not told."""
        self.draining = True
        for listener in self.listeners:
            listener.drain()
        if self.dns is not None:
            self.dns.drain()

    def every_tunnel(self) -> list[Tunnel]:
        """Those of both directions."""
        return [*self.tunnels, *self.pool.tunnels()]

    def close(self) -> None:
        """Begin nothing any more, from now on; what is open, of which there may be tens of thousands, ends some a turn.

        Peers hear GOAWAY first.
        """
        self.closed = True
        self._workload, self._looked_at = None, -1
        self.stop_listening()
        if self.dns is not None:
            self.dns.close()
        self.netns.close()
        self._ending.begin()

    def _all_that_is_open(self) -> list[int | Callable[[], None]]:
        """Connections by their number, or how else it ends: the last one first."""
        guests = (partial(one.turn_away, "-", DRAINED) for one in self.guests)
        inbound = (partial(one.end, DRAINED) for one in self.tunnels)
        outbound = (partial(one.end, DRAINED) for one in self.pool.members())
        return [*self.node.ledger.of_pod(self.uid), *guests, *inbound, *outbound]

    def _end_each(self, some: list[int | Callable[[], None]]) -> None:
        for one in reversed(some):
            if isinstance(one, int):
                self.node.ledger.abort(one, "-", DRAINED)
            else:
                one()

    @property
    def is_ending(self) -> bool:
        """Whether some of what was open when it was closed is open still."""
        return self._ending.unfinished

    def finish(self) -> None:
        """End what is left of it at once, as there will be no more turns."""
        self._ending.finish()
