"""What every client is to have now: one immutable snapshot per type."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from control.notice import Notice
from mesh.delta import Resource, Snapshot


@dataclass(slots=True)
class Feed:
    """The newest state. Only the newest: who was busy meanwhile asks for what is current when it is ready."""

    snapshots: dict[str, Snapshot]
    """By type URL; the types never change."""
    changed: Notice = field(default_factory=Notice)
    revision: int = 0

    @classmethod
    def of(cls, type_urls: Iterable[str]) -> "Feed":
        """Begin with nothing of each type."""
        return cls({type_url: Snapshot({}) for type_url in type_urls})

    def publish(self, resources: Mapping[str, Mapping[str, Resource]]) -> None:
        """Replace the snapshots of some types, then tell the listeners. The mappings must not change any more."""
        self.snapshots.update({type_url: Snapshot(several) for type_url, several in resources.items()})
        self.revision += 1
        self.changed.give()
