"""Routes through waypoints, and never past one (names after the behaviours of Istio's ztunnel)."""

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.inventory import Inventory
from mesh.workload import (
    Address,
    ApplicationTunnel,
    BalancingMode,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    Scope,
    Service,
    TunnelProtocol,
    WeightedWaypoint,
    Workload,
)
from ztunnel.hbone import Authority
from ztunnel.outliers import Choice
from ztunnel.route import Refused, Request, Route, decide

pytestmark = pytest.mark.unit

HBONE = TunnelProtocol.HBONE
KEY, WAYPOINT_KEY = "ns/web.ns.svc.cluster.local", "ns/wp.ns.svc.cluster.local"
BY_NAME = GatewayAddress(NamespacedHostname("ns", "wp.ns.svc.cluster.local"), 15008)
BY_POD = GatewayAddress(NetworkAddress("", ip_address("10.0.0.10")), 15008)
BY_VIP = GatewayAddress(NetworkAddress("", ip_address("10.96.0.10")), 15008)
CLIENT = Workload("c", "c", "ns", (ip_address("10.0.0.1"), ip_address("fd00::1")), protocol=HBONE)
SERVER = Workload("s", "s", "ns", (ip_address("10.0.0.2"), ip_address("fd00::2")), protocol=HBONE, services={KEY: {80: 8080}})
WEB = Service("web", "ns", "web.ns.svc.cluster.local", (NetworkAddress("", ip_address("10.96.0.1")),), {80: 8080})
POD = Workload(
    "w", "w", "ns", (ip_address("10.0.0.10"), ip_address("fd00::10")), service_account="wp", services={WAYPOINT_KEY: {}}
)
GATEWAY = Service(
    "wp",
    "ns",
    "wp.ns.svc.cluster.local",
    (NetworkAddress("", ip_address("10.96.0.10")),),
    {15008: 15008},
    ("spiffe://td/ns/a/sa/b",),
)
IDENTITY = "spiffe://cluster.local/ns/ns/sa/wp"


def route(
    destination: str,
    port: int,
    *known: Workload | Service,
    client: Workload = CLIENT,
    source: Address | None = None,
    chance: float = 0.5,
    avoid: frozenset[str] = frozenset(),
) -> Route | Refused:
    inventory = Inventory()
    inventory.apply([client, *known], [])
    return decide(inventory, "", Request(client, source or client.addresses[0], ip_address(destination), port), chance, avoid)


def known(*resources: Workload | Service) -> Inventory:
    inventory = Inventory()
    inventory.apply(resources, [])
    return inventory


def taken(outcome: Route | Refused) -> Route:
    assert isinstance(outcome, Route), outcome
    return outcome


def refusal(outcome: Route | Refused) -> str:
    assert isinstance(outcome, Refused), outcome
    return outcome.reason


@pytest.mark.parametrize("mode", list(BalancingMode))
@pytest.mark.parametrize("gateway", [BY_NAME, BY_VIP])
def test_destination_svc_waypoint_and_passthrough_svc_with_waypoint(gateway: GatewayAddress, mode: BalancingMode) -> None:
    """Whatever the service's own mode: PASSTHROUGH goes through the waypoint too."""
    web = replace(WEB, waypoint=gateway, mode=mode)
    one = taken(route("10.96.0.1", 80, SERVER, web, POD, GATEWAY))
    assert (one.protocol, str(one.address), one.port) == ("HBONE", "10.0.0.10", 15008)
    assert one.authority == Authority(ip_address("10.96.0.1"), 80)  # as dialled, not translated
    assert one.expected == {IDENTITY, "spiffe://td/ns/a/sa/b"}
    assert (one.workload, one.service, one.hop, one.choice) == (POD, web, "waypoint", Choice("w", 15008))


