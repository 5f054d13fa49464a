"""What servers say when no descriptor is left to accept with, and how they end when no memory is left."""

import asyncio
import logging
import os
from typing import Any

from wire.descriptors import MENDS, SAYS_SO_EVERY_S

_MEMORY = "raise the limit of this process or its container"
_log = logging.getLogger(__name__)


def say_when_none_is_left() -> None:
    """Have servers of the running loop that cannot accept say so in a line with the mend, once in 30 s.

    asyncio tries again every second, as often as its backlog is long, and writes a traceback each time.

    And have a callback of the loop that breaks off where memory ends be the end of this process: it may have stopped between
    two halves of a change, and whoever waits for the other one would wait for ever. What a task does has somebody who waits for
    it, and what is read for one client ends with that client.
    """
    said_at = -SAYS_SO_EVERY_S

    def hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said_at
        error = context.get("exception")
        if isinstance(error, MemoryError) and "handle" in context:
            try:
                _log.critical("no memory is left, and a change may be half done: ending; %s", _MEMORY)
            finally:
                os._exit(1)
        mend = MENDS.get(error.errno or 0) if isinstance(error, OSError) else None
        if mend is None:
            loop.default_exception_handler(context)
        elif loop.time() - said_at >= SAYS_SO_EVERY_S:
            said_at = loop.time()
            _log.warning("nobody is answered: %s: %s", error, mend)

    asyncio.get_running_loop().set_exception_handler(hear)
