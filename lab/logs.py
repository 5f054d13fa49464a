"""Log files: bounded in size, read from the end, followed."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 8 << 20
"""Of one log; as much again is kept of what came before."""
_PIECE_BYTES = 1 << 20
_POLL_S = 0.1


def bound_logs(folder: Path) -> None:
    """Move what outgrew the limit aside.

    The text is copied and the file emptied: its writer appends to a descriptor that it never opens again. Lines written
    between the two steps are lost, all of them where there is no room for a copy.
    """
    for path in folder.rglob("*.log"):
        try:
            if path.stat().st_size > MAX_BYTES:
                aside = path.with_name(path.name + ".1")
                try:
                    aside.touch(mode=0o600)  # a pod's output is its owner's secret, whatever the umask
                    shutil.copyfile(path, aside)
                except OSError:  # a full disk, by this log perhaps: what it held gives way
                    aside.unlink(missing_ok=True)
                os.truncate(path, 0)
        except FileNotFoundError:
            continue  # its owner was removed


def tail(path: Path, lines: int) -> str:
    """The last lines of a log; empty when there is none."""
    return tail_to(path, lines)[0]


def tail_to(path: Path, lines: int) -> tuple[str, int]:
    """The last lines of a log, and the position where they end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _PIECE_BYTES))
            found = file.readlines()
            end = file.tell()
    except FileNotFoundError:
        return "", 0
    return b"".join(found[-lines:] if lines else []).decode(errors="replace"), end


def read_on(path: Path, position: int) -> tuple[str, int]:
    """What a log holds beyond a position, and the next position; from its start when it was emptied meanwhile."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = position if position <= size else 0
            file.seek(start)
            piece = file.read(_PIECE_BYTES)
    except FileNotFoundError:
        return "", 0
    return piece.decode(errors="replace"), start + len(piece)


def follow(path: Path, position: int) -> Iterator[str]:
    """What a log holds beyond a position, and what is appended to it, for ever; also after it was emptied."""
    while True:
        piece, position = read_on(path, position)
        if piece:
            yield piece
        else:
            time.sleep(_POLL_S)
