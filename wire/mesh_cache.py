"""The mesh's last known state on disk, so that a restart without the control plane keeps routing. Never keys.

Resources are kept as they came, with their versions: what is read back is decoded like an answer of the control plane, and
the versions make the next conversation with it cheap. A file that cannot be read is worth nothing and is made anew.
"""

import logging
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mesh.delta import Resource

_log = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS resource (
    type TEXT, name TEXT, version TEXT, value BLOB, aliases TEXT, PRIMARY KEY (type, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answered (type TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_VERSION = 3


class MeshCache:
    """Resources by type and name. Calls block for a disk write; they may come from any thread, one at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, in a folder that only root reads. OSError when the folder cannot be made."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        try:
            self._database = self._open()
        except sqlite3.DatabaseError as error:
            _log.warning("%s cannot be read (%s): starting without what was known of the mesh", self._path, error)
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + suffix).unlink()
            self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)
        database = sqlite3.connect(self._path, check_same_thread=False)
        try:
            # Losing the last moments to a power cut is harmless: the control plane sends what is missing.
            if database.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
                raise sqlite3.DatabaseError("it is of another release")
            # Nothing is read again: pages need not be kept.
            setup = "PRAGMA cache_size = -256; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;"
            setup += f"PRAGMA user_version = {_VERSION};"
            database.executescript(setup + _SCHEMA)
            database.execute("SELECT count(*) FROM resource").fetchone()
        except sqlite3.DatabaseError:
            database.close()
            raise
        return database

    def load(self, type_url: str) -> list[Resource]:
        """What is known of a type."""
        query = "SELECT name, version, value, aliases FROM resource WHERE type = ? ORDER BY name"
        rows = self._database.execute(query, (type_url,))
        return [Resource(name, version, value, tuple(aliases.split())) for name, version, value, aliases in rows]

    def answered(self, type_url: str) -> bool:
        """Whether the control plane ever told of a type, be it that there is nothing of it."""
        return bool(self._database.execute("SELECT 1 FROM answered WHERE type = ?", (type_url,)).fetchone())

    def apply(self, type_url: str, upserts: Iterable[Resource], removals: Iterable[str]) -> None:
        """Take an update in, removals first; a disk that fails is logged, and costs no more than a slower start."""
        rows = ((type_url, one.name, one.version, one.value, " ".join(one.aliases)) for one in upserts)
        try:
            with self._database as database:
                database.execute("INSERT OR IGNORE INTO answered VALUES (?)", (type_url,))
                database.executemany(
                    "DELETE FROM resource WHERE type = ? AND name = ?", [(type_url, name) for name in removals]
                )
                database.executemany("INSERT OR REPLACE INTO resource VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            _log.warning("%s: cannot keep what is known of the mesh: %s", self._path, error)

    def close(self) -> None:
        """Close the file."""
        self._database.close()
