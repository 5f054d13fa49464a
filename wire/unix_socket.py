"""Sockets at a path, for those alone whom its mode lets in."""

import os
import socket
from pathlib import Path


def bind(path: Path, mode: int = 0o600, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Make a socket at `path`, in place of what is there, and its folder; it does not listen yet. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.bind(str(path))
        os.chmod(path, mode)  # nobody can connect before it listens
    except BaseException:
        sock.close()
        raise
    return sock
