"""Metrics of names that were resolved, under Istio's names and labels. Series are bounded."""

from mesh.inventory import Inventory
from ztunnel.channel import DNSCounts
from ztunnel.metrics import MAX_SERIES, UNKNOWN, Family, Labels, counter, workload_labels


class DNSMetrics:
    """Sums of all workers since the start."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._on_demand: dict[Labels, int] = {}

    def take(self, counts: DNSCounts) -> None:
        """Add what a worker counted."""
        for (hostname, source_uid), count in counts.on_demand.items():
            source = self._inventory.workload(source_uid)
            named = (*workload_labels("source", source, str(source.identity) if source else ""), ("hostname", hostname))
            labels = tuple((name, value or UNKNOWN) for name, value in named)
            if labels in self._on_demand or len(self._on_demand) < MAX_SERIES:
                self._on_demand[labels] = self._on_demand.get(labels, 0) + count

    def families(self) -> list[Family]:
        """All of them."""
        text = "The total number of lookups of workloads that have a hostname and no address"
        return [counter("istio_on_demand_dns", text, self._on_demand.items())]