def test_a_waypoint_by_a_pods_address_is_that_pod() -> None:
    one = taken(route("10.96.0.1", 80, SERVER, replace(WEB, waypoint=BY_POD), POD, GATEWAY))
    assert (str(one.address), one.port, one.expected, one.choice) == ("10.0.0.10", 15008, {IDENTITY}, None)
    several = replace(POD, addresses=(ip_address("10.0.0.9"), *POD.addresses))
    assert str(taken(route("10.96.0.1", 80, SERVER, replace(WEB, waypoint=BY_POD), several)).address) == "10.0.0.10"


def test_the_waypoints_own_port_mapping_counts() -> None:
    mapped = replace(POD, services={WAYPOINT_KEY: {15008: 25008}})
    assert taken(route("10.96.0.1", 80, replace(WEB, waypoint=BY_NAME), mapped, GATEWAY)).port == 25008


def test_a_waypoint_with_a_tunnel_needs_no_port_on_its_service() -> None:
    portless = replace(GATEWAY, ports={80: 80})
    web = replace(WEB, waypoint=BY_NAME)
    assert refusal(route("10.96.0.1", 80, web, POD, portless)).startswith("unknown waypoint: ns/wp.ns.svc.cluster.local")
    sandwiched = replace(POD, application_tunnel=ApplicationTunnel(True, 15088))
    assert taken(route("10.96.0.1", 80, web, sandwiched, portless)).port == 15008


def test_destination_waypoint() -> None:
    behind = replace(SERVER, waypoint=BY_NAME)
    one = taken(route("10.0.0.2", 9000, behind, POD, GATEWAY))
    assert (one.protocol, str(one.address), one.port, str(one.authority)) == ("HBONE", "10.0.0.10", 15008, "10.0.0.2:9000")
    assert (one.workload, one.service, one.hop) == (POD, None, "waypoint")
    plain = replace(behind, protocol=TunnelProtocol.NONE)  # what is behind it is not the client's business
    assert taken(route("10.0.0.2", 9000, plain, POD, GATEWAY)).hop == "waypoint"
    everywhere = replace(WEB, vips=(NetworkAddress("", ip_address("10.0.0.0"), 24),), mode=BalancingMode.PASSTHROUGH)
    assert taken(route("10.0.0.2", 9000, behind, POD, GATEWAY, everywhere)).hop == "waypoint"


def test_destination_waypoint_mismatch_ip() -> None:
    """A waypoint by its IPv4 address carries calls to IPv6 too; one by name adapts to the caller."""
    by_address = taken(route("fd00::2", 80, replace(SERVER, waypoint=BY_POD), POD))
    assert (str(by_address.address), str(by_address.authority)) == ("10.0.0.10", "[fd00::2]:80")
    by_name = taken(route("fd00::2", 80, replace(SERVER, waypoint=BY_NAME), POD, GATEWAY))
    assert (str(by_name.address), str(by_name.authority)) == ("fd00::10", "[fd00::2]:80")


def test_a_waypoint_may_be_a_workload_with_a_hostname() -> None:
    named = replace(POD, services={}, hostname="wp.ns.svc.cluster.local")
    assert str(taken(route("10.0.0.2", 80, replace(SERVER, waypoint=BY_NAME), named)).address) == "10.0.0.10"
    assert str(taken(route("10.96.0.1", 80, replace(WEB, waypoint=BY_NAME), named)).address) == "10.0.0.10"


def test_source_waypoint_is_ignored() -> None:
    client = replace(CLIENT, waypoint=BY_NAME)
    assert taken(route("10.0.0.2", 80, SERVER, POD, GATEWAY, client=client)).hop == ""


def test_a_workloads_waypoint_is_not_for_calls_to_its_service() -> None:
    behind = replace(SERVER, waypoint=BY_NAME)
    assert taken(route("10.96.0.1", 80, behind, WEB, POD, GATEWAY)).workload is behind


