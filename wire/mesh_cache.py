"""The mesh's last known state on disk, so that a restart without the control plane keeps routing. Never keys.

A journal of the control plane's answers as they came, with their versions: to write a large mesh down costs next to nothing,
what is read back is decoded like an answer, and the versions make the next conversation with control cheap. A type's answers
become one when they are twice as much as the largest. A file that cannot be read is worth nothing and is made anew.
"""

import json
import logging
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as Message
from google.protobuf.message import DecodeError

from mesh.delta import Resource
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


class MeshCache:
    """Answers by type. Calls block for a disk write; they may come from any thread, one at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, in a folder that only root reads. OSError when the folder cannot be made."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._sizes: dict[str, tuple[int, int]] = {}
        """By type, bytes of the largest answer, and of all."""
        try:
            self._database = self._open()
        except sqlite3.DatabaseError as error:
            _log.warning("%s cannot be read (%s): starting without what was known of the mesh", self._path, error)
            for suffix in ("", "-journal"):
                with suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + suffix).unlink()
            self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)
        # A statement that is kept for later keeps what it wrote.
        database = sqlite3.connect(self._path, check_same_thread=False, cached_statements=0)
        try:
            # Losing the last moments to a power cut is harmless: the control plane sends what is missing.
            if database.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
                raise sqlite3.DatabaseError("it is of another release")
            # Nothing is read again, nobody reads while one writes: no pages are kept, a large answer goes straight to the file.
            setup = "PRAGMA page_size = 16384; PRAGMA cache_size = -256; PRAGMA journal_mode = TRUNCATE;"
            setup += f"PRAGMA synchronous = OFF; PRAGMA user_version = {_VERSION};"
            database.executescript(setup + _SCHEMA)
            database.execute("SELECT count(*) FROM answer").fetchone()
        except sqlite3.DatabaseError:
            database.close()
            raise
        return database

    def load(self, type_url: str) -> list[Resource]:
        """What is known of a type."""
        try:
            return list(map(read_resource, self._joined(type_url)))
        except ValueError as error:
            _log.warning("%s: what was known of %s cannot be read (%s): forgotten", self._path, type_url, error)
            with self._database as database:
                database.execute("DELETE FROM answer WHERE type = ?", (type_url,))
            return []

    def _joined(self, type_url: str) -> Iterable[Message]:
        """What all answers of a type come to. Raises: ValueError where one of them is none."""
        kept: dict[str, Message] = {}
        rows = self._database.execute("SELECT body, refused FROM answer WHERE type = ? ORDER BY number", (type_url,))
        for body, refused in rows:
            try:
                message = DeltaDiscoveryResponse.FromString(body)
            except DecodeError as error:
                raise ValueError(str(error)) from error
            for name in message.removed_resources:
                kept.pop(name, None)
            left_out = frozenset(json.loads(refused))
            kept |= {one.name: one for one in message.resources if one.name not in left_out}
        return kept.values()

    def answered(self, type_url: str) -> bool:
        """Whether the control plane ever told of a type, be it that there is nothing of it."""
        return bool(self._database.execute("SELECT 1 FROM answer WHERE type = ?", (type_url,)).fetchone())

    def apply(self, type_url: str, body: bytes, refused: Collection[str] = ()) -> None:
        """Keep an answer without what was refused of it; a disk that fails is logged, and costs no more than a slower start."""
        try:
            with self._database as database:
                self._insert(type_url, body, refused)
                largest, total = self._sizes[type_url]
                if total > 2 * largest + _SLACK_BYTES:
                    joined = DeltaDiscoveryResponse(resources=self._joined(type_url)).SerializeToString()
                    database.execute("DELETE FROM answer WHERE type = ?", (type_url,))
                    self._sizes[type_url] = (0, 0)
                    self._insert(type_url, joined, ())
        except (sqlite3.Error, ValueError) as error:
            self._sizes.pop(type_url, None)
            _log.warning("%s: cannot keep what is known of the mesh: %s", self._path, error)

    def _insert(self, type_url: str, body: bytes, refused: Collection[str]) -> None:
        if type_url not in self._sizes:
            rows = self._database.execute("SELECT length(body) FROM answer WHERE type = ?", (type_url,))
            sizes = [int(size) + _ROW_BYTES for (size,) in rows]
            self._sizes[type_url] = (max(sizes, default=0), sum(sizes))
        values = (type_url, body, json.dumps(list(refused)))
        self._database.execute("INSERT INTO answer (type, body, refused) VALUES (?, ?, ?)", values)
        (largest, total), size = self._sizes[type_url], len(body) + _ROW_BYTES
        self._sizes[type_url] = (max(largest, size), total + size)

    def close(self) -> None:
        """Close the file."""
        self._database.close()
