"""Inbound handshakes in flight: bounded in time, for each source, and in all. OpenSSL holds 45 KiB for a half one.

Whoever floods the door shows its own out first: beyond its share a source loses its oldest handshake, and who comes from
elsewhere does not notice. Only when many sources come at once does the oldest of all go.
"""

from mesh.workload import Address
from ztunnel.loop import Deadlines

TIMEOUT_S = 10.0
PER_SOURCE = 128
"""Good clients need milliseconds, and share connections."""
TOTAL = 512


class Handshakes(Deadlines):
    """Those of one worker."""

    def __init__(self) -> None:
        super().__init__(TIMEOUT_S)
        self._source: dict[object, Address] = {}
        self._of: dict[Address, dict[object, None]] = {}

    def make_room(self, source: Address) -> None:
        """One more will come from there."""
        own = self._of.get(source, ())
        if len(own) >= PER_SOURCE:
            self.evict(next(iter(own)))
        elif len(self) >= TOTAL:
            self.evict_oldest()

    def belongs(self, what: object, source: Address) -> None:
        """Count one that was added for its source."""
        self._source[what] = source
        self._of.setdefault(source, {})[what] = None

    def discard(self, what: object) -> None:
        """See Deadlines; who expires discards itself too."""
        super().discard(what)
        source = self._source.pop(what, None)
        if source is not None:
            own = self._of[source]
            del own[what]
            if not own:
                del self._of[source]
