"""Files that are either wholly old or wholly new, also after a power cut."""

import os
from pathlib import Path


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Replace a file at once: written beside it, flushed, renamed over it.

    Raises: OSError, with the old file untouched.
    """
    temporary = path.with_name(f".{path.name[:200]}.new")
    try:
        write_new(temporary, data, mode)
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that nobody reads yet, and flush it; its name is durable after `sync_folder`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
