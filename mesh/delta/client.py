"""The asking end of delta xDS."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from mesh.delta import messages
from mesh.delta.messages import Request, Resource, Response

NAMES_PER_REQUEST = 256
MAX_PENDING = 4096
"""Demands without an answer, of one type."""
MAX_ASKED = 10_000
"""Names asked for on one stream. A server keeps each: then a new stream begins."""
ALL = "*"
_DOUBTFUL = "broken off"
"""No resource has this version."""
NOBODY = "-/-"
"""Nothing can have this name. To a request that only takes names back istiod answers that everything is gone."""


@dataclass(slots=True)
class _Type:
    """What is held, and asked for, of one type."""

    on_demand: bool
    versions: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By name of the resource."""
    by_alias: dict[str, str] = field(default_factory=dict)
    pending: dict[str, None] = field(default_factory=dict)
    """Names asked for and not answered."""
    unsent: dict[str, bool] = field(default_factory=dict)
    """Names that the present stream is to carry yet. True: it did, and they are taken back."""
    carried: set[str] = field(default_factory=set)
    """Names that it has carried, and those of what it told of and is gone or asked for: its server takes them for asked for."""
    answered: bool = False

    def drop(self, name: str) -> None:
        self.versions.pop(name, None)
        for alias in self.aliases.pop(name, ()):
            if self.by_alias.get(alias) == name:
                del self.by_alias[alias]

    def keep(self, resource: Resource) -> None:
        self.drop(resource.name)
        self.versions[resource.name] = resource.version
        if resource.aliases and self.on_demand:
            self.aliases[resource.name] = resource.aliases
            self.by_alias.update(dict.fromkeys(resource.aliases, resource.name))

    def keep_all(self, response: Response, refused: Collection[str]) -> None:
        if self.on_demand or response.versions is None:
            for resource in response.resources:
                if resource.name not in refused:
                    self.keep(resource)
        else:
            self.versions.update((name, version) for name, version in response.versions.items() if name not in refused)


