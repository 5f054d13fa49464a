"""Load balancing: the recorded shares of Istio's ztunnel, as exact intervals of chance, and target ports."""

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.inventory import Endpoint
from mesh.workload import ApplicationTunnel, BalancingMode, Locality, Scope, Service, Workload
from ztunnel.balance import choose, target_port

pytestmark = pytest.mark.unit

UNSPECIFIED, STRICT, FAILOVER = BalancingMode.UNSPECIFIED, BalancingMode.STRICT, BalancingMode.FAILOVER
REGION, ZONE, SUBZONE, NODE, NETWORK = Scope.REGION, Scope.ZONE, Scope.SUBZONE, Scope.NODE, Scope.NETWORK
SERVICE = Service("s", "ns", "s.ns", ports={80: 8080})
CLIENT = Workload("c", "c", "ns", locality=Locality("r", "z", "s"), node="nz")


def workload(name: str, locality: Locality, node: str, capacity: int, healthy: bool = True) -> Endpoint:
    address = ip_address(f"10.0.0.{name[1:]}")
    return Endpoint(
        Workload(name, name, "ns", (address,), locality=locality, node=node, capacity=capacity, healthy=healthy), {80: 8080}
    )


ENDPOINTS = [
    workload("e1", Locality("r", "z", "s"), "nz", 3),
    workload("e2", Locality("r", "z", "t"), "ny", 1),
    workload("e3", Locality("r", "y", "s"), "nx", 0),
    workload("e4", Locality("q", "z", "s"), "nw", 1, healthy=False),
]


@pytest.mark.parametrize(
    ("mode", "preferences", "allow_all", "shares"),
    [
        (UNSPECIFIED, (), False, {"e1": 75, "e2": 25}),
        (FAILOVER, (REGION, ZONE, SUBZONE, NODE), False, {"e1": 100}),
        (STRICT, (REGION, ZONE), False, {"e1": 75, "e2": 25}),
        (FAILOVER, (NETWORK, REGION, ZONE), False, {"e1": 75, "e2": 25}),
        (STRICT, (NODE,), False, {"e1": 100}),
        (UNSPECIFIED, (), True, {"e1": 60, "e2": 20, "e4": 20}),
    ],
)
def test_shares(mode: BalancingMode, preferences: tuple[Scope, ...], allow_all: bool, shares: dict[str, int]) -> None:
    service = replace(SERVICE, mode=mode, preferences=preferences, allow_unhealthy=allow_all)
    picked = [choose(service, ENDPOINTS, CLIENT, 80, chance / 100) for chance in range(100)]
    assert Counter(one.workload.name for one in picked if one) == shares


def test_strict_has_no_second_choice_and_failover_has() -> None:
    elsewhere = replace(CLIENT, node="other")
    assert choose(replace(SERVICE, mode=STRICT, preferences=(NODE,)), ENDPOINTS, elsewhere, 80, 0.5) is None
    assert choose(replace(SERVICE, mode=FAILOVER, preferences=(NODE,)), ENDPOINTS, elsewhere, 80, 0.0) is ENDPOINTS[0]


def test_our_network_outweighs_what_follows_it() -> None:
    far = Endpoint(replace(ENDPOINTS[0].workload, uid="far", network="other"), {80: 8080})
    near = Endpoint(replace(ENDPOINTS[0].workload, uid="near", locality=Locality("other")), {80: 8080})
    service = replace(SERVICE, mode=FAILOVER, preferences=(NETWORK, REGION))
    assert choose(service, [far, near], CLIENT, 80, 0.0) in (far, near)
    assert choose(service, [far], CLIENT, 80, 0.0) is far


def test_nobody_to_choose() -> None:
    assert choose(SERVICE, [], CLIENT, 80, 0.5) is None
    assert choose(SERVICE, ENDPOINTS, CLIENT, 81, 0.5) is None
    assert choose(SERVICE, ENDPOINTS[2:3], CLIENT, 80, 0.5) is None
    unreachable = Endpoint(replace(ENDPOINTS[0].workload, addresses=()), {80: 8080})
    assert choose(SERVICE, [unreachable], CLIENT, 80, 0.5) is None


def test_target_ports() -> None:
    service = replace(SERVICE, ports={80: 8080, 81: 0, 82: 0})
    tunnelled = replace(ENDPOINTS[0].workload, application_tunnel=ApplicationTunnel(True, 15088))
    assert target_port(service, Endpoint(ENDPOINTS[0].workload, {80: 9090}), 80) == 9090
    assert target_port(service, Endpoint(ENDPOINTS[0].workload, {}), 80) == 8080
    assert target_port(service, Endpoint(ENDPOINTS[0].workload, {82: 7}), 82) == 7
    assert target_port(service, Endpoint(ENDPOINTS[0].workload, {}), 81) is None
    assert target_port(service, Endpoint(tunnelled, {}), 81) == 81
    assert target_port(service, Endpoint(tunnelled, {}), 99) is None
