"""Metrics of names that were resolved, under Istio's names and labels. Series are bounded."""

from collections.abc import Iterable

from mesh.inventory import Inventory
from ztunnel.channel import DNSCounts
from ztunnel.metrics import MAX_SERIES, UNKNOWN, Family, Labels, counter, histogram, workload_labels
from ztunnel.query_counts import BUCKETS_S, QueryCounts, QueryLabels

_NAMES = ("request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision")


class DNSMetrics:
    """Sums of all workers since the start."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._on_demand: dict[Labels, int] = {}
        self._queries: dict[Labels, QueryCounts] = {}

    def take(self, counts: DNSCounts) -> None:
        """Add what a worker counted."""
        for (hostname, source_uid), count in counts.on_demand.items():
            source = self._inventory.workload(source_uid)
            named = (*workload_labels("source", source, str(source.identity) if source else ""), ("hostname", hostname))
            labels = _known(named)
            if labels in self._on_demand or len(self._on_demand) < MAX_SERIES:
                self._on_demand[labels] = self._on_demand.get(labels, 0) + count
        for key, queries in counts.queries.items():
            labels = _query_labels(key)
            if labels in self._queries:
                self._queries[labels].add(queries)
            elif len(self._queries) < MAX_SERIES:
                self._queries[labels] = queries

    def families(self) -> list[Family]:
        """All of them."""
        forwarded = [(labels, counts) for labels, counts in self._queries.items() if counts.upstream_requests]
        return [
            counter(
                "istio_on_demand_dns",
                "The total number of requests that used on-demand DNS (unstable)",
                self._on_demand.items(),
            ),
            counter(
                "istio_dns_requests",
                "Total number of DNS requests (unstable)",
                ((labels, counts.requests) for labels, counts in self._queries.items()),
            ),
            counter(
                "istio_dns_upstream_requests",
                "Total number of DNS requests forwarded to upstream (unstable)",
                ((labels, counts.upstream_requests) for labels, counts in forwarded),
            ),
            counter(
                "istio_dns_upstream_failures",
                "Total number of DNS requests that failed to forward upstream (unstable)",
                ((labels, counts.upstream_failures) for labels, counts in forwarded if counts.upstream_failures),
            ),
            histogram(
                "istio_dns_upstream_request_duration_seconds",
                "Total time in seconds Istio takes to get DNS response from upstream (unstable)",
                BUCKETS_S,
                ((labels, counts.durations, counts.seconds) for labels, counts in forwarded),
            ),
        ]


def _query_labels(key: QueryLabels) -> Labels:
    return _known(zip(_NAMES, key, strict=True))


def _known(named: Iterable[tuple[str, str]]) -> Labels:
    return tuple((name, value or UNKNOWN) for name, value in named)
