"""The proxy's connection events: read from its admin socket as they come.

A foreign proxy has no such stream; then there are the kernel's, and that is all.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from mesh.event_line import read_line
from mesh.flows import ConnectionEvent
from wire.http_unix import HttpError, open_stream, read_lines

RETRY_FIRST_S, RETRY_LONGEST_S = 0.2, 5.0
_MAX_LINE_BYTES = 64 << 10
_log = logging.getLogger(__name__)


class ProxyFlows:
    """Follows `GET /flows` on the proxy's admin socket, for ever."""

    def __init__(
        self,
        admin_socket: Path,
        on_event: Callable[[ConnectionEvent], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._socket = admin_socket
        self._on_event = on_event
        self._on_lost = on_lost
        self.connected = False
        self.unreadable = 0
        """Lines that were no event."""

    async def run(self) -> None:
        """Read until cancelled."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self._read()
                pause_s = RETRY_FIRST_S
            except (OSError, TimeoutError, HttpError) as error:
                if self.connected:
                    pause_s = RETRY_FIRST_S
                    _log.info("flows of the proxy ended: %s", error)
            self.connected = False
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_LONGEST_S)

    async def _read(self) -> None:
        async with open_stream(self._socket, "GET", "/flows") as (status, _, pieces):
            if status != 200:
                raise HttpError(status, "the proxy serves no flows")
            self.connected = True
            async for line in read_lines(pieces, _MAX_LINE_BYTES):
                if line.strip():
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = read_line(line)
        except ValueError:
            self.unreadable += 1
            return
        if isinstance(event, int):
            self._on_lost(event)
        else:
            self._on_event(event)
