"""What to do about a part of the mesh that does not answer, or is not here."""

import socket
import struct
from contextlib import suppress
from pathlib import Path

from lab.layout import Layout
from wire.places import NodePlaces, Places

START_A_MESH = "start a mesh with: weft lab up"
_PATIENCE_S = 0.2
_CREDENTIALS = struct.Struct("3i")


def is_lab(places: Places) -> bool:
    """Whether a lab is, or was, up here: its command starts things and has their logs."""
    return Layout(places).run.exists()


def has_control(places: Places) -> bool:
    """Whether the control plane belongs on this machine: on a cluster's node it runs elsewhere."""
    return places.control_socket.exists() or places.control_state.exists() or is_lab(places)


def look_at_log(node: NodePlaces, part: str) -> str:
    """Where a node's part (`agent`, `ztunnel`) says what ails it."""
    places = Places.from_environment()
    return f"look at: weft lab logs {node.name}/{part}" if is_lab(places) else f"look at the log of weft-{part}"


def continue_it(path: Path) -> str:
    """How to wake the process that serves a socket and does not answer, if it is stopped; else empty."""
    with suppress(OSError, struct.error), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE_S)
        sock.connect(str(path))  # a process that is stopped still has the kernel take its connections
        pid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
        if pid and state in "Tt":
            return f"its process {pid} is stopped: continue it with: kill -CONT {pid}"
    return ""
