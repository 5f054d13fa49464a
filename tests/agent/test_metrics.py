"""The agent's metrics as Prometheus reads them."""

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from agent.metrics import Once, of_status
from mesh.proto.agent_pb2 import EnrolledPod, StatusResponse

pytestmark = pytest.mark.unit


def test_a_pod_and_its_successor_of_the_same_name_are_one_series() -> None:
    leaving = EnrolledPod(uid="u1", namespace="shop", name="db-0", state="failed", captured_v4=3)
    status = StatusResponse(
        pods=[leaving, EnrolledPod(uid="u2", namespace="shop", name="db-0", state="enrolled", captured_v4=4)]
    )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once(of_status(status, 70)))
    lines = generate_latest(registry).decode().splitlines()
    assert len({line.rpartition(" ")[0] for line in lines}) == len(lines)
    assert 'weft_agent_captured_connections{family="ipv4",namespace="shop",pod="db-0"} 7.0' in lines
    assert 'weft_agent_captured_connections_share{family="ipv4",namespace="shop",pod="db-0"} 0.1' in lines
    assert 'weft_agent_pod_troubles{namespace="shop",pod="db-0"} 1.0' in lines
    assert list(text_string_to_metric_families(generate_openmetrics(registry).decode()))
