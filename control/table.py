"""Nouns beside their encoded resources. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mesh.delta import Resource, version_of

_Noun = TypeVar("_Noun")


@dataclass(slots=True)
class Resources:
    """The encoded resources of one type; several tables may share them."""

    by_name: dict[str, Resource] = field(default_factory=dict)
    changed: bool = True
    """Since the last `take`; at first yes, so that nothing at all is published as such."""

    def take(self) -> dict[str, Resource] | None:
        """A copy of all of them, None where nothing changed since the last call."""
        if not self.changed:
            return None
        self.changed = False
        return dict(self.by_name)


def _none(_noun: object) -> tuple[str, ...]:
    return ()


@dataclass(slots=True)
class Table(Generic[_Noun]):
    """Nouns by resource name. Only a noun that differs from the one before is encoded."""

    encode: Callable[[_Noun], bytes]
    resources: Resources
    aliases: Callable[[_Noun], tuple[str, ...]] = _none
    groups: Callable[[_Noun], tuple[str, ...]] = _none
    nouns: dict[str, _Noun] = field(default_factory=dict)

    def put(self, name: str, noun: _Noun | None) -> None:
        """Set or (None) remove one."""
        if self.nouns.get(name) == noun:
            return
        self.resources.changed = True
        if noun is None:
            del self.nouns[name], self.resources.by_name[name]
            return
        value = self.encode(noun)
        self.nouns[name] = noun
        resource = Resource(name, version_of(value), value, self.aliases(noun), self.groups(noun))
        self.resources.by_name[name] = resource
