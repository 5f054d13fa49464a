"""What is to be done for each open connection, of which there may be tens of thousands: for some of them a turn.

A pass that has begun goes on to its end, however often it is asked for meanwhile; then another one begins, if it was. So
whatever holds when it is asked for is looked at for everybody within two passes, and nobody is last for ever. It takes no part
in the rota: among hundreds of busy peers, who is no longer allowed would go on for many seconds.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ztunnel.loop import Loop

PER_TURN = 128
"""Half a millisecond where each is judged or copied."""
ENDINGS_PER_TURN = 8
"""Connections that end take an eighth of a millisecond, tunnels with their streams a whole one."""
_One = TypeVar("_One")


class Walk(Generic[_One]):
    """Passes over all there are, the first piece of one at once and another one each turn of the loop."""

    def __init__(
        self,
        loop: Loop,
        everybody: Callable[[], list[_One]],
        visit: Callable[[list[_One]], None],
        per_turn: int = PER_TURN,
    ) -> None:
        """`everybody`: a list of its own for each pass; `visit`: some of it, perhaps none, of whom any may have ended."""
        self._loop = loop
        self._per_turn = per_turn
        self._everybody = everybody
        self._visit = visit
        self._left: list[_One] = []
        self._again = False

    @property
    def unfinished(self) -> bool:
        """Whether more pieces will come."""
        return bool(self._left)

    def begin(self) -> None:
        """Go over everybody; once more, where a pass is on its way."""
        if self._left:
            self._again = True
            return
        self._left = self._everybody()
        self._go_on()

    def _go_on(self) -> None:
        part = self._left[-self._per_turn :]
        del self._left[-self._per_turn :]
        if self._again and not self._left:
            self._again = False
            self._left = self._everybody()
        if self._left:
            self._loop.call_at(self._loop.now, self._later)
        self._visit(part)

    def put_back(self, part: Sequence[_One]) -> None:
        """To be called in a visit that has done enough for this turn: these are in the next piece."""
        if part and not self._left:
            self._loop.call_at(self._loop.now, self._later)
        self._left += part

    def finish(self) -> None:
        """Visit at once whoever is left, as there will be no more turns."""
        while self._left:
            self._go_on()

    def _later(self) -> None:
        try:
            if self._left:
                self._go_on()
        except Exception:
            # Who cannot say any more who is allowed to stay serves nobody: the supervisor starts a new worker.
            self._loop.running = False
            raise
