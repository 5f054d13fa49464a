"""DNS in the metrics: Istio's names and labels, bounded."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mesh.inventory import Inventory
from mesh.workload import Workload
from ztunnel import dns_counts, dns_metrics, metrics
from ztunnel.channel import DNSCounts
from ztunnel.dns_counts import Counts
from ztunnel.dns_metrics import DNSMetrics
from ztunnel.dns_response import question_for
from ztunnel.query_counts import QueryCounts

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
    made.take(DNSCounts({("db.example", CLIENT.uid): 2, ("db.example", "gone"): 1}, {}))
    made.take(DNSCounts({("db.example", CLIENT.uid): 3}, {}))
    assert (
        'istio_on_demand_dns_total{source_workload="unknown",source_canonical_service="canon",'
        'source_canonical_revision="rev7",source_workload_namespace="shop",'
        'source_principal="spiffe://cluster.local/ns/shop/sa/default",source_app="canon",source_version="rev7",'
        'source_cluster="Kubernetes",hostname="db.example"} 5'
    ) in lines(made)
    assert sum(line.startswith("istio_on_demand_dns_total") for line in lines(made)) == 2


def test_queries_have_istios_labels_and_buckets(made: DNSMetrics) -> None:
    counts = Counts()
    for seconds in (0.0003, 0.05, 0.05, 9.0):
        query = counts.of(CLIENT, question_for("x", 1), "udp")
        query.requests += 1
        query.upstream_requests += 1
        query.took(seconds)
    counts.of(None, question_for("x", 28), "tcp").requests += 1
    counts.of(CLIENT, question_for("x", 4711), "udp").requests += 1
    for _ in range(2):
        taken = counts.take()
        if taken is not None:
            made.take(taken)
    made.take(DNSCounts({}, {("a", "udp", "canon", "rev7"): QueryCounts(requests=12)}))
    labels = 'request_query_type="a",request_protocol="udp",source_canonical_service="canon",source_canonical_revision="rev7"'
    shown = lines(made)
    assert f"istio_dns_requests_total{{{labels}}} 16" in shown, "as recorded from Istio's"
    assert f"istio_dns_upstream_requests_total{{{labels}}} 4" in shown
    assert not [line for line in shown if line.startswith("istio_dns_upstream_failures_total")]
    name = "istio_dns_upstream_request_duration_seconds"
    buckets = {"0.0005": 1, "0.001": 1, "0.01": 1, "0.1": 3, "1.0": 3, "5.0": 3, "+Inf": 4}
    for bound, count in buckets.items():
        assert f'{name}_bucket{{{labels},le="{bound}"}} {count}' in shown
    assert f"{name}_count{{{labels}}} 4" in shown and f"{name}_sum{{{labels}}} 9.1003" in shown
    assert (
        'istio_dns_requests_total{request_query_type="aaaa",request_protocol="tcp",source_canonical_service="unknown",'
        'source_canonical_revision="unknown"} 1'
    ) in shown
    assert any('request_query_type="other"' in line for line in shown)
    assert {"istio_dns_requests", name} <= {family.name for family in text_string_to_metric_families("\n".join(shown) + "\n")}


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
