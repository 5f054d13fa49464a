"""Answers that take work to make, to whoever asks: given again for a while, so that asking often costs a part of the time.

A metrics port is open to the whole network, and who serves it has other work that somebody waits for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

FRESH_S = 0.1
"""An answer is given again for so long, however little work it is."""
SHARE = 0.1
"""Of the time, for making them."""


class Seldom:
    """One kind of answer."""

    def __init__(self, make: Callable[[], Awaitable[bytes]], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._making = asyncio.Lock()
        self._made = b""
        self._fresh_until = 0.0

    async def get(self) -> bytes:
        """The newest one, or one that is made now; who asks meanwhile waits for it."""
        async with self._making:
            began = self._clock()
            if began >= self._fresh_until:
                self._made = await self._make()
                ended = self._clock()
                self._fresh_until = ended + max(FRESH_S, (ended - began) / SHARE)
            return self._made
