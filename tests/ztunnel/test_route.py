"""Outbound routing, row by row (names after the behaviours of Istio's ztunnel)."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.inventory import Inventory
from mesh.workload import (
    BalancingMode,
    GatewayAddress,
    IPFamilies,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    Service,
    TunnelProtocol,
    WeightedWaypoint,
    Workload,
)
from ztunnel.hbone import Authority
from ztunnel.route import Refused, Request, Route, decide

pytestmark = pytest.mark.unit

HBONE = TunnelProtocol.HBONE
KEY = "ns/web.ns.svc.cluster.local"
WAYPOINT = GatewayAddress(NamespacedHostname("ns", "wp.ns.svc.cluster.local"), 15008)
CLIENT = Workload("c", "c", "ns", (ip_address("10.0.0.1"), ip_address("fd00::1")), protocol=HBONE)
SERVER = Workload("s", "s", "ns", (ip_address("10.0.0.2"), ip_address("fd00::2")), protocol=HBONE, services={KEY: {80: 8080}})
PLAIN = Workload("p", "p", "ns", (ip_address("10.0.0.3"),))
WEB = Service("web", "ns", "web.ns.svc.cluster.local", (NetworkAddress("", ip_address("10.96.0.1")),), {80: 8080})
EXPECTED = frozenset({"spiffe://cluster.local/ns/ns/sa/default"})


def route(destination: str, port: int, *known: Workload | Service, client: Workload = CLIENT) -> Route | Refused:
    inventory = Inventory()
    inventory.apply([client, *known], [])
    return decide(inventory, "", Request(client, client.addresses[0], ip_address(destination), port), 0.5)


def target(outcome: Route | Refused) -> tuple[str, str, int]:
    assert isinstance(outcome, Route), outcome
    return outcome.protocol, str(outcome.address), outcome.port


def refusal(outcome: Route | Refused) -> str:
    assert isinstance(outcome, Refused), outcome
    return outcome.reason


def test_unknown_destination_passes_through() -> None:
    assert target(route("9.9.9.9", 443)) == ("TCP", "9.9.9.9", 443)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("port", [15001, 15006, 15008, 15080])
def test_self_calls_are_refused(address: str, port: int) -> None:
    assert "self call" in refusal(route(address, port))


def test_known_workloads_by_protocol() -> None:
    direct = route("10.0.0.2", 9000, SERVER)
    assert target(direct) == ("HBONE", "10.0.0.2", 15008)
    assert isinstance(direct, Route) and direct.authority == Authority(ip_address("10.0.0.2"), 9000)
    assert direct.expected == EXPECTED and direct.workload is SERVER
    assert target(route("10.0.0.3", 9000, PLAIN)) == ("TCP", "10.0.0.3", 9000)
    assert target(route("fd00::2", 1, SERVER)) == ("HBONE", "fd00::2", 15008)


def test_service_goes_to_an_endpoint_and_its_target_port() -> None:
    outcome = route("10.96.0.1", 80, SERVER, WEB)
    assert target(outcome) == ("HBONE", "10.0.0.2", 15008)
    assert isinstance(outcome, Route) and str(outcome.authority) == "10.0.0.2:8080" and outcome.service == WEB
    plain = replace(PLAIN, services={KEY: {}})
    assert target(route("10.96.0.1", 80, plain, WEB)) == ("TCP", "10.0.0.3", 8080)


def test_service_names_widen_who_may_answer() -> None:
    named = replace(WEB, subject_alt_names=("spiffe://td/ns/x/sa/y", "not-an-identity"))
    outcome = route("10.96.0.1", 80, SERVER, named)
    assert isinstance(outcome, Route) and outcome.expected == EXPECTED | {"spiffe://td/ns/x/sa/y"}


def test_service_without_endpoint_or_port_is_refused() -> None:
    assert refusal(route("10.96.0.1", 80, WEB)) == "no healthy upstream: 10.96.0.1:80"
    assert refusal(route("10.96.0.1", 81, SERVER, WEB)) == "no healthy upstream: 10.96.0.1:81"
    assert "no healthy upstream" in refusal(route("10.96.0.1", 80, replace(SERVER, healthy=False), WEB))


def test_passthrough_service_keeps_the_destination() -> None:
    passthrough = replace(WEB, mode=BalancingMode.PASSTHROUGH)
    assert target(route("10.96.0.1", 80, SERVER, passthrough)) == ("TCP", "10.96.0.1", 80)
    everywhere = replace(passthrough, vips=(NetworkAddress("", ip_address("10.0.0.0"), 24),))
    assert target(route("10.0.0.2", 80, SERVER, everywhere)) == ("HBONE", "10.0.0.2", 15008)


def test_host_network_workload_passes_through() -> None:
    assert target(route("10.0.0.2", 80, replace(SERVER, network_mode=NetworkMode.HOST_NETWORK))) == ("TCP", "10.0.0.2", 80)


@pytest.mark.parametrize(
    "service",
    [
        replace(WEB, waypoint=WAYPOINT),
        replace(WEB, weighted_waypoints=(WeightedWaypoint(WAYPOINT, 1),)),
        replace(WEB, waypoint=WAYPOINT, weighted_waypoints=(WeightedWaypoint(WAYPOINT, 0),)),
        replace(WEB, waypoint=WAYPOINT, mode=BalancingMode.PASSTHROUGH),
    ],
)
def test_service_waypoint_is_never_bypassed(service: Service) -> None:
    assert refusal(route("10.96.0.1", 80, SERVER, service)) == "waypoint not supported yet: ns/wp.ns.svc.cluster.local"


def test_workload_waypoint_is_never_bypassed_but_by_itself() -> None:
    behind = replace(SERVER, waypoint=WAYPOINT)
    assert refusal(route("10.0.0.2", 80, behind)) == "waypoint not supported yet: ns/wp.ns.svc.cluster.local"
    assert target(route("10.96.0.1", 80, behind, WEB))[0] == "HBONE"  # asked for by a service without a waypoint
    gateway = Service("wp", "ns", "wp.ns.svc.cluster.local", ports={15008: 15008})
    itself = replace(CLIENT, services={"ns/wp.ns.svc.cluster.local": {}})
    assert target(route("10.0.0.2", 80, behind, gateway, client=itself))[0] == "HBONE"
    by_address = replace(SERVER, waypoint=GatewayAddress(NetworkAddress("", ip_address("10.0.0.1")), 15008))
    assert target(route("10.0.0.2", 80, by_address))[0] == "HBONE"


def test_other_networks_are_refused_by_the_gateways_name() -> None:
    gateway = GatewayAddress(NetworkAddress("", ip_address("192.0.2.1")), 15009)
    far = replace(SERVER, network="far", network_gateway=gateway)
    assert refusal(route("10.96.0.1", 80, far, WEB)) == "waypoint not supported yet: /192.0.2.1"
    assert "network far" in refusal(route("10.96.0.1", 80, replace(far, network_gateway=None), WEB))


def test_hostname_workload_has_no_address_yet() -> None:
    named = replace(SERVER, addresses=(), hostname="db.example.com")
    assert "db.example.com" in refusal(route("10.96.0.1", 80, named, WEB))


def test_families_of_a_dual_stack_workload() -> None:
    dual = replace(WEB, vips=(NetworkAddress("", ip_address("10.96.0.1")), NetworkAddress("", ip_address("fd96::1"))))
    assert target(route("fd96::1", 80, SERVER, dual))[1] == "fd00::2"
    only4 = replace(dual, ip_families=IPFamilies.IPV4_ONLY)
    assert target(route("fd96::1", 80, SERVER, only4))[1] == "10.0.0.2"
    single = replace(SERVER, addresses=(ip_address("10.0.0.2"),))
    assert target(route("fd96::1", 80, single, dual))[1] == "10.0.0.2"


def test_a_service_of_another_namespace_may_be_hidden() -> None:
    hidden = replace(WEB, namespace="other", namespace_only=True)
    assert target(route("10.96.0.1", 80, hidden)) == ("TCP", "10.96.0.1", 80)
