"""The proxy's connection events: read from its admin socket as they come.

A foreign proxy has no such stream; then there are the kernel's, and that is all.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from mesh.event_line import EventLine, read_event
from mesh.flows import ConnectionEvent
from wire.burst import Burst
from wire.http_client import open_stream, read_lines
from wire.http_messages import HttpError

RETRY_FIRST_S, RETRY_LONGEST_S = 0.2, 5.0
WATCH_S = 0.5
_MAX_LINE_BYTES = 64 << 10
_log = logging.getLogger(__name__)


class ProxyFlows:
    """Follows `GET /flows` on the proxy's admin socket, for ever; where a successor takes the socket over, both to the end."""

    def __init__(
        self,
        admin_socket: Path,
        on_event: Callable[[ConnectionEvent | EventLine], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._socket = admin_socket
        self._on_event = on_event
        self._on_lost = on_lost
        self._streams = 0
        self.unreadable = 0
        """Lines that were no event."""

    @property
    def connected(self) -> bool:
        """Whether some proxy tells its events."""
        return self._streams > 0

    async def run(self) -> None:
        """Read until cancelled."""
        pause_s = RETRY_FIRST_S
        async with asyncio.TaskGroup() as group:
            while True:
                socket_id = self._socket_id()
                reader = group.create_task(self._read_to_end())
                while not reader.done() and self._socket_id() in (socket_id, None):
                    await asyncio.wait([reader], timeout=WATCH_S)
                if reader.done():
                    pause_s = RETRY_FIRST_S if reader.result() else min(pause_s * 2, RETRY_LONGEST_S)
                    await asyncio.sleep(pause_s)

    def _socket_id(self) -> int | None:
        """What tells one proxy's socket from the next one's at the same path."""
        try:
            return self._socket.stat().st_ino
        except OSError:
            return None

    async def _read_to_end(self) -> bool:
        """One stream; whether there was one."""
        told, burst = False, Burst()
        try:
            async with open_stream(self._socket, "GET", "/flows") as (status, _, pieces):
                if status != 200:
                    return False
                told = True
                self._streams += 1
                async for line in read_lines(pieces, _MAX_LINE_BYTES):
                    if line.strip():
                        self._take(line)
                        burst.give_way()
        except (OSError, TimeoutError, HttpError) as error:
            if told:
                _log.info("flows of the proxy ended: %s", error)
        finally:
            self._streams -= told
        return told

    def _take(self, line: bytes) -> None:
        try:
            event = read_event(line)
        except ValueError:
            self.unreadable += 1
            return
        if isinstance(event, int):
            self._on_lost(event)
        else:
            self._on_event(event)
