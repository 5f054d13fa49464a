"""Delta xDS without I/O: what each end says, from what it has and what it hears.

One stream carries several types, each a conversation of its own: the client asks once (with the versions it still holds),
the server answers with what is new, changed or gone, and every answer is acknowledged (ACK) or, with a reason, refused (NACK)
under its nonce. What was valid in a refused answer counts all the same. Here are both ends:

- `DeltaClient` outlives its streams: what it retains makes the next stream cheap, and tells it what vanished meanwhile.
- `DeltaServer` is one stream. It has at most one unacknowledged answer per type outstanding; what happens meanwhile is told
  in one piece afterwards, so a slow client costs no memory and never sees a stale state twice.

Shells turn `Request` and `Response` into envoy.service.discovery.v3 messages and back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

MAX_RESOURCES = 200_000
"""Names per type that either end keeps for a peer: 20 times the largest mesh that is aimed at."""

MAX_REASON = 4096
"""Characters of a refusal's reason that are sent or kept: room for dozens of resources, none for a flood."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource as it travels: the value is that of its Any, whose type is the response's."""

    name: str
    version: str
    value: bytes = field(repr=False)
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """DeltaDiscoveryRequest. Without names, nonce and error: everything of this type, please."""

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None
    """error_detail.message of a NACK; None for anything else."""
    initial: bool = False
    """The first of its type on its stream: carries the Node. Only a client's shell reads this."""


@dataclass(frozen=True, slots=True)
class Response:
    """DeltaDiscoveryResponse."""

    type_url: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()
    nonce: str = ""
    system_version: str = ""


def version_of(value: bytes) -> str:
    """Make a version out of a value, so that equal values need not be sent twice: 16 hexadecimal digits."""
    return blake2b(value, digest_size=8).hexdigest()


