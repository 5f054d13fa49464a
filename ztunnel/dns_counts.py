"""What a worker counts of DNS between two reports. Bounded: who asks for ever other names fills the last place only."""

from typing import Literal

from mesh.workload import Workload
from ztunnel.channel import DNSCounts
from ztunnel.dns_message import Question
from ztunnel.query_counts import QueryCounts, QueryLabels

MAX_KEYS = 512
Protocol = Literal["udp", "tcp"]
_OTHERS = ("", "")
_OTHER_QUERIES: QueryLabels = ("other", "", "", "")


class Counts:
    """Added up here, taken once a second."""

    def __init__(self) -> None:
        self._on_demand: dict[tuple[str, str], int] = {}
        self._queries: dict[QueryLabels, QueryCounts] = {}

    def on_demand(self, hostname: str, source_uid: str) -> None:
        """A workload's hostname was looked up for a connection."""
        key = (hostname, source_uid)
        if key not in self._on_demand and len(self._on_demand) >= MAX_KEYS:
            key = _OTHERS
        self._on_demand[key] = self._on_demand.get(key, 0) + 1

    def of(self, client: Workload | None, question: Question, protocol: Protocol) -> QueryCounts:
        """Where a client's questions of one kind are counted, until they are taken."""
        canonical = (client.canonical_name, client.canonical_revision) if client else ("", "")
        key: QueryLabels = (question.type_name.lower(), protocol, *canonical)
        if key not in self._queries and len(self._queries) >= MAX_KEYS:
            key = _OTHER_QUERIES
        return self._queries.setdefault(key, QueryCounts())

    def take(self) -> DNSCounts | None:
        """What was counted since the last time, if anything was."""
        if not self._on_demand and not self._queries:
            return None
        taken = DNSCounts(self._on_demand, self._queries)
        self._on_demand, self._queries = {}, {}
        return taken
