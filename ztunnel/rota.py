"""Who goes on next with what was left of earlier turns. Pure.

A source (the address of a peer) has one place in the round, however much it has left: who sends a thousand connections to
the door delays its own, and everybody else by one of them. Strangers, who have yet to prove who they are, have a round of
their own, and every other turn: a thousand peers that come back at once delay nobody who is here by more than one of them.
"""

from typing import Protocol


class Continued(Protocol):
    """Has more to do than one turn allows."""

    def go_on(self) -> None:
        """Do some more of it; what is still left enters the rota again."""

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""


_Round = dict[object, dict[Continued, None]]
_STRANGERS = object()
"""Stands among the sources while any of them waits."""


class Rota:
    """What is left, by source, in the order of their turns."""

    def __init__(self) -> None:
        self.waiting: _Round = {}
        """Empty when nothing is left: looked at in every turn of the loop."""
        self._strangers: _Round = {}
        self._is_theirs = False

    def add(self, source: object, what: Continued, stranger: bool = False) -> None:
        """Queue behind all that its source has left."""
        if stranger:
            self.waiting.setdefault(_STRANGERS, {})
        (self._strangers if stranger else self.waiting).setdefault(source, {})[what] = None

    def discard(self, source: object, what: Continued) -> None:
        """It has ended."""
        for sources in (self.waiting, self._strangers):
            own = sources.get(source)
            if own is not None:
                own.pop(what, None)
                if not own:
                    del sources[source]
        if not self._strangers:
            self.waiting.pop(_STRANGERS, None)

    def take(self) -> Continued | None:
        """The first of the source whose turn it is, which goes to the end of the round with the rest of its own."""
        waiting, strangers = self.waiting, self._strangers
        if not waiting:
            return None
        if not strangers:
            return _first(waiting)
        self._is_theirs = not self._is_theirs
        if not self._is_theirs and len(waiting) > 1:
            waiting[_STRANGERS] = waiting.pop(_STRANGERS)  # not the first
            return _first(waiting)
        what = _first(strangers)
        if not strangers:
            del waiting[_STRANGERS]
        return what


def _first(sources: _Round) -> Continued:
    source = next(iter(sources))
    own = sources.pop(source)
    what = next(iter(own))
    del own[what]
    if own:
        sources[source] = own
    return what
