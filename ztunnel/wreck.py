"""What a closed tunnel leaves behind: streams that have to be told, each of which gives a socket back and reports its end."""

from ztunnel.connection_record import Flag
from ztunnel.flow import Stream
from ztunnel.loop import Loop

STREAMS_PER_TURN = 4
"""100 us each: a tunnel of 200 streams must not keep all others waiting when it goes."""


class Wreck:
    """The streams of one closed tunnel."""

    def __init__(self, loop: Loop, source: object, streams: list[Stream], flag: Flag, error: str) -> None:
        self._loop, self._source = loop, source
        self._streams = streams[::-1]
        self._flag: Flag = flag
        self._error = error

    def go_on(self) -> None:
        """Tell some of them; the others when the source's turn comes (ztunnel.rota)."""
        try:
            for _ in range(min(STREAMS_PER_TURN, len(self._streams))):
                self._streams.pop().connection_lost(self._flag, self._error)
        finally:  # one of them may fail: the others are told all the same
            if self._streams:
                self._loop.rota.add(self._source, self)

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Crashing: whoever is left has a turn to come."""
