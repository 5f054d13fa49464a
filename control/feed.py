"""What every client is to have now: one immutable snapshot per type, and a word to whoever waits for the next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mesh.delta import Resource, Snapshot


@dataclass(slots=True)
class Feed:
    """The newest state. Only the newest: who was busy meanwhile asks for what is current when it is ready."""

    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    """By type URL."""
    revision: int = 0
    _listeners: dict[int, Callable[[], None]] = field(default_factory=dict)
    _next_listener: int = 0

    def publish(self, changed: Mapping[str, Mapping[str, Resource]]) -> None:
        """Replace the snapshots of some types, then tell the listeners."""
        for type_url, resources in changed.items():
            self.snapshots[type_url] = Snapshot(dict(resources))
        self.revision += 1
        for listener in list(self._listeners.values()):
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each publication (it must not block); returns what ends that."""
        number = self._next_listener
        self._next_listener += 1
        self._listeners[number] = listener
        return lambda: self._listeners.pop(number, None) and None
