"""Calls that are refused are told one by one, up to a number; of what comes beyond it the last, with how many it stands for.

A line costs control more than the call cost whoever made it: a flood at the door must not become one of the log.
"""

import asyncio
import logging
from collections import Counter

AT_ONCE = 8
"""Of one address, refused by one service, in PERIOD_S."""
ALL_AT_ONCE = 64
PERIOD_S = 10.0
_log = logging.getLogger("control.refusals")


class Refusals:
    """Those of one control plane. Used inside a running event loop."""

    def __init__(self) -> None:
        self.total = 0
        """Since the start."""
        self._told: Counter[tuple[str, str]] = Counter()
        """In this period, by address and service."""
        self._held = 0
        self._last = ""
        self._end: asyncio.TimerHandle | None = None

    def tell(self, service: str, peer: str, reason: str) -> None:
        """One more; `peer` as gRPC writes it, with the port."""
        self.total += 1
        if self._end is None:
            self._end = asyncio.get_running_loop().call_later(PERIOD_S, self.finish)
        key = peer.rpartition(":")[0], service
        line = f"{service} refused: peer={peer} {reason}"
        if self._told[key] < AT_ONCE and self._told.total() < ALL_AT_ONCE:
            self._told[key] += 1
            _log.warning("%s", line)
        else:
            self._held, self._last = self._held + 1, line

    def finish(self) -> None:
        """Tell what was held back, and begin a new period with the next one."""
        if self._held:
            _log.warning("%s repeated=%d: refused within %g s, from this address and others", self._last, self._held, PERIOD_S)
        if self._end is not None:
            self._end.cancel()
        self._told.clear()
        self._held, self._end = 0, None
