"""What a worker counts of DNS between two reports. Bounded: who asks for ever other names fills the last place only."""

from ztunnel.channel import DNSCounts

MAX_KEYS = 512
_OTHERS = ("", "")


class Counts:
    """Added up here, taken once a second."""

    def __init__(self) -> None:
        self._on_demand: dict[tuple[str, str], int] = {}

    def on_demand(self, hostname: str, source_uid: str) -> None:
        """A workload's hostname was looked up for a connection."""
        _add(self._on_demand, (hostname, source_uid), _OTHERS)

    def take(self) -> DNSCounts | None:
        """What was counted since the last time, if anything was."""
        if not self._on_demand:
            return None
        taken, self._on_demand = DNSCounts(self._on_demand), {}
        return taken


def _add(counts: dict[tuple[str, str], int], key: tuple[str, str], others: tuple[str, str]) -> None:
    if key not in counts and len(counts) >= MAX_KEYS:
        key = others
    counts[key] = counts.get(key, 0) + 1
