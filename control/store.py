"""What control must remember that no manifest says: service addresses, node tokens (hashed), and the last pod reports.

SQLite through SQLAlchemy, in one file beside the root key. Every change is one short transaction, made by the one process
that has the file open; the calls block for about a millisecond, and for some tens at 10,000 pods at once.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateColumn

from control.reports import PodReport
from mesh.workload import Address

DATABASE_FILE = "control.db"
SCHEMA_VERSION = 1

_metadata = MetaData()
_schema = Table("schema_version", _metadata, Column("version", Integer, primary_key=True))
_vips = Table(
    "service_addresses",
    _metadata,
    Column("address", String, primary_key=True),
    Column("service", String, nullable=False, index=True),
)
_tokens = Table(
    "node_tokens",
    _metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("node", String, nullable=False, index=True),
    Column("number", Integer, nullable=False),
)
_account = Column("service_account", String, nullable=False, server_default="")
"""Databases of before lack it, and a weft of before writes without it."""
_reports = Table(
    "pod_reports",
    _metadata,
    Column("namespace", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("reporter", String, nullable=False),
    Column("uid", String, nullable=False),
    Column("node", String, nullable=False),
    Column("addresses", String, nullable=False),
    Column("ready", Integer, nullable=False),
    Column("enrolled", Integer, nullable=False),
    Column("phase", String, nullable=False),
    _account,
)


class StoreError(OSError):
    """The database does not take what is new: why, and how to mend it. Nothing of it was changed."""


class Store:
    """The open database. Owns its connection: close() it."""

    def __init__(self, path: Path) -> None:
        """Open the database, making it where there is none.

        Raises: ValueError where the file is no database, or a newer weft wrote it.
        """
        self._path = path
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
        self._engine = create_engine(
            f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": 5}
        )
        event.listen(self._engine, "connect", _configure)
        try:
            self._check_schema(self._engine, path)
        except DatabaseError as error:
            self.close()
            raise self._unusable(error.orig) from error
        except ValueError:
            self.close()
            raise

    @staticmethod
    def _check_schema(engine: Engine, path: Path) -> None:
        with engine.begin() as connection:
            _schema.create(connection, checkfirst=True)
            version = connection.execute(select(_schema.c.version)).scalar()
            if version not in (None, SCHEMA_VERSION):
                raise ValueError(f"{path} has schema {version}, this weft knows {SCHEMA_VERSION}: use the weft that wrote it")
            _metadata.create_all(connection)
            if _account.name not in {one["name"] for one in inspect(connection).get_columns(_reports.name)}:
                column = CreateColumn(_account).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {_reports.name} ADD COLUMN {column}")
            if version is None:
                connection.execute(insert(_schema).values(version=SCHEMA_VERSION))

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    def _unusable(self, reason: BaseException | None) -> ValueError:
        mend = "bring back a copy, or move it away: services are then given addresses anew, and nodes need new tokens"
        return ValueError(f"{self._path} cannot be used as control's database: {reason}: {mend}")

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (DatabaseError, ValueError) as error:
            raise self._unusable(error.orig if isinstance(error, DatabaseError) else error) from error

    @contextmanager
    def _change(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise StoreError(f"{self._path} cannot be written: {error.orig}: make room for it") from error

    def addresses(self) -> dict[str, tuple[Address, ...]]:
        """Service addresses by `namespace/name`. Raises: ValueError where the file is damaged."""
        found: dict[str, tuple[Address, ...]] = {}
        with self._reading() as connection:
            for row in connection.execute(select(_vips.c.service, _vips.c.address)):
                found[row.service] = (*found.get(row.service, ()), ip_address(row.address))
        return found

    def replace_addresses(self, changes: Mapping[str, tuple[Address, ...]]) -> None:
        """Set the addresses of these services; an empty tuple forgets the service. Raises: StoreError."""
        if not changes:
            return
        rows = [{"service": service, "address": str(one)} for service, several in changes.items() for one in several]
        with self._change() as connection:
            for service in changes:
                connection.execute(delete(_vips).where(_vips.c.service == service))
            if rows:
                connection.execute(insert(_vips), rows)

    def tokens(self) -> list[tuple[bytes, str, int]]:
        """Digest, node and number of every token; a higher number is newer. Raises: ValueError where the file is damaged."""
        with self._reading() as connection:
            rows = connection.execute(select(_tokens.c.digest, _tokens.c.node, _tokens.c.number))
            return [(row.digest, row.node, row.number) for row in rows]

    def replace_tokens(self, node: str, tokens: Iterable[tuple[bytes, int]]) -> None:
        """Set the tokens of one node. Raises: StoreError."""
        rows = [{"digest": digest, "node": node, "number": number} for digest, number in tokens]
        with self._change() as connection:
            connection.execute(delete(_tokens).where(_tokens.c.node == node))
            if rows:
                connection.execute(insert(_tokens), rows)

    def reports(self) -> list[PodReport]:
        """The last report of every pod. Raises: ValueError where the file is damaged."""
        with self._reading() as connection:
            return [_report(row) for row in connection.execute(select(_reports))]

    def replace_reports(self, upserts: Iterable[PodReport], removals: Iterable[tuple[str, str]]) -> None:
        """Write new and changed reports, and forget pods by (namespace, name). Raises: StoreError."""
        rows = [_row(report) for report in upserts]
        gone = [*removals, *((row["namespace"], row["name"]) for row in rows)]
        with self._change() as connection:
            for namespace, name in gone:
                connection.execute(delete(_reports).where(_reports.c.namespace == namespace, _reports.c.name == name))
            if rows:
                connection.execute(insert(_reports), rows)

    def replace_all_reports(self, reports: Iterable[PodReport]) -> None:
        """Know these and no others. Raises: StoreError."""
        rows = [_row(report) for report in reports]
        with self._change() as connection:
            connection.execute(delete(_reports))
            if rows:
                connection.execute(insert(_reports), rows)


def _configure(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _row(report: PodReport) -> dict[str, Any]:
    return {
        "namespace": report.namespace,
        "name": report.name,
        "reporter": report.reporter,
        "uid": report.uid,
        "node": report.node,
        "addresses": ",".join(map(str, report.addresses)),
        "ready": int(report.ready),
        "enrolled": int(report.enrolled),
        "phase": report.phase,
        "service_account": report.service_account,
    }


def _report(row: Any) -> PodReport:
    return PodReport(
        namespace=row.namespace,
        name=row.name,
        reporter=row.reporter,
        uid=row.uid,
        node=row.node,
        addresses=tuple(map(ip_address, row.addresses.split(","))) if row.addresses else (),
        ready=bool(row.ready),
        enrolled=bool(row.enrolled),
        phase=row.phase,
        service_account=row.service_account,
    )
