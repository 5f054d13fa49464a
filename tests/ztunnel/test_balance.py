"""Load balancing: the recorded shares of Istio's ztunnel, as exact intervals of chance, and target ports."""

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.inventory import Endpoint
from mesh.workload import (
    ApplicationTunnel,
    BalancingMode,
    GatewayAddress,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    Scope,
    Service,
    WeightedWaypoint,
    Workload,
)
from ztunnel.balance import choose as choose_among
from ztunnel.balance import eligible, sample_waypoint, target_port, weighted

pytestmark = pytest.mark.unit

UNSPECIFIED, STRICT, FAILOVER = BalancingMode.UNSPECIFIED, BalancingMode.STRICT, BalancingMode.FAILOVER
REGION, ZONE, SUBZONE, NODE, NETWORK = Scope.REGION, Scope.ZONE, Scope.SUBZONE, Scope.NODE, Scope.NETWORK
SERVICE = Service("s", "ns", "s.ns", ports={80: 8080})
GATEWAY = GatewayAddress(NetworkAddress("other", ip_address("192.0.2.1")), 15009)
SOURCE = ip_address("10.0.0.9")
CLIENT = Workload("c", "c", "ns", locality=Locality("r", "z", "s"), node="nz")


def choose(service: Service, endpoints: list[Endpoint], client: Workload, port: int, chance: float) -> Endpoint | None:
    return choose_among(service, eligible(service, endpoints, client, port), client, SOURCE, chance)[0]


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
        (UNSPECIFIED, (NODE,), False, {"e1": 75, "e2": 25}),
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


DIFFERENCES: dict[Scope, dict[str, object]] = {
    REGION: {"locality": Locality("x", "z", "s")},
    ZONE: {"locality": Locality("r", "x", "s")},
    SUBZONE: {"locality": Locality("r", "z", "x")},
    NODE: {"node": "x"},
    Scope.CLUSTER: {"cluster_id": "x"},
    NETWORK: {"network": "x", "network_gateway": GATEWAY},
}


@pytest.mark.parametrize("preferred", DIFFERENCES)
@pytest.mark.parametrize("differs", DIFFERENCES)
def test_each_preference_compares_one_thing(preferred: Scope, differs: Scope) -> None:
    here = ENDPOINTS[0]
    there = Endpoint(replace(here.workload, uid="there", **DIFFERENCES[differs]), {80: 8080})
    service = replace(SERVICE, mode=FAILOVER, preferences=(preferred,))
    second = choose(service, [here, there], CLIENT, 80, 0.9)
    assert second is (here if preferred is differs else there)
    assert choose(service, [here, there], CLIENT, 80, 0.1) is here


def test_our_network_outweighs_what_follows_it() -> None:
    far = Endpoint(replace(ENDPOINTS[0].workload, uid="far", network="other", network_gateway=GATEWAY), {80: 8080})
    near = Endpoint(replace(ENDPOINTS[0].workload, uid="near", locality=Locality("other")), {80: 8080})
    service = replace(SERVICE, mode=FAILOVER, preferences=(NETWORK, REGION, ZONE))
    for chance in (0.0, 0.5, 0.99):
        assert (
            choose(service, [far, near], CLIENT, 80, chance) is near
        )  # although `far` matches two preferences, and `near` one
    assert choose(service, [far], CLIENT, 80, 0.0) is far


PLACES = {
    "match": ("network", Locality("reg", "zone")),
    "almost": ("network", Locality("reg", "not-zone")),
    "nowhere": ("network", Locality()),
    "other": ("other", Locality("reg", "zone")),
}


@pytest.mark.parametrize(
    ("mode", "network", "locality", "taken"),
    [
        (STRICT, "", Locality(), set()),
        (STRICT, "network", Locality("reg", "zone"), {"match"}),
        (FAILOVER, "no-match", Locality("no-match", "no-match"), {"match", "almost", "nowhere", "other"}),
        (FAILOVER, "network", Locality("reg", "zone"), {"match"}),
        (FAILOVER, "network", Locality("reg"), {"match", "almost"}),
        (FAILOVER, "network", Locality("no-match", "no-match"), {"match", "almost", "nowhere"}),
        (FAILOVER, "no-match", Locality("reg", "zone"), {"match", "other"}),
    ],
)
def test_load_balance(mode: BalancingMode, network: str, locality: Locality, taken: set[str]) -> None:
    """The matrix of Istio's ztunnel; an endpoint without an address is never among them."""
    service = replace(SERVICE, mode=mode, preferences=(NETWORK, REGION, ZONE))
    one = ENDPOINTS[1].workload
    endpoints = [
        Endpoint(replace(one, uid=uid, network=where, locality=place, network_gateway=GATEWAY), {80: 80})
        for uid, (where, place) in PLACES.items()
    ]
    endpoints.append(Endpoint(replace(one, uid="no address", addresses=(), network=network or "network"), {80: 80}))
    client = replace(CLIENT, network=network, locality=locality)
    picked = [choose(service, endpoints, client, 80, chance / 40) for chance in range(40)]
    assert {endpoint.workload.uid for endpoint in picked if endpoint} == taken
    assert (None in picked) is not bool(taken)


def test_endpoints_without_an_address_need_a_gateway_of_another_network() -> None:
    hidden = replace(ENDPOINTS[0].workload, addresses=(), network_gateway=GATEWAY)
    assert choose(SERVICE, [Endpoint(hidden, {})], CLIENT, 80, 0.5) is None
    assert choose(SERVICE, [Endpoint(replace(hidden, network="far"), {})], CLIENT, 80, 0.5) is not None
    without = replace(ENDPOINTS[0].workload, network="far")
    assert choose(SERVICE, [Endpoint(without, {})], CLIENT, 80, 0.5) is None