class DeltaClient:
    """The asking end: what it holds of each type, over all its streams.

    For every stream: send `open()`, then for each response take its resources in and send what `answer()` returns; of types on
    demand send what `next_demand()` returns whenever something was demanded.
    """

    def __init__(
        self,
        type_urls: Iterable[str],
        retained: Mapping[str, Iterable[Resource]] | None = None,
        on_demand: Collection[str] = (),
    ) -> None:
        """Begin with what an earlier run retained, by type; types are asked for in the order given, some only by name."""
        self._types = {url: _Type(url in on_demand) for url in type_urls}
        for url, resources in (retained or {}).items():
            for resource in resources:
                self._types[url].keep(resource)
        self._asked = 0

    def open(self) -> list[Request]:
        """Start a stream: one request per type, with the versions that are held; a demand without answer has an empty one."""
        self._asked = 0
        return [self._first(url, one) for url, one in self._types.items()]

    def _first(self, url: str, one: _Type) -> Request:
        if not one.on_demand:
            return Request(url, initial_versions=dict(one.versions), initial=True)
        one.carried = set(one.pending)
        one.unsent = {name: False for name in one.unsent if name not in one.pending}
        self._asked += len(one.pending)
        return Request(url, (ALL,), (ALL,), {**one.versions, **dict.fromkeys(one.pending, "")}, initial=True)

    def demand(self, type_url: str, name: str, whole: bool = False) -> bool:
        """Ask for one resource of a type on demand, by name or alias; False: it is held, there is nothing to wait for.

        Who asks for what is held by its own name wants to know what has come to belong to it, and is told anew.
        `whole`: to be waited for is also who else has an alias, where the present stream was not asked for it yet.
        Raises: ValueError when too many demands wait for an answer.
        """
        one = self._types[type_url]
        if name in one.by_alias and (name in one.carried or not whole):
            if name not in one.carried:  # an earlier stream's: this one would not tell who else comes to have that address
                one.unsent.setdefault(name, False)
            return False
        if name not in one.pending:
            if len(one.pending) >= MAX_PENDING:
                raise ValueError(f"{MAX_PENDING} names are being asked for already")
            one.pending[name] = None
            if not one.unsent.setdefault(name, False) and name in one.versions:
                self._carry(one, name)
        return True

    def _carry(self, one: _Type, name: str) -> None:
        if name not in one.carried:
            one.carried.add(name)
            self._asked += 1

    def next_demand(self) -> Request | None:
        """The next names to send on the present stream; None: nothing now.

        Names that it carries already are taken back first: istiod answers to new names only, and does not tell who has come
        to have an address that was nobody's, or to serve a service.
        """
        for url, one in self._types.items():
            if one.unsent:
                names = tuple(one.unsent)[:NAMES_PER_REQUEST]
                if again := one.carried.intersection(names):
                    one.carried -= again
                    self._asked -= len(again)
                    one.unsent.update(dict.fromkeys(again, True))
                    return Request(url, (NOBODY,), tuple(name for name in names if name in again))
                for name in names:
                    del one.unsent[name]
                one.carried.update(names)
                self._asked += len(names)
                return Request(url, names)
        return None

    @property
    def is_spent(self) -> bool:
        """Whether the stream carried so many names that it should make room for another."""
        return self._asked > MAX_ASKED

    def answer(self, response: Response, refused: Mapping[str, str] | None = None) -> Request:
        """Record what was taken in of a response, and make the ACK, or the NACK if resources were refused (name -> reason).

        A refused resource is not retained; a version of it that was taken in earlier stays in force, and retained.
        A response of a type that nobody asked for is acknowledged and forgotten.
        """
        refused = dict(refused or {})
        one = self._types.get(response.type_url)
        if one is None:
            return Request(response.type_url, nonce=response.nonce)
        for name in response.removed:
            self._gone(one, name)
        one.keep_all(response, refused)
        one.answered = True
        if not refused:
            return Request(response.type_url, nonce=response.nonce)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        return Request(response.type_url, nonce=response.nonce, error=reasons[: messages.MAX_REASON])

    def doubt(self, response: Response) -> None:
        """What a response names may be held as it says, or as before: it broke off. The next stream tells all of that anew.

        Else who goes back meanwhile to what it said before would find nothing to tell.
        """
        one = self._types.get(response.type_url)
        if one is not None:
            beyond = self.excess(response)
            brought = (resource.name for resource in response.resources if resource.name not in beyond)
            one.versions |= dict.fromkeys((*response.removed, *brought), _DOUBTFUL)

    def _gone(self, one: _Type, name: str) -> None:
        if one.on_demand and name in one.versions:
            self._carry(one, name)
        one.drop(name)

    def satisfied(self, response: Response, refused: Mapping[str, str]) -> dict[str, str]:
        """Strike off the demands that a response answers: name -> why it was refused, empty if it was not.

        An answer is a resource of that name or alias, or that name among the removed: there is none.
        """
        one = self._types.get(response.type_url)
        if one is None or not one.pending:
            return {}
        told = dict.fromkeys(response.removed, "")
        for resource in response.resources:
            told |= dict.fromkeys((resource.name, *resource.aliases), refused.get(resource.name, ""))
        answers = {name: told[name] for name in one.pending.keys() & told.keys()}
        for name in answers:
            del one.pending[name]  # and is sent yet, if it was not: else its server would not tell who else comes to be meant
        return answers

    def excess(self, response: Response) -> dict[str, str]:
        """Name the resources of a response that would exceed the bound, each with its reason: refuse them, do not keep them."""
        one = self._types.get(response.type_url)
        versions = one.versions if one else {}
        if len(versions) + len(response.resources) <= messages.MAX_RESOURCES:
            return {}
        room = messages.MAX_RESOURCES - len(versions.keys() - set(response.removed))
        new = [resource.name for resource in response.resources if resource.name not in versions]
        return {name: f"more than {messages.MAX_RESOURCES} resources of one type" for name in new[max(room, 0) :]}

    @property
    def ready(self) -> bool:
        """Whether every type has been answered at least once in this process."""
        return all(one.answered for one in self._types.values())

    def versions(self, type_url: str) -> dict[str, str]:
        """What is held of a type, name -> version: worth keeping beside the resources themselves."""
        one = self._types.get(type_url)
        return dict(one.versions) if one else {}