@pytest.mark.parametrize("gateway", [BY_NAME, BY_VIP, BY_POD])
def test_the_waypoint_itself_goes_straight(gateway: GatewayAddress) -> None:
    behind = replace(SERVER, waypoint=gateway)
    assert taken(route("10.0.0.2", 80, behind, GATEWAY, client=POD)).workload is behind
    elsewhere = ip_address("10.0.0.99")
    assert taken(route("10.0.0.2", 80, behind, GATEWAY, client=POD, source=elsewhere)).hop == "waypoint"
    other = replace(CLIENT, services={WAYPOINT_KEY: {}})  # another identity at the waypoint's service is a waypoint too
    outcome = route("10.0.0.2", 80, behind, GATEWAY, POD, client=other)
    assert taken(outcome).hop == ("waypoint" if gateway is BY_POD else "")
    impostor = replace(POD, uid="x", service_account="another", services={}, hostname="x")
    outcome = decide(known(POD, behind, GATEWAY), "", Request(impostor, POD.addresses[0], SERVER.addresses[0], 80), 0.5)
    assert taken(outcome).hop == "waypoint", "its address alone makes nobody a waypoint"


def test_weighted_waypoints_share_by_chance() -> None:
    second = GatewayAddress(NetworkAddress("", ip_address("10.0.0.11")), 15008)
    other = replace(POD, uid="w2", addresses=(ip_address("10.0.0.11"),), services={})
    web = replace(WEB, waypoint=BY_NAME, weighted_waypoints=(WeightedWaypoint(BY_POD, 3), WeightedWaypoint(second, 1)))
    shares = Counter(str(taken(route("10.96.0.1", 80, web, POD, other, chance=n / 100)).address) for n in range(100))
    assert shares == {"10.0.0.10": 75, "10.0.0.11": 25}
    drained = replace(web, weighted_waypoints=(WeightedWaypoint(second, 0),))
    assert taken(route("10.96.0.1", 80, drained, POD, GATEWAY)).choice == Choice("w", 15008)


UNKNOWN = {
    "nobody": (),
    "no endpoint": (GATEWAY,),
    "unhealthy": (GATEWAY, replace(POD, healthy=False)),
    "no capacity": (GATEWAY, replace(POD, capacity=0)),
    "passthrough without a pod, beside a workload of the same address and name": (
        replace(GATEWAY, mode=BalancingMode.PASSTHROUGH),
        replace(POD, addresses=(ip_address("10.96.0.10"),), hostname=GATEWAY.hostname, services={}),
    ),
}


@pytest.mark.parametrize("known", UNKNOWN.values(), ids=list(UNKNOWN))
@pytest.mark.parametrize("gateway", [BY_NAME, BY_VIP])
def test_an_unresolvable_waypoint_is_an_error_and_no_bypass(
    gateway: GatewayAddress, known: tuple[Workload | Service, ...]
) -> None:
    services = [
        replace(WEB, waypoint=gateway),
        replace(WEB, waypoint=gateway, mode=BalancingMode.PASSTHROUGH),
        replace(WEB, waypoint=gateway, weighted_waypoints=(WeightedWaypoint(gateway, 1),)),
    ]
    for web in services:
        reason = refusal(route("10.96.0.1", 80, SERVER, web, *known))
        assert reason.startswith(f"unknown waypoint: {gateway}, wanted by service {KEY}")
    behind = replace(SERVER, waypoint=gateway)
    reason = refusal(route("10.0.0.2", 80, behind, *known))
    assert reason.startswith(f"unknown waypoint: {gateway}, wanted by workload s.ns")


def test_a_refusal_says_how_to_mend() -> None:
    outcome = route("10.96.0.1", 80, SERVER, replace(WEB, waypoint=BY_NAME))
    assert refusal(outcome) == (
        f"unknown waypoint: ns/wp.ns.svc.cluster.local, wanted by service {KEY}, is not known; "
        "create that waypoint, or take the wish for it away (label istio.io/use-waypoint)"
    )
    assert isinstance(outcome, Refused) and outcome.service is not None and outcome.service.key == KEY


