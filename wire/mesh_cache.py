"""The mesh's last known state on disk, so that a restart without the control plane keeps routing. Never keys.

A journal of the control plane's answers as they came, with their versions: to write a large mesh down costs next to nothing,
what is read back is decoded like an answer, and the versions make the next conversation with control cheap. A type's answers
become one when they are twice as much as the largest. A file that cannot be read is worth nothing and is made anew.

A disk that takes nothing (full, read-only) keeps nobody from serving: answers wait for it in memory, in their order. When they
become too many the journal ends, as it was at an older moment: with a gap a part of a mesh would be taken for the mesh.

One process writes at a time: an answer that a predecessor writes late would undo a newer one that its successor had written.
"""

import errno
import json
import logging
import sqlite3
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as Message
from google.protobuf.message import DecodeError, EncodeError

from mesh.delta import Resource
from mesh.undecoded import rule_out_memory
from wire.xds_response import read_resource

_log = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answer (number INTEGER PRIMARY KEY, type TEXT, body BLOB, refused TEXT);
CREATE INDEX IF NOT EXISTS answer_by_type ON answer (type);
"""
_VERSION = 4
_SLACK_BYTES = 256 << 10
"""Answers that stay as they are, however small the largest is."""
_ROW_BYTES = 64
"""What an answer costs beside its bytes."""
_MAX_WAITING_BYTES = 16 << 20
"""Answers that wait for a disk."""
_HOLD_S = 1.0
"""For a write that is under way: a successor waits for us."""
_DISK_CODES = frozenset(
    (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY)
)
"""It is the disk's fault, or that of who writes there now, a predecessor: what is in the file is as good as it was."""
_DISK_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
_Answer = tuple[str, bytes, Collection[str]]


