"""The nameservers of this machine's resolv.conf(5), read again when it changes."""

import logging
import os
from ipaddress import ip_address

from mesh.workload import Address

MAX_SERVERS = 3
"""As in the C library: more are ignored."""
MAX_SEARCHED = 6
"""The same of search domains."""
_LOOK_S = 1.0
_MAX_FILE_BYTES = 64 << 10
_log = logging.getLogger("ztunnel.worker")


def read_nameservers(text: str) -> tuple[Address, ...]:
    """The servers that a resolv.conf names; lines that make no sense are no lines."""
    servers: list[Address] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            server = ip_address(words[1])
        except ValueError:
            continue
        if server not in servers:
            servers.append(server)
    return tuple(servers[:MAX_SERVERS])


def read_search(path: str) -> tuple[str, ...]:
    """The search domains of a resolv.conf, of which the last line counts; none where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file.read(_MAX_FILE_BYTES).splitlines()]
    except OSError:
        return ()
    found = [words[1:] for words in lines if words and words[0] in ("search", "domain")]
    names = [word.strip(".").lower() for word in found[-1]] if found else []
    return tuple(dict.fromkeys(filter(None, names)))[:MAX_SEARCHED]


class Nameservers:
    """What the file says now; looks at it once a second at most, and only when somebody asks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._servers: tuple[Address, ...] = ()
        self._look_at = 0.0
        self._state: tuple[int, ...] = ()

    def current(self, now: float) -> tuple[Address, ...]:
        """The servers, in the order of the file; where it cannot be read, or names none yet, those that were there before."""
        if now < self._look_at:
            return self._servers
        self._look_at = now + _LOOK_S
        try:
            status = os.stat(self.path)
            state = (status.st_ino, status.st_mtime_ns, status.st_size)
            if state == self._state:
                return self._servers
            with open(self.path, encoding="utf-8", errors="replace") as file:
                self._servers = read_nameservers(file.read(_MAX_FILE_BYTES)) or self._servers
            self._state = state
        except OSError as error:
            _log.warning("cannot read the nameservers: %s: keeping %d", error, len(self._servers))
        return self._servers
