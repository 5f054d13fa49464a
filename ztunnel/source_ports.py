"""Ports for connections that bear a client's address, none of which the client itself would soon use (pure).

To an application, the proxy's connection comes from its client: address and port. When the client then dials that application
in plain from the same port, its SYN finds a connection that is there already, and is dropped until one of the two gives up.
connect() of Linux takes ports of the parity of its range's first one, and of the other only where those are used up. So these
here are of the other, one after the other, from a random one on.
"""

_CLASHES = 3
"""In a row: then ports are scarce, and looking for one is the kernel's work."""
_LEFT_TO_KERNEL = 256
"""Connections until the next look."""


class SourcePorts:
    """The ports of one network namespace: the `bounds` of `ip_local_port_range` without `ip_local_reserved_ports`."""

    def __init__(self, bounds: tuple[int, int], reserved: frozenset[int], chance: float) -> None:
        self._first, self._last = bounds[0] + 1, bounds[1]
        self._reserved = reserved
        count = (self._last - self._first) // 2 + 1
        self._next = self._first + 2 * int(chance * count)
        self._clashed = False
        self._in_a_row = 0
        self._left = 0 if count > 0 else -1

    def take(self) -> int:
        """A port to try; 0: the kernel shall choose."""
        if not self._clashed:
            self._in_a_row = 0
        self._clashed = False
        if self._left:
            self._left -= self._left > 0
            return 0
        port = self._next
        self._next = port + 2 if port + 2 <= self._last else self._first
        return port if port not in self._reserved else 0

    def clash(self) -> None:
        """The one that was taken last cannot be had."""
        self._clashed = True
        self._in_a_row += 1
        if self._in_a_row >= _CLASHES:
            self._in_a_row, self._left = 0, _LEFT_TO_KERNEL


def reserved_ports(text: str) -> frozenset[int]:
    """Those of `ip_local_reserved_ports`, as in `8080,9148-9150`."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), min(int(last or first), 65535) + 1))
    return frozenset(found)
