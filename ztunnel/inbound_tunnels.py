"""The tunnels that came in, and which of them goes when there are too many. An idle one costs 50 KiB, most of it OpenSSL's."""

from itertools import islice

from ztunnel.tunnel import Tunnel

PER_SOURCE = 192
"""To one pod, in one worker, handshakes included. A peer needs one for each 100 connections, or for each of its threads."""
TOTAL = 4096
AT_ONCE = 4
"""So many go when one must, for the sake of their other ends too: four that hear of it together cost half as much."""

_RECENT = 64
"""Of those that carried a stream last, so many are looked at."""


class InboundTunnels:
    """Those of one worker."""

    def __init__(self) -> None:
        self._all: dict[Tunnel, object] = {}
        """With its source, in the order in which they last carried a stream."""
        self._of: dict[object, dict[Tunnel, None]] = {}
        self._last: Tunnel | None = None
        """Of all."""

    def __len__(self) -> int:
        return len(self._all)

    def add(self, tunnel: Tunnel, source: object) -> list[Tunnel]:
        """Take one in; those that must go for it: of the same source beyond its share, of all beyond the total.

        They have no streams: some that have been so for longest, or the new one itself where all others are busy.
        """
        own = self._of.setdefault(source, {})
        self._all[tunnel] = source
        own[tunnel] = None
        self._last = tunnel
        crowded = own if len(own) > PER_SOURCE else self._all if len(self._all) > TOTAL else ()
        if not crowded:
            return []
        idle = (one for one in crowded if not one.http.streams and one is not tunnel)
        return list(islice(idle, AT_ONCE)) or [tunnel]

    def used(self, tunnel: Tunnel) -> None:
        """A stream came in: the tunnel is the least likely to be closed for room."""
        if tunnel is self._last:
            return
        source = self._all.pop(tunnel, None)
        own = self._of.get(source)
        if own is not None and tunnel in own:
            self._all[tunnel] = source
            del own[tunnel]
            own[tunnel] = None
            self._last = tunnel

    def beside_busy(self) -> list[Tunnel]:
        """Idle ones, a few, of sources that have a busy one here: what they begin next may go to another worker."""
        recent = list(islice(reversed(self._all.items()), _RECENT))
        busy = {source for tunnel, source in recent if tunnel.http.streams}
        return [tunnel for tunnel, source in recent if source in busy and tunnel.http.idle][:AT_ONCE]

    def remove(self, tunnel: Tunnel) -> None:
        """It is closed."""
        if tunnel is self._last:
            self._last = None
        source = self._all.pop(tunnel, None)
        own = self._of.get(source)
        if own is not None:
            own.pop(tunnel, None)
            if not own:
                del self._of[source]
