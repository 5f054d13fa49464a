import errno
import json
import os
from pathlib import Path

import pytest

from control import folder as folder_module
from control.folder import Folder, Texts

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as settled at once, so that what was read is not read again."""
    monkeypatch.setattr(folder_module, "FRESH_S", -3600.0)


def test_only_changes_are_reported(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.read() == Texts(), "an empty folder is a state too"
    assert folder.read() is None
    (tmp_path / "a.yaml").write_text("one")
    (tmp_path / "b.yml").write_text("two")
    (tmp_path / "c.txt").write_text("no manifest")
    (tmp_path / ".d.yaml").write_text("hidden")
    texts = folder.read()
    assert texts is not None and texts.files == {"a.yaml": "one", "b.yml": "two"}
    assert folder.read() is None
    (tmp_path / "a.yaml").write_text("three")
    os.rename(tmp_path / "b.yml", tmp_path / "e.yaml")
    texts = folder.read()
    assert texts is not None and texts.files == {"a.yaml": "three", "e.yaml": "two"}
    os.utime(tmp_path / "a.yaml")
    assert folder.read() is None, "touched, not changed"


def test_a_fresh_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "FRESH_S", 3600.0)
    folder = Folder(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text("one")
    status = path.stat()
    assert folder.read() is not None
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    texts = folder.read()
    assert texts is not None and texts.files == {"a.yaml": "two"}


def test_what_cannot_be_read_is_named_and_the_rest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAX_FILE_BYTES", 10)
    (tmp_path / "good.yaml").write_text("good")
    (tmp_path / "long.yaml").write_text("x" * 11)
    (tmp_path / "latin.yaml").write_bytes(b"\xff")
    (tmp_path / "folder.yaml").mkdir()
    folder = Folder(tmp_path)
    texts = folder.read()
    assert texts is not None and texts.files == {"good.yaml": "good"}
    assert "more than 10 bytes" in texts.unreadable["long.yaml"]
    assert "utf-8" in texts.unreadable["latin.yaml"]
    assert "Is a directory" in texts.unreadable["folder.yaml"]
    (tmp_path / "other.yaml").write_text("other")
    further = folder.read()
    assert further == Texts({"good.yaml": "good", "other.yaml": "other"}, texts.unreadable)


def test_a_file_that_could_not_be_read_for_a_moment_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("one")
    (tmp_path / "b.yaml").write_text("two")
    folder, opened = Folder(tmp_path), list[str]()

    def full(path: str, flags: int) -> int:
        opened.append(Path(path).name)
        if opened[-1] == "a.yaml" and len(opened) < 4:
            raise OSError(errno.EMFILE, "Too many open files")
        return os.open(path, flags)

    monkeypatch.setattr(folder_module, "_open", full)
    texts = folder.read()
    assert texts is not None and texts.files == {"b.yaml": "two"} and "Too many open" in texts.unreadable["a.yaml"]
    assert folder.read() is None, "said once"
    assert folder.read() == Texts({"a.yaml": "one", "b.yaml": "two"})
    assert folder.read() is None and opened == ["a.yaml", "b.yaml", "a.yaml", "a.yaml"]


def test_a_file_that_is_away_while_it_is_to_be_read_is_read_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same one: nothing about it shows that it was away."""
    (tmp_path / "a.yaml").write_text("one")
    folder = Folder(tmp_path)

    def away(path: str, flags: int) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "_open", away)
        assert folder.read() == Texts()
    assert folder.read() == Texts({"a.yaml": "one"})
    assert folder.read() is None


def test_what_is_no_file_is_named_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    (tmp_path / "good.yaml").symlink_to(tmp_path / "target")
    (tmp_path / "target").write_text("good")
    folder = Folder(tmp_path)
    assert folder.read() == Texts({"good.yaml": "good"}, dict.fromkeys(("pipe.yaml", "endless.yaml"), "it is no file"))
    assert folder.read() is None


def test_a_folder_of_too_many_files_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAX_FILES", 1)
    folder = Folder(tmp_path)
    (tmp_path / "a.yaml").write_text("one")
    assert folder.read() == Texts({"a.yaml": "one"})
    (tmp_path / "b.yaml").write_text("two")
    mend = "move files out of this folder (the largest are a.yaml, b.yaml), as weft delete works below that bound alone"
    assert folder.read() == Texts({"a.yaml": "one"}, {".": f"{tmp_path}: 2 files, at most 1 are read: {mend}"})


