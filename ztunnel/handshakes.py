"""Inbound handshakes in flight, and who has yet to say the first word: bounded in time, for each source, and in all.

OpenSSL holds 45 KiB for a half one; who is silent costs little more than a socket.

Whoever floods the door shows its own out first: beyond its share a source loses its oldest handshake, and who comes from
elsewhere does not notice. Only when many sources come at once does the oldest of that pod go, or of all.
"""

from typing import Literal

from mesh.workload import Address
from ztunnel.loop import Deadlines
from ztunnel.tuning import HANDSHAKE_S

PER_SOURCE = 128
"""Good clients need milliseconds, and share connections."""
Bound = Literal["source", "pod", "node"]


class Handshakes(Deadlines):
    """Those of one worker."""

    def __init__(self, limit: int) -> None:
        """`limit`: of all together."""
        super().__init__(HANDSHAKE_S)
        self._limit = limit
        self._keys: dict[object, tuple[Address, str]] = {}
        self._of: dict[Address | str, dict[object, None]] = {}

    def make_room(self, source: Address, pod: str, pod_limit: int) -> Bound | None:
        """One more will come from there, to that pod (its uid): the bound for which another one goes, if any does."""
        if self.count(source) >= PER_SOURCE:
            self.evict(next(iter(self._of[source])))
            return "source"
        if self.count(pod) >= pod_limit:
            self.evict(next(iter(self._of[pod])))
            return "pod"
        if len(self) >= self._limit:
            self.evict_oldest()
            return "node"
        return None

    def count(self, key: Address | str) -> int:
        """Those from a source, or to a pod."""
        return len(self._of.get(key, ()))

    def belongs(self, what: object, source: Address, pod: str) -> None:
        """Count one that was added, for its source and its pod."""
        self._keys[what] = (source, pod)
        for key in (source, pod):
            self._of.setdefault(key, {})[what] = None

    def discard(self, what: object) -> None:
        """See Deadlines; who expires discards itself too."""
        super().discard(what)
        for key in self._keys.pop(what, ()):
            own = self._of[key]
            del own[what]
            if not own:
                del self._of[key]
