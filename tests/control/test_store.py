import sqlite3
from ipaddress import ip_address
from pathlib import Path

import pytest

from control.reports import PodReport
from control.store import SCHEMA_VERSION, Store

pytestmark = pytest.mark.unit


def report(name: str, **fields: object) -> PodReport:
    return PodReport(namespace="demo", name=name, reporter="lab", uid=f"uid-{name}", node="n1", **fields)  # type: ignore[arg-type]


def test_everything_comes_back_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    store = Store(path)
    dual = (ip_address("10.96.0.9"), ip_address("fd00:96::9"))
    store.replace_addresses({"demo/a": dual, "demo/b": (ip_address("10.96.0.2"),)})
    store.replace_addresses({"demo/b": (), "demo/c": (ip_address("10.96.0.2"),)})
    full = report("a", addresses=dual, ready=True, enrolled=True, phase="Running")
    store.replace_reports([full, report("b")], [])
    store.replace_reports([report("c")], [("demo", "b")])
    store.close()
    again = Store(path)
    assert {name: set(several) for name, several in again.addresses().items()} == {
        "demo/a": set(dual),
        "demo/c": {ip_address("10.96.0.2")},
    }
    assert {one.name: one for one in again.reports()} == {"a": full, "c": report("c")}
    again.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_foreign_or_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "control.db"
    path.write_bytes(b"this is no database, and long enough to be read as one" * 10)
    with pytest.raises(ValueError, match=r"control\.db cannot be used as control's database"):
        Store(path)
    path.unlink()
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = version + 1")
    connection.close()
    with pytest.raises(ValueError, match=f"schema {SCHEMA_VERSION + 1}, this weft knows {SCHEMA_VERSION}"):
        Store(path)