def test_a_folder_of_too_many_bytes_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAX_FOLDER_BYTES", 6)
    folder, texts = Folder(tmp_path), {"a.yaml": "1", "b.yaml": "two", "c.yaml": "3"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert folder.read() == Texts(texts)
    (tmp_path / "d.yaml").write_text("four")
    mend = "move files out of this folder (the largest are d.yaml, b.yaml, a.yaml), as weft delete works below that bound alone"
    assert folder.read() == Texts(texts, {".": f"{tmp_path}: 9 bytes in 4 files, at most 6 are read: {mend}"})
    (tmp_path / "d.yaml").unlink()
    assert folder.read() == Texts(texts)


@pytest.mark.parametrize(("bound", "most"), [("MAX_FOLDER_BYTES", 6), ("MAX_FILES", 2)])
def test_no_folder_is_written_that_would_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(folder_module, bound, most)
    folder = Folder(tmp_path)
    folder.write({"a.yaml": "one", "b.yaml": "two"})
    with pytest.raises(OSError) as refused:
        folder.write({"c.yaml": "3"})
    assert f"at most {most} are read" in refused.value.strerror
    assert folder.read() == Texts({"a.yaml": "one", "b.yaml": "two"})
    folder.write({"a.yaml": None, "b.yaml": "2", "c.yaml": "four"})
    assert folder.read() == Texts({"b.yaml": "2", "c.yaml": "four"})


@pytest.mark.parametrize("files", [{"a.yaml": "one"}, {}], ids=["with a file", "empty"])
def test_a_folder_that_vanishes_is_a_problem_and_not_an_empty_mesh(tmp_path: Path, files: dict[str, str]) -> None:
    path = tmp_path / "manifests"
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    folder = Folder(path)
    assert folder.read() is not None
    os.rename(path, tmp_path / "away")
    texts = folder.read()
    assert texts is not None and texts.files == files and "No such file" in texts.unreadable["."]
    assert folder.read() is None, "said once"
    os.rename(tmp_path / "away", path)
    assert folder.read() == Texts(files)


def test_one_file_is_read_and_never_written(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text("all")
    folder = Folder(path)
    texts = folder.read()
    assert texts is not None and texts.files == {"mesh.yaml": "all"}
    assert not folder.is_writable and Folder(tmp_path).is_writable


def test_a_change_is_written_whole(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("old")
    folder = Folder(tmp_path)
    folder.write({"a.yaml": "one", "b.yaml": "two", "old.yaml": None, "absent.yaml": None})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.yaml": "one", "b.yaml": "two"}
    assert (tmp_path / "a.yaml").stat().st_mode & 0o777 == 0o600


def test_a_change_that_cannot_be_written_leaves_no_trace(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(OSError, match="File name too long"):
        folder.write({"a.yaml": "one", "x" * 300 + ".yaml": "two"})
    assert list(tmp_path.iterdir()) == []


def test_a_change_that_is_made_but_not_in_place_yet_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads next finishes it: to say that nothing was changed would be wrong."""
    folder = Folder(tmp_path)
    rename, left = os.rename, [1]

    def full(source: Path, target: Path) -> None:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("control.folder.os.rename", full)
        folder.write({"a.yaml": "one"})
        texts = folder.read()
        assert texts is not None and texts.unreadable == {".": f"{tmp_path}: No space left on device"}
    texts = folder.read()
    assert texts is not None and (texts.files, texts.unreadable) == ({"a.yaml": "one"}, {})


def test_a_change_after_a_crash_comes_after_what_was_made_before_it(tmp_path: Path) -> None:
    for name, text in ((".apply.new", "never committed"), (".apply", "committed")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(text)
    (tmp_path / ".apply" / "b.yaml").write_text("committed")
    Folder(tmp_path).write({"a.yaml": "newest"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.yaml": "newest", "b.yaml": "committed"}


def test_a_crash_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("old")
    staged = tmp_path / ".apply.new"
    staged.mkdir()
    (staged / "a.yaml").write_text("one")
    texts = Folder(tmp_path).read()
    assert texts is not None and texts.files == {"old.yaml": "old"}
    assert not staged.exists(), "never committed: dropped"
    committed = tmp_path / ".apply"
    committed.mkdir()
    (committed / "b.yaml").write_text("two")
    (committed / "removals.json").write_text(json.dumps(["old.yaml", "gone already.yaml"]))
    (tmp_path / "a.yaml").write_text("moved before the crash")
    texts = Folder(tmp_path).read()
    assert texts is not None and texts.files == {"a.yaml": "moved before the crash", "b.yaml": "two"}
    assert not committed.exists()


@pytest.mark.parametrize("text", ["", "[", '"a.yaml"', "[1]", '["../a.yaml"]', '["."]', "[" * 100_000])
def test_what_a_change_removes_is_not_guessed_where_that_is_damaged(tmp_path: Path, text: str) -> None:
    """An ALLOW may be among it: it stays as it was, and the user reads what to do."""
    path = tmp_path / "manifests"
    (path / ".apply").mkdir(parents=True)
    for file in (tmp_path / "a.yaml", path / "old.yaml"):
        file.write_text("kept")
    removals = path / ".apply" / "removals.json"
    removals.write_text(text)
    folder = Folder(path)
    texts = folder.read()
    assert texts is not None and set(texts.unreadable) == {"."}
    assert texts.unreadable["."].startswith(f"{path}: .apply/removals.json is damaged (")
    assert texts.unreadable["."].endswith("): remove that file, and delete again what the last weft delete named")
    with pytest.raises(OSError, match=r"removals\.json is damaged"):
        folder.write({"old.yaml": None})
    removals.unlink()
    assert folder.read() == Texts({"old.yaml": "kept"}) and (tmp_path / "a.yaml").exists()