def test_a_passthrough_service_is_a_waypoint_by_its_name_and_not_by_its_address() -> None:
    """Endpoints it has; only who dials its address keeps that."""
    passing = replace(GATEWAY, mode=BalancingMode.PASSTHROUGH, preferences=(Scope.NODE,))
    client, near = replace(CLIENT, node="n1"), replace(POD, node="n1")
    far = replace(POD, uid="v", name="v", addresses=(ip_address("10.0.0.11"),), node="n2")
    for chance in (0.01, 0.5, 0.99):
        one = taken(route("10.96.0.1", 80, replace(WEB, waypoint=BY_NAME), far, near, passing, client=client, chance=chance))
        assert one.workload is near, "the preferred one"
    outcome = route("10.96.0.1", 80, SERVER, replace(WEB, waypoint=BY_VIP), near, passing)
    assert f"wanted by service {KEY}, is an address of a PASSTHROUGH service, which leads to no endpoint; create" in refusal(
        outcome
    )


def test_a_waypoint_wanted_on_the_clients_own_network_is_not_passed() -> None:
    far = replace(CLIENT, network="n2")
    web = replace(WEB, vips=(NetworkAddress("n2", ip_address("10.96.0.1")),), waypoint=BY_NAME)
    assert refusal(route("10.96.0.1", 80, replace(SERVER, network="n2"), web, client=far)).startswith("unknown waypoint")


def test_nor_is_one_wanted_on_the_proxys_network_alone() -> None:
    far = replace(CLIENT, network="n2")
    outcome = route("10.96.0.1", 80, replace(WEB, waypoint=BY_NAME), POD, GATEWAY, client=far)
    assert refusal(outcome).endswith("endpoints 1 are on network '', to which no gateway is known")
    elsewhere = replace(POD, network_gateway=BY_POD)
    outcome = route("10.96.0.1", 80, replace(WEB, waypoint=BY_NAME), elsewhere, GATEWAY, client=far)
    assert taken(outcome).protocol == "DOUBLEHBONE"


def test_who_has_an_address_on_the_clients_network_is_meant_by_it_and_no_range_around_it() -> None:
    far, owner = replace(CLIENT, network="n2"), replace(SERVER, network="n2")
    around = replace(WEB, vips=(NetworkAddress("n2", ip_address("10.0.0.0"), 24),), waypoint=BY_NAME)
    passing = replace(around, mode=BalancingMode.PASSTHROUGH)
    assert taken(route("10.0.0.2", 80, owner, passing, client=far)).workload is owner
    assert refusal(route("10.0.0.7", 80, owner, passing, client=far)).startswith("unknown waypoint")


def test_who_failed_is_not_chosen_again() -> None:
    other = replace(POD, uid="w2", addresses=(ip_address("10.0.0.11"),))
    known = (SERVER, replace(WEB, waypoint=BY_NAME), POD, other, GATEWAY)
    for chance in (0.0, 0.99):
        assert taken(route("10.96.0.1", 80, *known, chance=chance, avoid=frozenset({"w"}))).workload is other
    assert "2 are set aside after failures" in refusal(route("10.96.0.1", 80, *known, avoid=frozenset({"w", "w2"})))


def test_a_waypoint_may_have_only_a_hostname() -> None:
    named = replace(POD, addresses=(), hostname="wp.example.com")
    one = taken(route("10.96.0.1", 80, replace(WEB, waypoint=BY_NAME), named, GATEWAY))
    assert (one.address, one.hostname, one.port) == (None, "wp.example.com", 15008)
    there = GatewayAddress(NamespacedHostname("ns", "wp.ns.svc.cluster.local"), 15009)
    elsewhere = taken(route("10.96.0.1", 80, replace(WEB, waypoint=there), named, replace(GATEWAY, ports={15009: 15009})))
    for hop in (one, elsewhere):
        assert refusal(hop.resolved(ip_address("127.0.0.1"))).startswith(f"self call to 127.0.0.1:{hop.port}")
    found = taken(one.resolved(ip_address("192.0.2.7")))
    assert (str(found.address), str(found.authority)) == ("192.0.2.7", "10.96.0.1:80")
