"""A pod's ways: where its connections go, and what they say on the way, made once for all that go the same.

A way is kept for a client's address and what it dialled, until the mesh changes (`Node.generation`), an endpoint is set aside
or comes back, or the pod is somebody else. Only where chance had no say: whom it chooses is chosen anew for each connection.
"""

from typing import NamedTuple

from mesh.identity import Identity
from mesh.workload import Workload
from ztunnel.balance import NOBODY
from ztunnel.ledger import SocketAddress
from ztunnel.node import Node
from ztunnel.outliers import Choice, Outliers
from ztunnel.pool import Key
from ztunnel.route import Refused, Request, Route, decide

MAX_KNOWN = 1024
"""Of a pod, in one worker; then all are forgotten."""


class _AllBut(frozenset[str]):
    """All uids but these, as the ones to avoid."""

    def __contains__(self, uid: object) -> bool:
        """Whether it is to be avoided."""
        return not super().__contains__(uid)


class Way(NamedTuple):
    """A route, and what follows from it."""

    route: Route
    key: Key | None = None
    """Of the tunnel; None: there is none, or it is not known yet to which address."""
    peer: SocketAddress | None = None
    """Where the tunnel goes, once for all that go there."""
    authority: str = ""
    """Of the request in it."""
    identity: Identity | None = None
    """Whose the other end should be."""


def way_of(request: Request, route: Route) -> Way:
    """What follows from a route."""
    if route.protocol == "TCP" or route.address is None:
        return Way(route)
    key = Key(request.client.identity, route.expected, request.source, route.address, route.port)
    identity = route.workload.identity if route.workload else None
    return Way(route, key, (route.address, route.port), str(route.authority), identity)


class Ways:
    """Those of one pod."""

    def __init__(self, node: Node, outliers: Outliers) -> None:
        """`outliers`: the pod's own."""
        self._node = node
        self._outliers = outliers
        self._known: dict[tuple[int, int, int], tuple[Way, Request]] = {}
        """By the addresses' own identity, as their hash costs more than all else here; the request keeps them alive."""
        self._client: Workload | None = None
        self._generation = -1
        self._aside: frozenset[Choice] = outliers.aside

    def find(self, request: Request, avoid: frozenset[str] = NOBODY) -> Way | Refused:
        """Decide where a connection goes, or remember it. `avoid`: see `ztunnel.route.decide`."""
        node = self._node
        if avoid or node.demands is not None:  # on demand, a question may be worth asking again
            return self._decide(request, avoid)
        aside = self._outliers.aside
        if node.generation != self._generation or request.client is not self._client or aside is not self._aside:
            self._known.clear()
            self._generation, self._client, self._aside = node.generation, request.client, aside
        ends = id(request.source), id(request.destination), request.port
        known = self._known.get(ends)
        if known is not None:
            return known[0]
        found = self._decide(request, avoid)
        if isinstance(found, Way) and found.route.certain and not node.unfinished:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[ends] = found, request
        return found

    def elsewhere(self, request: Request, before: Route, avoid: frozenset[str]) -> Way | Refused | None:
        """Where a connection would go now that was to take a route before the mesh changed; None: where it was to go.

        Who was chosen by chance is not chosen anew: it only has to be somebody who still can be. And what is on its way to a
        tunnel, or to who was known, does not go in plain because that one is known no longer: there it is served, or nowhere.
        """
        way = self.find(request, avoid)
        if _leads(way, before):
            return None
        chosen = {one.uid for one in (before.workload, before.choice) if one is not None}
        if chosen and _leads(self.find(request, _AllBut(chosen)), before):
            return None
        if isinstance(way, Way) and way.route.protocol == "TCP" and (before.protocol != "TCP" or way.route.workload is None):
            return None
        return way

    def _decide(self, request: Request, avoid: frozenset[str]) -> Way | Refused:
        node = self._node
        outcome = decide(node.inventory, node.config.network, request, node.chance(), avoid, self._outliers.aside)
        return way_of(request, outcome) if isinstance(outcome, Route) else outcome


def _leads(way: Way | Refused, where: Route) -> bool:
    """Whether a way has this route, by chance or not."""
    return isinstance(way, Way) and way.route._replace(certain=where.certain) == where
