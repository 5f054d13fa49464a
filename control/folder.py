"""A folder of manifests: reads what changed, writes all or nothing.

Reading: every *.yaml and *.yml file directly in the folder, or one file where the path is one. A file counts as changed when
its size, inode or modification time did; while that time is fresh the file is read again, because a second write within the
clock's grain would not show.

Writing: new files are laid out in `.apply.new`, which becomes `.apply` by one rename: from then on the change is made, and
whoever comes next (this process, or the one after a crash) moves its files into place. So a reader of this module never sees
half of a change.
"""

import json
import os
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from control.files import sync_folder, write_new

MAX_FILES = 50_000
MAX_FILE_BYTES = 8 << 20
MAX_FOLDER_BYTES = 256 << 20
"""Of all files together: five times what 50,000 objects take."""
_NAMED = 3
"""Files, in a message that there are too many."""
FRESH_S = 0.05
"""A modification younger than this may be followed by one with the same time stamp."""
_SUFFIXES = (".yaml", ".yml")
_STAGED = ".apply.new"
_COMMITTED = ".apply"
_REMOVALS = "removals.json"
_Mark = tuple[int, int, int] | None


@dataclass(slots=True)
class Texts:
    """The manifests as they are on disk, by file name."""

    files: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read, with the reason; `.` stands for the folder."""


class Folder:
    """Manifests on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marks: dict[str, _Mark] = {}
        self._texts: Texts | None = None

    @property
    def is_writable(self) -> bool:
        """Whether manifests may be added here: a folder yes, a single file no."""
        return not self.path.is_file()

    def read(self) -> Texts | None:
        """What is on disk now; None where nothing changed since the last call."""
        known = self._texts or Texts()
        try:
            if self.is_writable:
                self._finish()
            found = self._list()
        except OSError as error:
            return self._changed(Texts(dict(known.files), {".": f"{self.path}: {error.strerror}"}))
        if self._texts is not None and found == self._marks and None not in found.values() and "." not in known.unreadable:
            return None
        texts = Texts()
        for name in sorted(found):
            if not self._take(name, found[name], known, texts):
                found[name] = None
        self._marks = found
        return self._changed(texts)

    def _changed(self, texts: Texts) -> Texts | None:
        if texts == self._texts:
            return None
        self._texts = texts
        return texts

    def _take(self, name: str, mark: _Mark, known: Texts, texts: Texts) -> bool:
        """Whether it need not be read again before it changes."""
        if mark is not None and mark == self._marks.get(name) and name in known.files:
            texts.files[name] = known.files[name]
            return True
        path = self.path / name if self.is_writable else self.path
        try:
            with open(path, "rb", opener=_open) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ValueError("it is no file")
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
            texts.files[name] = data.decode()
        except FileNotFoundError:
            # Removed since the folder was listed; it may be back, and look as before, at the next listing.
            return False
        except (OSError, ValueError) as error:
            texts.unreadable[name] = str(error)
            return isinstance(error, ValueError)  # else it may be no fault of the file's: too many are open, the disk fails
        return True

    def _list(self) -> dict[str, _Mark]:
        fresh_after = time.time_ns() - int(FRESH_S * 1e9)

        def mark(status: os.stat_result) -> _Mark:
            return (status.st_mtime_ns, status.st_size, status.st_ino) if status.st_mtime_ns < fresh_after else None

        if not self.is_writable:
            return {self.path.name: mark(self.path.stat())}
        statuses = self._statuses()
        sizes = {name: status.st_size for name, status in statuses.items()}
        try:
            _check_size(sizes)
        except OSError as error:
            largest = ", ".join(sorted(sizes, key=lambda name: (-sizes[name], name))[:_NAMED])
            mend = f"move files out of this folder (the largest are {largest}), as weft delete works below that bound alone"
            raise OSError(0, f"{error.strerror}: {mend}") from None
        return {name: mark(status) for name, status in statuses.items()}

    def _statuses(self) -> dict[str, os.stat_result]:
        """Of every file that is read."""
        found: dict[str, os.stat_result] = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIXES) and not entry.name.startswith("."):
                    with suppress(FileNotFoundError):
                        found[entry.name] = entry.stat()
        return found

    def write(self, changes: Mapping[str, str | None]) -> None:
        """Write files, and remove those whose text is None; all of it or, with an error, nothing.

        Raises: OSError, with the folder as it was; also for a folder that would be too large to be read.
        """
        self._finish()
        sizes = {name: status.st_size for name, status in self._statuses().items()}
        written = {name: len(text.encode()) for name, text in changes.items() if text is not None}
        _check_size({name: size for name, size in sizes.items() if name not in changes} | written)
        staged = self.path / _STAGED
        staged.mkdir(mode=0o700)
        try:
            for name, text in changes.items():
                if text is not None:
                    write_new(staged / name, text.encode(), 0o600)
            removals = [name for name, text in changes.items() if text is None]
            write_new(staged / _REMOVALS, json.dumps(removals).encode(), 0o600)
            sync_folder(staged)
            os.rename(staged, self.path / _COMMITTED)
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        with suppress(OSError):  # the change is made: who reads next puts into place what is not there yet, or says why not
            sync_folder(self.path)
            self._finish()

    def _finish(self) -> None:
        """Put a committed change into place, and drop one that was not committed."""
        shutil.rmtree(self.path / _STAGED, ignore_errors=True)
        committed = self.path / _COMMITTED
        if not committed.is_dir():
            return
        for entry in sorted(committed.iterdir()):
            if entry.name != _REMOVALS and not entry.name.startswith("."):
                os.rename(entry, self.path / entry.name)
        for name in _removals(committed / _REMOVALS):
            (self.path / name).unlink(missing_ok=True)
        sync_folder(self.path)
        shutil.rmtree(committed)


def _open(path: str, flags: int) -> int:
    # A pipe that nobody writes to would hold up whoever opens it.
    return os.open(path, flags | os.O_NONBLOCK)


def _removals(path: Path) -> list[str]:
    """The names of files that a committed change removes. Raises: OSError where nobody can know."""
    if not path.exists():
        return []
    try:
        names = json.loads(path.read_text())
        if not isinstance(names, list) or not all(map(_is_manifest, names)):
            raise ValueError("no list of manifests")
    except (ValueError, RecursionError) as error:
        mend = "remove that file, and delete again what the last weft delete named"
        raise OSError(0, f"{_COMMITTED}/{_REMOVALS} is damaged ({error}): {mend}") from error
    return names


def _is_manifest(name: object) -> bool:
    return isinstance(name, str) and name.endswith(_SUFFIXES) and "/" not in name


def _check_size(sizes: Mapping[str, int]) -> None:
    """Whether a folder with files of so many bytes is read. Raises: OSError."""
    if len(sizes) > MAX_FILES:
        raise OSError(0, f"{len(sizes)} files, at most {MAX_FILES} are read")
    if (size := sum(sizes.values())) > MAX_FOLDER_BYTES:
        raise OSError(0, f"{size} bytes in {len(sizes)} files, at most {MAX_FOLDER_BYTES} are read")
