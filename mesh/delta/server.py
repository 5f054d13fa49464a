"""The answering end of delta xDS."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mesh.delta import messages
from mesh.delta.messages import Request, Resource, Response
from mesh.delta.snapshot import Snapshot


@dataclass(slots=True)
class _Subscription:
    """One type of one stream."""

    wildcard: bool
    names: set[str]
    """What was asked for by name."""
    kept: set[str]
    """What a client that asks by name brought along: asked for too, as long as it exists."""
    sent: Mapping[str, str]
    """What the client has, as far as it was told: name -> version. A snapshot's own, shared by all streams: never changed."""
    unanswered: set[str]
    """Names asked for since the last answer: these get one even if it is `removed`."""
    found: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What the names mean in `looked_up_in`: looked up again only when that is another, so that one more name costs one."""
    looked_up_in: Snapshot | None = None
    outstanding: str | None = None
    answered: bool = False
    acknowledged: bool = False
    refusal: str = ""


@dataclass(slots=True)
class _Wanted:
    """What a subscription means, now."""

    versions: Mapping[str, str]
    """What the client is to have."""
    asked: dict[str, set[str]] = field(default_factory=dict)
    """What of it was just asked for, and under which other names."""
    unknown: set[str] = field(default_factory=set)
    """What was just asked for and does not exist."""


class DeltaServer:
    """The answering end of one stream."""

    def __init__(self, type_urls: Iterable[str], home: str = "") -> None:
        """Who asks by name is given the resources of the group `home` unasked."""
        self._offered = frozenset(type_urls)
        self._home = home
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
            subscription.refusal = (request.error or "")[: messages.MAX_REASON]
        self._change(subscription, request)

    def _subscribe(self, request: Request) -> None:
        names = set(request.subscribe) - set(request.unsubscribe)
        wildcard = not request.subscribe or "*" in names
        if len(request.initial_versions) > messages.MAX_RESOURCES:
            raise ValueError(f"more than {messages.MAX_RESOURCES} initial resource versions")
        subscription = _Subscription(wildcard, set(), set(), dict(request.initial_versions), set())
        self._subscriptions[request.type_url] = subscription
        if not wildcard:
            # Without a version: asked for on an earlier stream, and not answered there.
            names |= {name for name, version in request.initial_versions.items() if not version}
            subscription.kept = request.initial_versions.keys() - names
        self._add_names(subscription, names)

    def _change(self, subscription: _Subscription, request: Request) -> None:
        self._add_names(subscription, set(request.subscribe))
        if not (gone := set(request.unsubscribe)):
            return
        subscription.names -= gone
        subscription.kept -= gone
        subscription.unanswered -= gone
        subscription.looked_up_in = None
        if "*" in gone:
            subscription.wildcard = False
        if not subscription.wildcard:
            # At once for all of them: who takes thousands of names back must not have what it knows copied as often.
            subscription.sent = {name: version for name, version in subscription.sent.items() if name not in gone}

    def _add_names(self, subscription: _Subscription, names: set[str]) -> None:
        if "*" in names:
            subscription.wildcard = True
        wanted = names - {"*"}
        if any(len(name) > messages.MAX_NAME for name in wanted):
            raise ValueError(f"a name of more than {messages.MAX_NAME} characters subscribed")
        if len(subscription.names | wanted) > messages.MAX_NAMES:
            raise ValueError(f"more than {messages.MAX_NAMES} names subscribed")
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
        wanted = self._wanted(subscription, snapshot)
        changed = {name for name, _ in wanted.versions.items() - subscription.sent.items()} | wanted.asked.keys()
        removed = (subscription.sent.keys() - wanted.versions.keys()) | wanted.unknown
        if not changed and not removed and subscription.answered:
            return None
        subscription.unanswered.clear()
        subscription.outstanding, subscription.answered, subscription.acknowledged = nonce, True, False
        subscription.sent = wanted.versions
        resources = tuple(snapshot.resources[name] for name in sorted(changed))
        if not subscription.wildcard:
            resources = tuple(_answering(resource, wanted.asked.get(resource.name, set())) for resource in resources)
            # Istio's ztunnel knows resource names and removals only: without this its first connection to an address hangs.
            removed |= {name for others in wanted.asked.values() for name in others}
        return Response(type_url, resources, tuple(sorted(removed)), nonce, by_name=not subscription.wildcard)

    def _wanted(self, subscription: _Subscription, snapshot: Snapshot) -> _Wanted:
        is_known = subscription.looked_up_in is snapshot
        found = {name: snapshot.find(name) for name in (subscription.unanswered if is_known else subscription.names)}
        if not is_known:
            subscription.found.clear()
        subscription.found.update(found)
        subscription.looked_up_in = snapshot
        wanted = _Wanted(snapshot.versions)
        for name in subscription.unanswered:
            if not found[name]:
                wanted.unknown.add(name)
            for real in found[name]:
                wanted.asked.setdefault(real, set()).update({name} - {real})
        if not subscription.wildcard:
            subscription.kept &= snapshot.resources.keys()
            chosen = subscription.kept.union(*subscription.found.values())
            chosen.update(*(snapshot.members(name) for name in (self._home, *chosen)))
            wanted.versions = {name: snapshot.versions[name] for name in chosen}
        return wanted

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


def _answering(resource: Resource, names: set[str]) -> Resource:
    """The resource, under all names by which it was asked for."""
    return resource._replace(aliases=(*resource.aliases, *sorted(names - set(resource.aliases))))