def test_who_is_avoided_leaves_the_choice_to_the_next_best() -> None:
    service = replace(SERVICE, mode=FAILOVER, preferences=(REGION, ZONE, SUBZONE, NODE))
    others = eligible(service, ENDPOINTS, CLIENT, 80, frozenset({"e1"}))
    assert choose_among(service, others, CLIENT, SOURCE, 0.5)[0] is ENDPOINTS[1]
    assert not eligible(service, ENDPOINTS, CLIENT, 80, frozenset({"e1", "e2"}))


@given(st.lists(st.integers(0, 9), max_size=6), st.floats(0, 1, exclude_max=True))
def test_a_choice_is_fair_and_leaves_a_chance(weights: list[int], chance: float) -> None:
    chosen, rest = weighted(range(len(weights)), weights, chance)
    assert 0 <= rest < 1
    assert (chosen is None) is (sum(weights) == 0)
    if chosen is not None:
        assert weights[chosen] > 0
        assert sum(weights[:chosen]) + rest * weights[chosen] == pytest.approx(chance * sum(weights))


def shares(service: Service) -> Counter[str]:
    return Counter(str(sample_waypoint(service, chance / 100)[0]) for chance in range(100))


def test_sample_weighted_waypoint() -> None:
    def way(name: str) -> GatewayAddress:
        return GatewayAddress(NamespacedHostname("ns", name), 15008)

    single = replace(SERVICE, waypoint=way("w"))
    assert shares(SERVICE) == {"None": 100} and shares(single) == {"ns/w": 100}
    split = replace(single, weighted_waypoints=(WeightedWaypoint(way("a"), 3), WeightedWaypoint(way("b"), 1)))
    assert shares(split) == {"ns/a": 75, "ns/b": 25}
    drained = replace(single, weighted_waypoints=(WeightedWaypoint(way("a"), 0), WeightedWaypoint(way("b"), 1)))
    assert shares(drained) == {"ns/b": 100}
    none = replace(single, weighted_waypoints=(WeightedWaypoint(way("a"), 0),))
    assert shares(none) == {"ns/w": 100}


def test_nobody_to_choose() -> None:
    assert choose(SERVICE, [], CLIENT, 80, 0.5) is None
    assert choose(SERVICE, ENDPOINTS, CLIENT, 81, 0.5) is None
    assert choose(SERVICE, ENDPOINTS[2:3], CLIENT, 80, 0.5) is None
    unreachable = Endpoint(replace(ENDPOINTS[0].workload, addresses=()), {80: 8080})
    assert choose(SERVICE, [unreachable], CLIENT, 80, 0.5) is None


def test_find_upstream_port_mappings() -> None:
    """The endpoint's own mapping, else the service's; a waypoint with an application tunnel keeps the port."""
    service = replace(SERVICE, ports={80: 8080, 81: 0, 82: 0})
    plain, tunnelled = (
        replace(ENDPOINTS[0].workload, application_tunnel=tunnel) for tunnel in (None, ApplicationTunnel(True, 15088))
    )
    assert target_port(service, Endpoint(plain, {80: 9090}), 80) == 9090
    assert target_port(service, Endpoint(plain, {}), 80) == 8080
    assert target_port(service, Endpoint(plain, {82: 7}), 82) == 7
    assert target_port(service, Endpoint(plain, {}), 81) is None
    assert target_port(service, Endpoint(plain, {99: 9}), 99) is None
    for port, found in ((81, 81), (99, 99), (80, 8080)):
        assert target_port(service, Endpoint(tunnelled, {}), port, "waypoint") == found
        assert target_port(service, Endpoint(plain, {}), port, "waypoint") == (8080 if port == 80 else None)
    assert target_port(service, Endpoint(tunnelled, {}), 81) is None
    assert target_port(service, Endpoint(tunnelled, {}), 99) is None
    portless = replace(tunnelled, application_tunnel=ApplicationTunnel(True, 0))
    assert target_port(service, Endpoint(portless, {}), 99, "waypoint") is None


def sticky(count: int, capacities: list[int] | None = None) -> list[Endpoint]:
    capacities = capacities or [1] * count
    return [
        Endpoint(replace(ENDPOINTS[0].workload, uid=f"uid-{number}", capacity=capacity), {})
        for number, capacity in enumerate(capacities)
    ]


def test_session_affinity_keeps_a_client_at_one_endpoint_whatever_the_chance_and_the_order() -> None:
    service, endpoints = replace(SERVICE, by_client_address=True), sticky(5)
    for last in range(1, 50):
        source = ip_address(f"10.0.0.{last}")
        picked = {choose_among(service, list(order), CLIENT, source, chance)[0].workload.uid  # type: ignore[union-attr]
                  for chance in (0.0, 0.3, 0.99) for order in (endpoints, endpoints[::-1])}  # fmt: skip
        assert len(picked) == 1


def test_session_affinity_moves_only_the_clients_of_an_endpoint_that_goes_and_shares_by_capacity() -> None:
    service, endpoints = replace(SERVICE, by_client_address=True), sticky(5, [1, 1, 1, 1, 8])
    sources = [ip_address(0x0A000000 + number) for number in range(4000)]

    def placed(among: list[Endpoint]) -> dict[object, str]:
        return {one: choose_among(service, among, CLIENT, one, 0.5)[0].workload.uid for one in sources}  # type: ignore[union-attr]

    before, after = placed(endpoints), placed(endpoints[1:])
    assert all(after[one] == before[one] for one in sources if before[one] != "uid-0")
    shares = Counter(before.values())
    assert 290 < shares["uid-0"] < 380 and 2550 < shares["uid-4"] < 2790