class MeshCache:
    """Answers by type. Calls block for a disk write; they may come from any thread, one at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, in a folder that only root reads. OSError when there can be no such folder."""
        self._path = path
        self._sizes: dict[str, tuple[int, int]] = {}
        """By type, bytes of the largest answer, and of all."""
        self._waiting: list[_Answer] | None = []
        """What the disk did not take yet; None: the journal has ended."""
        self._unread: set[str] = set()
        """Types of which the disk did not say what is there: of those the control plane is asked for all, which replaces it."""
        self._retained = False
        """Resources of some type were read."""
        self._complained = False
        self._one_at_a_time = threading.Lock()
        self._held = False
        self._inode = 0
        """Of the file that is open; a successor of another release makes one of its own."""
        self._database: sqlite3.Connection | None = None
        try:
            self._database = self._open_or_replace()
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, OSError) and error.errno not in _DISK_ERRNOS:
                raise
            self._complain(error)

    def _open_or_replace(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if _is_of_the_disk(error):
                raise
            _log.warning("%s cannot be read (%s): starting without what was known of the mesh", self._path, error)
            for suffix in ("", "-journal"):
                with suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + suffix).unlink()
            return self._open()

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            mend = "make room, or name a folder that can be written (WEFT_STATE_DIR)"
            _log.error("%s: cannot keep what is known of the mesh: %s: %s", self._path, error, mend)
        self._complained = True

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists():
            self._path.touch(mode=0o600)
        # A statement that is kept for later keeps what it wrote.
        database = sqlite3.connect(self._path, check_same_thread=False, cached_statements=0)
        try:
            # Nothing is read again, nobody reads while one writes: no pages are kept, a large answer goes straight to the file.
            # Losing the last moments to a power cut is harmless: the control plane sends what is missing.
            database.executescript("PRAGMA cache_size = -256; PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = OFF;")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                setup = f"BEGIN; PRAGMA user_version = {_VERSION}; {_SCHEMA} COMMIT;"
                database.executescript("PRAGMA page_size = 16384;" + setup)
            elif version != _VERSION:
                raise sqlite3.DatabaseError("it is of another release")
            database.execute("SELECT count(*) FROM answer").fetchone()
            self._inode = self._path.stat().st_ino
        except (OSError, sqlite3.DatabaseError):
            database.close()
            raise
        return database

    def load(self, type_url: str) -> list[Resource]:
        """What is known of a type."""
        if self._database is None:
            self._unread.add(type_url)
            return []
        try:
            resources = list(map(read_resource, self._joined(self._database, type_url)))
        except (ValueError, sqlite3.DatabaseError) as error:
            if _is_of_the_disk(error):
                self._complain(error)
                self._unread.add(type_url)
                return []
            _log.warning("%s: what was known of %s cannot be read (%s): forgotten", self._path, type_url, error)
            self._forget(self._database, type_url)
            return []
        self._retained = self._retained or bool(resources)
        return resources

    def _forget(self, database: sqlite3.Connection, type_url: str) -> None:
        try:
            with database:
                database.execute("DELETE FROM answer WHERE type = ?", (type_url,))
        except sqlite3.DatabaseError:  # a type that cannot be deleted would be taken for known: no journal is better
            database.close()
            self._database = None
            if self._retained:  # of which the control plane will tell changes alone
                self._give_up()
            with suppress(OSError):
                self._path.unlink()

    def _joined(self, database: sqlite3.Connection, type_url: str) -> Iterable[Message]:
        """What all answers of a type come to. Raises: ValueError where one of them is none; MemoryError."""
        kept: dict[str, Message] = {}
        rows = database.execute("SELECT body, refused FROM answer WHERE type = ? ORDER BY number", (type_url,))
        for body, refused in rows:
            try:
                message = DeltaDiscoveryResponse.FromString(body)
            except DecodeError as error:
                rule_out_memory(error)
                raise ValueError(str(error)) from error
            for name in message.removed_resources:
                kept.pop(name, None)
            left_out = frozenset(json.loads(refused))
            kept |= {one.name: one for one in message.resources if one.name not in left_out}
        return kept.values()

    def answered(self, type_url: str) -> bool:
        """Whether the control plane ever told of a type, be it that there is nothing of it."""
        if self._database is None or type_url in self._unread:
            return False
        return bool(self._database.execute("SELECT 1 FROM answer WHERE type = ?", (type_url,)).fetchone())

    def apply(self, type_url: str, body: bytes, refused: Collection[str] = ()) -> None:
        """Keep an answer without what was refused of it, and those that wait; what the disk does not take waits."""
        with self._one_at_a_time:
            if self._waiting is None:
                return
            self._waiting.append((type_url, body, tuple(refused)))
            self._keep(self._waiting)

    def keep_waiting(self) -> None:
        """Keep the answers that wait; what the disk does not take waits on."""
        with self._one_at_a_time:
            if self._waiting:
                self._keep(self._waiting)

    def _keep(self, waiting: list[_Answer]) -> None:
        if self._held:
            self._sizes.clear()  # what is in the file is another one's doing
            self._bound(waiting)
        elif self._database is not None and not self._is_ours():
            self._give_up()
        else:
            self._write_waiting(waiting)

    def _write_waiting(self, waiting: list[_Answer]) -> None:
        try:
            if self._database is None:
                self._database = self._open_or_replace()
            replaced = self._unread & {type_url for type_url, _, _ in waiting}
            with self._database as database:
                for one in replaced:
                    self._empty(database, one)
                for answer in waiting:
                    self._write(database, *answer)
        except (OSError, sqlite3.Error) as error:
            self._sizes.clear()
            self._complain(error)
            self._bound(waiting)
        except MemoryError:
            self._sizes.clear()
            self._bound(waiting)
            raise
        except ValueError as error:
            self._complain(error)
            self._give_up()
        else:
            if self._complained:
                _log.info("%s: what is known of the mesh is kept again", self._path)
            self._complained = False
            self._unread -= replaced
            waiting.clear()

    def _bound(self, waiting: list[_Answer]) -> None:
        if sum(len(body) + _ROW_BYTES for _, body, _ in waiting) > _MAX_WAITING_BYTES:
            self._give_up()

    def _give_up(self) -> None:
        _log.error("%s: nothing more is kept in it until the next start", self._path)
        self._waiting = None

    def hold(self) -> None:
        """Leave the file to a successor: answers wait, and when this returns nothing is being written, or the disk hangs."""
        self._held = True
        if self._one_at_a_time.acquire(timeout=_HOLD_S):
            self._one_at_a_time.release()

    def resume(self) -> None:
        """The successor is gone: what waits may be written (`keep_waiting`), behind what it wrote, which is older by then."""
        self._held = False

    def _is_ours(self) -> bool:
        """Whether the file is the one that was opened."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def _write(self, database: sqlite3.Connection, type_url: str, body: bytes, refused: Collection[str]) -> None:
        self._insert(database, type_url, body, refused)
        largest, total = self._sizes[type_url]
        if total > 2 * largest + _SLACK_BYTES:
            response = DeltaDiscoveryResponse(resources=self._joined(database, type_url))
            try:
                joined = response.SerializeToString()
            except EncodeError as error:  # each of them was read; all of them are more than memory holds
                raise MemoryError(str(error)) from error
            self._empty(database, type_url)
            self._insert(database, type_url, joined, ())

    def _empty(self, database: sqlite3.Connection, type_url: str) -> None:
        database.execute("DELETE FROM answer WHERE type = ?", (type_url,))
        self._sizes[type_url] = (0, 0)

    def _insert(self, database: sqlite3.Connection, type_url: str, body: bytes, refused: Collection[str]) -> None:
        if type_url not in self._sizes:
            rows = database.execute("SELECT length(body) FROM answer WHERE type = ?", (type_url,))
            sizes = [int(size) + _ROW_BYTES for (size,) in rows]
            self._sizes[type_url] = (max(sizes, default=0), sum(sizes))
        values = (type_url, body, json.dumps(list(refused)))
        database.execute("INSERT INTO answer (type, body, refused) VALUES (?, ?, ?)", values)
        (largest, total), size = self._sizes[type_url], len(body) + _ROW_BYTES
        self._sizes[type_url] = (max(largest, size), total + size)

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()


def _is_of_the_disk(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK_CODES
