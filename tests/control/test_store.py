import sqlite3
from dataclasses import replace
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
    full = report("a", addresses=dual, ready=True, enrolled=True, phase="Running", service_account="web")
    store.replace_reports([full, report("b")], [])
    store.replace_reports([report("c")], [("demo", "b")])
    store.close()
    again = Store(path)
    assert {name: set(several) for name, several in again.addresses().items()} == {
        "demo/a": set(dual),
        "demo/c": {ip_address("10.96.0.2")},
    }
    assert {one.name: one for one in again.reports()} == {"a": full, "c": report("c")}
    assert {one.name: one.service_account for one in again.reports()} == {"a": "web", "c": ""}
    again.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_database_that_others_may_read_is_so_no_longer_once_it_is_open(tmp_path: Path) -> None:
    """What it remembers of before, and what SQLite keeps beside it."""
    path = tmp_path / "control.db"
    Store(path).close()
    path.chmod(0o644)
    store = Store(path)
    store.replace_tokens("n1", [(b"digest", 1)])
    assert {one.name: one.stat().st_mode & 0o777 for one in tmp_path.iterdir()} == dict.fromkeys(
        ("control.db", "control.db-shm", "control.db-wal"), 0o600
    )
    store.close()


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


def test_a_newer_file_stays_as_its_weft_wrote_it(tmp_path: Path) -> None:
    """Whose tables may be others than ours."""
    path = tmp_path / "control.db"
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE schema_version SET version = version + 1")
        connection.execute("ALTER TABLE node_tokens RENAME TO tokens")
        connection.execute("ALTER TABLE pod_reports DROP COLUMN service_account")
        written = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    connection.close()
    with pytest.raises(ValueError, match="use the weft that wrote it"):
        Store(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall() == written
    connection.close()


def test_a_database_of_before_is_taken_up_and_stays_of_use_to_who_wrote_it(tmp_path: Path) -> None:
    """It has no service accounts of reported pods."""
    path = tmp_path / "control.db"
    store = Store(path)
    store.replace_reports([report("a", service_account="web")], [])
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE pod_reports DROP COLUMN service_account")
    connection.close()
    store = Store(path)
    assert [(one.name, one.service_account) for one in store.reports()] == [("a", "")]
    store.replace_reports([report("a", service_account="web")], [])
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO pod_reports (namespace, name, reporter, uid, node, addresses, ready, enrolled, phase)"
            " VALUES ('demo', 'b', 'lab', 'u', 'n1', '', 0, 0, 'Pending')"
        )
    connection.close()
    store = Store(path)
    assert {one.name: one.service_account for one in store.reports()} == {"a": "web", "b": ""}
    store.close()


def test_pods_of_one_name_are_known_in_each_namespace_until_none_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "control.db")
    pods = [replace(report("web"), namespace=namespace) for namespace in ("demo", "shop")]
    store.replace_reports(pods, [])
    assert sorted(one.namespace for one in store.reports()) == ["demo", "shop"]
    store.replace_reports([], [("demo", "web")])
    assert store.reports() == pods[1:]
    store.replace_all_reports(pods)
    assert len(store.reports()) == 2
    store.replace_all_reports([])
    assert store.reports() == []
    store.close()


def test_a_nodes_tokens_are_those_that_were_set_last(tmp_path: Path) -> None:
    store = Store(tmp_path / "control.db")
    store.replace_tokens("n1", [(b"one", 1), (b"two", 2)])
    store.replace_tokens("n2", [(b"other", 1)])
    store.replace_tokens("n1", [(b"two", 2), (b"three", 3)])
    assert sorted(store.tokens()) == [(b"other", "n2", 1), (b"three", "n1", 3), (b"two", "n1", 2)]
    store.replace_tokens("n2", [])
    assert {node for _, node, _ in store.tokens()} == {"n1"}
    store.close()


@pytest.mark.parametrize("damage", ["pages", "an address"])
def test_a_damaged_file_is_refused_by_name_whatever_of_it_is_damaged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "control.db"
    store = Store(path)
    store.replace_reports([report(f"pod-{number}") for number in range(2000)], [])
    store.close()
    if damage == "pages":
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
        path.write_bytes(data)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE pod_reports SET addresses = '10.0.0' WHERE name = 'pod-7'")
        connection.close()
    store = Store(path)
    with pytest.raises(ValueError, match=r"control\.db cannot be used as control's database: .*: bring back a copy"):
        store.reports()
    store.close()
