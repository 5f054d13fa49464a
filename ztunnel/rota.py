"""Who goes on next with what was left of earlier turns. Pure.

A source (the address of a peer) has one place in the round, however much it has left: who sends a thousand connections to
the door delays its own, and everybody else by one of them.
"""

from typing import Protocol


class Continued(Protocol):
    """Has more to do than one turn allows."""

    def go_on(self) -> None:
        """Do some more of it; what is still left enters the rota again."""

    def crashed(self, error: Exception) -> None:
        """See ztunnel.loop.Handler."""


class Rota:
    """What is left, by source, in the order of their turns."""

    def __init__(self) -> None:
        self.waiting: dict[object, dict[Continued, None]] = {}
        """Empty when nothing is left: looked at in every turn of the loop."""

    def add(self, source: object, what: Continued) -> None:
        """Queue behind all that its source has left."""
        self.waiting.setdefault(source, {})[what] = None

    def discard(self, source: object, what: Continued) -> None:
        """It has ended."""
        own = self.waiting.get(source)
        if own is not None:
            own.pop(what, None)
            if not own:
                del self.waiting[source]

    def take(self) -> Continued | None:
        """The first of the source whose turn it is, which goes to the end of the round with the rest of its own."""
        if not self.waiting:
            return None
        source = next(iter(self.waiting))
        own = self.waiting.pop(source)
        what = next(iter(own))
        del own[what]
        if own:
            self.waiting[source] = own
        return what
