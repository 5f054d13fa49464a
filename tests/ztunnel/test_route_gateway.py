"""Routes to other networks, through their gateways (names after the behaviours of Istio's ztunnel)."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.inventory import Inventory
from mesh.workload import (
    BalancingMode,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    Scope,
    Service,
    TunnelProtocol,
    Workload,
)
from ztunnel.outliers import Choice
from ztunnel.route import Refused, Request, Route, decide

pytestmark = pytest.mark.unit

WEB_NAME, FAR_NAME = "spiffe://cluster.local/ns/ns/sa/web", "spiffe://cluster.local/ns/ns/sa/waypoint"
BY_ADDRESS = GatewayAddress(NetworkAddress("remote", ip_address("10.22.1.1")), 15009)
BY_NAME = GatewayAddress(NamespacedHostname("ns", "ew-gtw"), 15009)
CLIENT = Workload("c", "c", "ns", (ip_address("10.0.0.1"),))
WEB = Service(
    "example",
    "ns",
    "example.com",
    (NetworkAddress("", ip_address("10.96.0.1")),),
    {80: 8080},
    (WEB_NAME, "example.com"),
)
FAR = Workload("far", "far", "ns", network="remote", network_gateway=BY_ADDRESS, services={WEB.key: {80: 8080}})
GATEWAY = Workload(
    "Kubernetes//Pod/ns/ew-gtw", "ew-gtw", "ns", (ip_address("10.22.1.1"),), network="remote", service_account="gtw"
)
GATEWAY_NAME = "spiffe://cluster.local/ns/ns/sa/gtw"


def route(
    *known: Workload | Service, destination: str = "10.96.0.1", avoid: frozenset[str] = frozenset(), chance: float = 0.5
) -> Route | Refused:
    inventory = Inventory()
    inventory.apply([CLIENT, *known], [])
    return decide(inventory, "", Request(CLIENT, CLIENT.addresses[0], ip_address(destination), 80), chance, avoid)


def taken(outcome: Route | Refused) -> Route:
    assert isinstance(outcome, Route), outcome
    return outcome


def refusal(outcome: Route | Refused) -> str:
    assert isinstance(outcome, Refused), outcome
    return outcome.reason


def dialled(outcome: Route | Refused) -> tuple[str, str, int, str]:
    one = taken(outcome)
    return one.protocol, str(one.address), one.port, str(one.authority)


def test_double_hbone_through_a_gateway_by_address() -> None:
    outcome = taken(route(WEB, FAR, GATEWAY))
    assert dialled(outcome) == ("DOUBLEHBONE", "10.22.1.1", 15009, "example.com:80")
    assert (outcome.workload, outcome.service, outcome.hop) == (GATEWAY, WEB, "gateway")
    assert outcome.expected == {GATEWAY_NAME} and outcome.inner_expected == {WEB_NAME}
    assert outcome.choice == Choice("far", 8080)


def test_double_hbone_through_a_gateway_by_hostname() -> None:
    service = Service("gtw", "ns", "ew-gtw", (NetworkAddress("", ip_address("10.96.0.4")),), {15009: 15009}, (FAR_NAME,))
    pod = Workload("g", "g", "ns", (ip_address("10.0.0.5"),), network="remote", services={"ns/ew-gtw": {15009: 15008}})
    outcome = taken(route(WEB, replace(FAR, network_gateway=BY_NAME), service, pod))
    assert dialled(outcome) == ("DOUBLEHBONE", "10.0.0.5", 15008, "example.com:80")
    assert outcome.expected == {str(pod.identity), FAR_NAME} and outcome.inner_expected == {WEB_NAME}
    assert outcome.choice == Choice("g", 15008)
    named = replace(GATEWAY, hostname="ew-gtw")
    assert dialled(route(WEB, replace(FAR, network_gateway=BY_NAME), named))[1:3] == ("10.22.1.1", 15009)


def test_double_hbone_to_a_waypoint_on_another_network() -> None:
    key = "ns/waypoint.com"
    web = replace(WEB, waypoint=GatewayAddress(NamespacedHostname("ns", "waypoint.com"), 15008))
    gateway = Service("waypoint", "ns", "waypoint.com", ports={15008: 15008}, subject_alt_names=(FAR_NAME,))
    pod = Workload("w", "w", "ns", network="remote", network_gateway=BY_ADDRESS, services={key: {15008: 15008}})
    outcome = taken(route(web, gateway, pod, GATEWAY))
    assert dialled(outcome) == ("DOUBLEHBONE", "10.22.1.1", 15009, "example.com:80")
    assert (outcome.service, outcome.inner_expected) == (web, {FAR_NAME})  # the waypoint answers there


def test_failover_to_remote() -> None:
    web = replace(WEB, preferences=(Scope.NETWORK,), mode=BalancingMode.FAILOVER)
    local = Workload("l", "l", "ns", (ip_address("10.0.0.2"),), protocol=TunnelProtocol.HBONE, services={WEB.key: {}})
    assert dialled(route(web, FAR, GATEWAY, local)) == ("HBONE", "10.0.0.2", 15008, "10.0.0.2:8080")
    assert dialled(route(web, FAR, GATEWAY, replace(local, healthy=False)))[0] == "DOUBLEHBONE"
    assert dialled(route(web, FAR, GATEWAY, local, avoid=frozenset({"l"})))[0] == "DOUBLEHBONE"


def test_who_is_chosen_behind_a_gateway_says_nothing_of_which_of_its_pods_is_dialled() -> None:
    known: list[Workload | Service] = [WEB]
    for one in ("a", "b"):
        gateway = GatewayAddress(NamespacedHostname("ns", one), 15008)
        known += [Service(one, "ns", one, (), {15008: 15008}), replace(FAR, uid=f"far-{one}", network_gateway=gateway)]
        known += [replace(GATEWAY, uid=f"{one}{n}", addresses=(), hostname="x", services={f"ns/{one}": {}}) for n in "12"]
    dialled = [taken(route(*known, chance=chance)).workload for chance in (0.1, 0.4, 0.6, 0.9)]
    assert sorted(gateway.uid for gateway in dialled if gateway is not None) == ["a1", "a2", "b1", "b2"]


def test_a_gateway_to_ones_own_network_is_not_used() -> None:
    near = replace(FAR, network="", addresses=(ip_address("10.0.0.2"),))
    assert taken(route(WEB, near, GATEWAY)).protocol == "TCP"


def test_wrong_network_is_an_error() -> None:
    stranded = replace(FAR, network_gateway=None, addresses=(ip_address("10.0.0.2"),))
    assert refusal(route(WEB, stranded)).endswith("of 1 endpoints 1 are on network remote, to which no gateway is known")


def test_a_waypoint_on_another_network_is_not_dialled_past_that_networks_gateway() -> None:
    where = GatewayAddress(NetworkAddress("remote", ip_address("10.22.1.7")), 15008)
    waypoint = Workload("w", "w", "ns", (ip_address("10.22.1.7"),), network="remote")
    outcome = route(replace(WEB, waypoint=where), FAR, GATEWAY, waypoint)
    assert refusal(outcome) == "workload w.ns is on network remote, to which no gateway is known"


def test_an_unresolvable_gateway_is_an_error() -> None:
    assert refusal(route(WEB, FAR)) == (
        "unknown network gateway: remote/10.22.1.1, wanted by workload far.ns, is not known; "
        "the control plane must know that gateway as a workload or a service"
    )
    assert refusal(route(WEB, replace(FAR, network_gateway=BY_NAME))).startswith("unknown network gateway: ns/ew-gtw")


def test_nobody_is_asked_who_could_not_prove_to_be_the_service() -> None:
    for names in ((), ("example.com",)):
        reason = refusal(route(replace(WEB, subject_alt_names=names), FAR, GATEWAY))
        assert reason.startswith(
            "service ns/example.com has no subject_alt_names: nobody behind network gateway remote/10.22.1.1"
        )


def test_only_services_are_reached_across_networks() -> None:
    waypoint = replace(FAR, hostname="wp", addresses=(), services={})
    behind = Workload("b", "b", "ns", (ip_address("10.0.0.2"),), waypoint=GatewayAddress(NamespacedHostname("ns", "wp"), 15008))
    outcome = route(behind, waypoint, GATEWAY, destination="10.0.0.2")
    assert refusal(outcome) == "workload far.ns is on network remote, and only services are reached across networks"
