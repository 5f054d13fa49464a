"""One control plane per state folder: two would hand out the same addresses and sign under each other."""

import fcntl
import os
from pathlib import Path

LOCK_FILE = "lock"


def take_lock(folder: Path) -> int:
    """Lock the state folder for the life of this process; returns the descriptor that holds the lock.

    Raises: ValueError where another process has it.
    """
    path = folder / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise ValueError(f"another weft-control (pid {owner}) uses {folder}: stop it, or set WEFT_STATE_DIR") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