class DeltaClient:
    """The asking end: what it holds of each type, over all its streams.

    For every stream: send `open()`, then for each response take its resources in and send what `answer()` returns.
    """

    def __init__(self, type_urls: Iterable[str], retained: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Begin with what an earlier run retained, by type and name; types are asked for in the order given."""
        kept = retained or {}
        self._versions: dict[str, dict[str, str]] = {url: dict(kept.get(url, {})) for url in type_urls}
        self._answered: set[str] = set()

    def open(self) -> list[Request]:
        """Start a stream: one request per type, with the versions that are held."""
        return [Request(url, initial_versions=dict(versions), initial=True) for url, versions in self._versions.items()]

    def answer(self, response: Response, refused: Mapping[str, str] | None = None) -> Request:
        """Record what was taken in of a response, and make the ACK, or the NACK if resources were refused (name -> reason).

        A refused resource is not retained; a version of it that was taken in earlier stays in force, and retained.
        A response of a type that nobody asked for is acknowledged and forgotten.
        """
        refused = dict(refused or {})
        versions = self._versions.get(response.type_url)
        if versions is None:
            return Request(response.type_url, nonce=response.nonce)
        for name in response.removed:
            versions.pop(name, None)
        for resource in response.resources:
            if resource.name not in refused:
                versions[resource.name] = resource.version
        self._answered.add(response.type_url)
        if not refused:
            return Request(response.type_url, nonce=response.nonce)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        return Request(response.type_url, nonce=response.nonce, error=reasons[:MAX_REASON])

    def excess(self, response: Response) -> dict[str, str]:
        """Name the resources of a response that would exceed the bound, each with its reason: refuse them, do not keep them."""
        versions = self._versions.get(response.type_url, {})
        room = MAX_RESOURCES - len(versions.keys() - set(response.removed))
        new = [resource.name for resource in response.resources if resource.name not in versions]
        return {name: f"more than {MAX_RESOURCES} resources of one type" for name in new[max(room, 0) :]}

    @property
    def ready(self) -> bool:
        """Whether every type has been answered at least once in this process."""
        return self._answered >= self._versions.keys()

    def versions(self, type_url: str) -> dict[str, str]:
        """What is held of a type, name -> version: worth keeping beside the resources themselves."""
        return dict(self._versions.get(type_url, {}))


@dataclass(frozen=True)
class Snapshot:
    """Everything of one type that a client is to have, by name. Build a new one for every state; never change one."""

    resources: Mapping[str, Resource]

    @cached_property
    def versions(self) -> dict[str, str]:
        """Name -> version, for comparing at the speed of dict views."""
        return {name: resource.version for name, resource in self.resources.items()}

    @cached_property
    def by_alias(self) -> dict[str, str]:
        """Alias -> name."""
        return {alias: name for name, resource in self.resources.items() for alias in resource.aliases}


@dataclass(slots=True)
class _Subscription:
    """One type of one stream."""

    wildcard: bool
    names: set[str]
    sent: Mapping[str, str]
    """What the client has, as far as it was told: name -> version. A snapshot's own, shared by all streams: never changed."""
    unanswered: set[str]
    """Names asked for since the last answer: these get one even if it is `removed`."""
    outstanding: str | None = None
    answered: bool = False
    acknowledged: bool = False
    refusal: str = ""


class DeltaServer:
    """The answering end of one stream."""

    def __init__(self, type_urls: Iterable[str]) -> None:
        self._offered = frozenset(type_urls)
        self._subscriptions: dict[str, _Subscription] = {}

    def receive(self, request: Request) -> None:
        """Take a request in: a subscription, a change of it, an ACK or a NACK. Then ask `push` for what it calls for.

        An ACK or NACK of anything but the newest response is ignored.
        Raises: ValueError for a type that is not served and for too many names: end the stream with the text.
        """
        if request.type_url not in self._offered:
            raise ValueError(f"type {request.type_url!r} is not served here")
        subscription = self._subscriptions.get(request.type_url)
        if subscription is None:
            self._subscribe(request)
            return
        if request.nonce and request.nonce == subscription.outstanding:
            subscription.outstanding = None
            subscription.acknowledged = request.error is None
            subscription.refusal = (request.error or "")[:MAX_REASON]
        self._change(subscription, request)

    def _subscribe(self, request: Request) -> None:
        names = set(request.subscribe) - set(request.unsubscribe)
        wildcard = not request.subscribe or "*" in names
        if len(request.initial_versions) > MAX_RESOURCES:
            raise ValueError(f"more than {MAX_RESOURCES} initial resource versions")
        subscription = _Subscription(wildcard, set(), dict(request.initial_versions), set())
        self._subscriptions[request.type_url] = subscription
        self._add_names(subscription, names)

    def _change(self, subscription: _Subscription, request: Request) -> None:
        self._add_names(subscription, set(request.subscribe))
        for name in request.unsubscribe:
            subscription.names.discard(name)
            subscription.unanswered.discard(name)
            if name == "*":
                subscription.wildcard = False
            elif not subscription.wildcard:
                subscription.sent = {known: version for known, version in subscription.sent.items() if known != name}

    def _add_names(self, subscription: _Subscription, names: set[str]) -> None:
        if "*" in names:
            subscription.wildcard = True
        wanted = names - {"*"}
        if len(subscription.names | wanted) > MAX_RESOURCES:
            raise ValueError(f"more than {MAX_RESOURCES} names subscribed")
        subscription.names |= wanted
        subscription.unanswered |= wanted

    def push(self, type_url: str, snapshot: Snapshot, nonce: str) -> Response | None:
        """Say what the client lacks of a snapshot, under a nonce new to this stream; None: nothing now.

        Nothing is said of a type that was not asked for, while an answer is outstanding (ask again after its ACK), and when
        the client has it all; but the first request always gets an answer, if need be an empty one.
        """
        subscription = self._subscriptions.get(type_url)
        if subscription is None or subscription.outstanding is not None:
            return None
        wanted, asked, unknown = self._wanted(subscription, snapshot)
        changed = {name for name, _ in wanted.items() - subscription.sent.items()} | asked
        removed = (subscription.sent.keys() - wanted.keys()) | unknown
        if not changed and not removed and subscription.answered:
            return None
        subscription.unanswered.clear()
        subscription.outstanding, subscription.answered, subscription.acknowledged = nonce, True, False
        subscription.sent = wanted
        return Response(type_url, tuple(snapshot.resources[name] for name in sorted(changed)), tuple(sorted(removed)), nonce)

    @staticmethod
    def _wanted(subscription: _Subscription, snapshot: Snapshot) -> tuple[Mapping[str, str], set[str], set[str]]:
        """What the client is to have (name -> version), which of it was just asked for, and which asked names do not exist."""
        resolved = {name: name if name in snapshot.resources else snapshot.by_alias.get(name) for name in subscription.names}
        asked = {real for name in subscription.unanswered if (real := resolved[name])}
        unknown = {name for name in subscription.unanswered if not resolved[name]}
        if subscription.wildcard:
            return snapshot.versions, asked, unknown
        return {name: snapshot.versions[name] for name in resolved.values() if name}, asked, unknown

    def settled(self, type_url: str) -> bool:
        """Whether the newest answer of a type was acknowledged (not refused, not outstanding)."""
        subscription = self._subscriptions.get(type_url)
        return subscription is not None and subscription.acknowledged

    def refusal(self, type_url: str) -> str:
        """The reason of the newest NACK if it was the last word on this type; else empty."""
        subscription = self._subscriptions.get(type_url)
        return subscription.refusal if subscription else ""

    @property
    def type_urls(self) -> list[str]:
        """The types asked for on this stream."""
        return list(self._subscriptions)

    @property
    def sent(self) -> int:
        """How many resources the client has been told of, over all types."""
        return sum(len(subscription.sent) for subscription in self._subscriptions.values())
