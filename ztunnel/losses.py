"""Tells piece by piece of the connections that dead workers carried: of tens of thousands, while others have their turns."""

import asyncio
from collections.abc import Callable

from wire.burst import Burst


class Losses:
    """A piece each turn of the supervisor's loop, from the first death to the last connection that is told of."""

    def __init__(self, tell_some: Callable[[], bool]) -> None:
        """`tell_some`: tells of a few; whether others are left."""
        self._tell_some = tell_some
        self._burst = Burst()
        self._next: asyncio.Handle | None = None
        self._all_told = asyncio.Event()
        self._all_told.set()

    def begin(self) -> None:
        """A worker died: its connections follow those of who died before."""
        if self._next is None:
            self._all_told.clear()
            self._next = asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._next = asyncio.get_running_loop().call_soon(self._go_on)  # before: one that raises keeps nobody else waiting
        self._burst.give_way()
        if not self._tell_some():
            self._next.cancel()
            self._next = None
            self._all_told.set()

    async def finish(self) -> None:
        """Wait until all are told of."""
        await self._all_told.wait()
