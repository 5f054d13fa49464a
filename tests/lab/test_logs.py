import errno
import shutil
from pathlib import Path

import pytest

from lab import logs
from lab.client import Lab

pytestmark = pytest.mark.unit


def test_the_tail_is_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert logs.tail(path, 3) == ""
    path.write_text("a\nb\nc\nd")
    assert logs.tail(path, 2) == "c\nd"
    assert logs.tail(path, 0) == ""
    assert logs.tail(path, 9) == "a\nb\nc\nd"
    path.write_text("one\x0c\x85\u2028 line\n25 %\r50 %\r100 %\n")
    assert logs.tail(path, 1) == "25 %\r50 %\r100 %\n" and logs.tail(path, 2) == path.read_bytes().decode()


def test_what_is_written_while_the_tail_is_shown_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "log_path", lambda self, target, container="": tmp_path / "x.log")
    (tmp_path / "x.log").write_text("a\nb\n")
    pieces = Lab().logs("any", lines=1, follow=True)
    assert next(pieces) == "b\n"
    with (tmp_path / "x.log").open("a") as log:
        log.write("c\n")
    assert next(pieces) == "c\n"


def test_a_log_that_outgrew_its_limit_is_moved_aside_under_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 10)
    path = tmp_path / "pods" / "x.log"
    path.parent.mkdir()
    with path.open("a") as writer:
        writer.write("0123456789ab")
        writer.flush()
        logs.bound_logs(tmp_path)
        writer.write("next")
    assert path.read_text() == "next"
    aside = tmp_path / "pods" / "x.log.1"
    assert aside.read_text() == "0123456789ab" and aside.stat().st_mode & 0o777 == 0o600


def test_reading_on_survives_an_emptied_log(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert logs.read_on(path, 5) == ("", 0)
    path.write_text("one\n")
    assert logs.read_on(path, 0) == ("one\n", 4)
    assert logs.read_on(path, 4) == ("", 4)
    path.write_text("2\n")
    assert logs.read_on(path, 4) == ("2\n", 2)


def test_a_log_that_filled_the_disk_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logs, "MAX_BYTES", 10)
    monkeypatch.setattr(shutil, "copyfile", full)
    (tmp_path / "x.log").write_text("0123456789ab")
    logs.bound_logs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"] and not (tmp_path / "x.log").read_text()
