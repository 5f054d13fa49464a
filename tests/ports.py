"""A port to be listened at later, or again: one that nobody else comes to have meanwhile."""

import os
import socket
from pathlib import Path

from wire.netns import port_bounds


def unused_port() -> int:
    """Of 127.0.0.1, free, and none that the kernel gives to who takes any: not even to a client that dials it in vain."""
    low, high = port_bounds(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text())
    others = [*range(1024, low), *range(high + 1, 65536)]
    first = os.getpid() % len(others)
    for port in others[first:] + others[:first]:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise LookupError("no port of 127.0.0.1 is free beside those that the kernel gives out")
