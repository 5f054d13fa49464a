"""A file that is read again when it changes: when it has settled, or when it is needed; what cannot be read leaves what was."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

LOOK_S = 0.5
"""Two looks in a row that see the same file: nobody is writing it any more."""
_log = logging.getLogger(__name__)
_Mark = tuple[int, int, int, int]
_Content = TypeVar("_Content")


class FollowedFile:
    """A file as it was when this was made; make it before the file is read for the first time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = self._mark()

    @property
    def is_there(self) -> bool:
        """Whether it existed when it was looked at last."""
        return self._read is not None

    def news(self, read: Callable[[], _Content]) -> _Content | None:
        """What it says since it changed, for who looks when it needs the content; None: it is as it was, or is not there.

        Raises: what `read` does. What an OSError kept from being read may be as good as new: it is tried again the next time.
        """
        seen = self._mark()
        if seen is None or seen == self._read:
            return None
        try:
            content = read()
        except ValueError:
            self._read = seen
            raise
        self._read = seen
        return content

    async def follow(self, read: Callable[[], _Content], take: Callable[[_Content], None], otherwise: str) -> None:
        """Read each change (in a thread) and hand it on, until cancelled.

        `read` raises OSError or ValueError, naming the file, for what is logged once, with what is so `otherwise`. What an
        OSError kept from being read may be as good as new: it is tried again at each look.
        """
        seen, unread = self._read, None
        while True:
            await asyncio.sleep(LOOK_S)
            before, seen = seen, self._mark()
            if seen is None or seen == self._read or seen != before:
                continue
            try:
                content = await asyncio.to_thread(read)
            except (OSError, ValueError) as error:
                if seen != unread:
                    _log.error("%s: %s", error, otherwise)
                unread = seen
                if not (isinstance(error, OSError) or isinstance(error.__cause__, OSError)):
                    self._read = seen
                continue
            self._read = seen
            take(content)

    def _mark(self) -> _Mark | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
