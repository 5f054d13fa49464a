"""Log files: bounded in size, read from the end, followed."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 8 << 20
"""Of one log; as much again is kept of what came before."""
_POLL_S = 0.1


def bound_logs(folder: Path) -> None:
    """Move what outgrew the limit aside.

    The text is copied and the file emptied: its writer appends to a descriptor that it never opens again. Lines written
    between the two steps are lost.
    """
    for path in folder.rglob("*.log"):
        try:
            if path.stat().st_size > MAX_BYTES:
                shutil.copyfile(path, path.with_name(path.name + ".1"))
                os.truncate(path, 0)
        except FileNotFoundError:
            continue  # its owner was removed


def tail(path: Path, lines: int) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - (1 << 20)))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""


def follow(path: Path) -> Iterator[str]:
    """What is appended to a log from now on, for ever; also after it was emptied."""
    position = path.stat().st_size if path.exists() else 0
    while True:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = 0
        if size < position:
            position = 0
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                piece = file.read(1 << 20)
            position += len(piece)
            yield piece.decode(errors="replace")
        else:
            time.sleep(_POLL_S)
