"""What servers say when no descriptor is left to accept with."""

import asyncio
import logging
from typing import Any

from wire.descriptors import MENDS, SAYS_SO_EVERY_S

_log = logging.getLogger(__name__)


def say_when_none_is_left() -> None:
    """Have servers of the running loop that cannot accept say so in a line with the mend, once in 30 s.

    asyncio tries again every second, as often as its backlog is long, and writes a traceback each time.
    """
    said_at = -SAYS_SO_EVERY_S

    def hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said_at
        error = context.get("exception")
        mend = MENDS.get(error.errno or 0) if isinstance(error, OSError) else None
        if mend is None:
            loop.default_exception_handler(context)
        elif loop.time() - said_at >= SAYS_SO_EVERY_S:
            said_at = loop.time()
            _log.warning("nobody is answered: %s: %s", error, mend)

    asyncio.get_running_loop().set_exception_handler(hear)
