"""DNS in the metrics: Istio's names and labels, bounded."""

import pytest

from mesh.inventory import Inventory
from mesh.workload import Workload
from ztunnel import dns_counts, dns_metrics, metrics
from ztunnel.channel import DNSCounts
from ztunnel.dns_counts import Counts
from ztunnel.dns_metrics import DNSMetrics

pytestmark = pytest.mark.unit

CLIENT = Workload("Kubernetes//Pod/shop/client", "client", "shop", canonical_name="canon", canonical_revision="rev7")


@pytest.fixture
def made() -> DNSMetrics:
    inventory = Inventory()
    inventory.apply([CLIENT], [])
    return DNSMetrics(inventory)


def lines(made: DNSMetrics) -> list[str]:
    return metrics.render(made.families()).decode().splitlines()


def test_lookups_on_demand_have_istios_labels(made: DNSMetrics) -> None:
    made.take(DNSCounts({("db.example", CLIENT.uid): 2, ("db.example", "gone"): 1}))
    made.take(DNSCounts({("db.example", CLIENT.uid): 3}))
    assert (
        'istio_on_demand_dns_total{source_workload="unknown",source_canonical_service="canon",'
        'source_canonical_revision="rev7",source_workload_namespace="shop",'
        'source_principal="spiffe://cluster.local/ns/shop/sa/default",source_app="canon",source_version="rev7",'
        'source_cluster="Kubernetes",hostname="db.example"} 5'
    ) in lines(made)
    assert sum(line.startswith("istio_on_demand_dns_total") for line in lines(made)) == 2


def test_names_without_end_fill_a_bounded_table(made: DNSMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_counts, "MAX_KEYS", 3)
    monkeypatch.setattr(dns_metrics, "MAX_SERIES", 2)
    counts = Counts()
    for number in range(10):
        counts.on_demand(f"n{number}.example", "")
    taken = counts.take()
    assert taken is not None and sum(taken.on_demand.values()) == 10 and len(taken.on_demand) == 4
    made.take(taken)
    assert sum(line.startswith("istio_on_demand_dns_total") for line in lines(made)) == 2
