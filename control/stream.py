"""What one client is told, and in which order. Pure; `control.discovery` carries it.

Between two types there is an order that matters: a workload lists policies by name, and a name without its policy counts for
nothing. Were a listed ALLOW policy replaced by another in the wrong order, its pod would for a moment be open to everybody. So
policies are made before they are broken: new ones first, then the workloads that list them, and only when the client was told
of those the policies that are gone. A client that comes back with policies that are gone by now keeps them just as long.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from control.lookup import node_group
from mesh.delta import DeltaServer, Request, Resource, Response, Snapshot
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE

MAX_NACK = 4096
"""Characters of a refusal that are kept."""


@dataclass(slots=True)
class Stream:
    """One client, for as long as it stays connected."""

    node: str
    server: DeltaServer = field(init=False)
    client: str = ""
    """xDS node id."""
    alone: bool = False
    """Whether a type that the client has not asked for is none that it wants: it has had time to ask for both."""
    last_nack: str = ""
    """The newest refusal of this stream; stays when later pushes are accepted."""
    _outstanding: dict[str, str] = field(default_factory=dict)
    """Nonce of the unacknowledged response, by type."""
    _told: dict[str, Snapshot] = field(default_factory=dict)
    """The newest state of which the client was told everything, by type."""
    _held: Snapshot = field(default_factory=lambda: Snapshot({}))
    """Policies that the client's workloads may list."""
    _said: Snapshot = field(default_factory=lambda: Snapshot({}))
    """Policies as the client was told of them last."""
    _joined: tuple[Snapshot, Snapshot, Snapshot] | None = None
    """What is held, policies, and both together."""
    _responses: int = 0

    def __post_init__(self) -> None:
        """Begin before the first request."""
        self.server = DeltaServer((ADDRESS_TYPE, AUTHORIZATION_TYPE), home=node_group(self.node))

    def is_in_step(self, snapshots: Mapping[str, Snapshot]) -> bool:
        """Whether the client acknowledged this very state of every type that it asked for."""
        types = self.server.type_urls
        return bool(types) and all(self.server.settled(url) and self._told.get(url) is snapshots[url] for url in types)

    def receive(self, request: Request) -> None:
        """Take a request in. Raises: ValueError for one that ends the stream."""
        is_first = request.type_url not in self.server.type_urls
        self.server.receive(request)
        if request.type_url == AUTHORIZATION_TYPE and is_first and not request.subscribe:
            kept = {name: Resource(name, version, b"") for name, version in request.initial_versions.items()}
            self._held = Snapshot(kept)
        if request.nonce and request.nonce == self._outstanding.get(request.type_url):
            del self._outstanding[request.type_url]
        if is_first or request.subscribe or request.unsubscribe:
            self._told.pop(request.type_url, None)
        if request.error is not None:
            self.last_nack = f"{request.type_url.rpartition('/')[2]}: {request.error}"[:MAX_NACK]

    def next_response(self, snapshots: Mapping[str, Snapshot]) -> Response | None:
        """What to say next, now that this is the state of each type; None: nothing until a request or another state."""
        addresses, policies = snapshots[ADDRESS_TYPE], snapshots[AUTHORIZATION_TYPE]
        response = self._push_policies(policies)
        # The client may owe an answer about older policies, or have come back and not asked for any yet: workloads that list
        # newer ones wait for that.
        if response is not None or not self._is_told(AUTHORIZATION_TYPE, self._with_held(policies)):
            return response
        response = self._push(ADDRESS_TYPE, addresses)
        if self._is_told(ADDRESS_TYPE, addresses):
            self._held = policies  # from here on its workloads list no others
        return response or self._push_policies(policies)

    def _is_told(self, type_url: str, snapshot: Snapshot) -> bool:
        """Whether the client was told of it, or wants nothing of this type."""
        return self._told.get(type_url) is snapshot if type_url in self.server.type_urls else self.alone

    def _with_held(self, policies: Snapshot) -> Snapshot:
        """The policies, and those that the client's workloads may list: the very same ones while neither changes."""
        if self._joined is None or self._joined[0] is not self._held or self._joined[1] is not policies:
            held, said = self._held.resources, self._said.resources
            # As it was told of them last: held may be an older one, or no more than the version that it came back with.
            gone = {name: said.get(name, held[name]) for name in held.keys() - policies.resources.keys()}
            self._joined = (self._held, policies, Snapshot({**gone, **policies.resources}) if gone else policies)
        return self._joined[2]

    def _push_policies(self, policies: Snapshot) -> Response | None:
        snapshot = self._with_held(policies)
        response = self._push(AUTHORIZATION_TYPE, snapshot)
        if response is not None:
            self._said = snapshot
        return response

    def _push(self, type_url: str, snapshot: Snapshot) -> Response | None:
        if self._told.get(type_url) is snapshot or type_url in self._outstanding:
            return None
        self._responses += 1
        nonce = str(self._responses)
        response = self.server.push(type_url, snapshot, nonce)
        self._told[type_url] = snapshot
        if response is not None:
            self._outstanding[type_url] = nonce
        return response
