"""Outbound routing, row by row (names after the behaviours of Istio's ztunnel)."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.inventory import Inventory
from mesh.workload import (
    BalancingMode,
    IPFamilies,
    NetworkAddress,
    NetworkMode,
    Scope,
    Service,
    TunnelProtocol,
    Workload,
)
from ztunnel.hbone import Authority
from ztunnel.route import Refused, Request, Route, decide, in_mesh

pytestmark = pytest.mark.unit

HBONE = TunnelProtocol.HBONE
KEY = "ns/web.ns.svc.cluster.local"
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


@pytest.mark.parametrize(("address", "port"), [("10.0.0.3", 15001), ("10.0.0.3", 15008), ("127.0.0.1", 8080)])
def test_a_port_of_the_proxy_elsewhere_and_one_of_the_application_here_are_none_of_them(address: str, port: int) -> None:
    assert target(route(address, port, PLAIN)) == ("TCP", address, port)


def test_known_dest_by_protocol() -> None:
    direct = route("10.0.0.2", 9000, SERVER)
    assert target(direct) == ("HBONE", "10.0.0.2", 15008)
    assert isinstance(direct, Route) and direct.authority == Authority(ip_address("10.0.0.2"), 9000)
    assert direct.expected == EXPECTED and direct.workload is SERVER
    plain = route("10.0.0.3", 9000, replace(PLAIN, hostname="plain.example"))
    assert target(plain) == ("TCP", "10.0.0.3", 9000)
    assert isinstance(plain, Route) and (plain.expected, plain.hostname) == (frozenset(), ""), (
        "by its address, and nobody's name"
    )
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


def test_empty_service_and_one_without_the_port_are_refused() -> None:
    assert (
        refusal(route("10.96.0.1", 80, WEB))
        == f"no healthy upstream: 10.96.0.1:80: service {KEY} has no endpoint that is ready"
    )
    nobody = f"no healthy upstream: 10.96.0.1:81: service {KEY} has no port 81 (its ports: 80)"
    assert refusal(route("10.96.0.1", 81, SERVER, WEB)) == nobody
    assert "no endpoint that is ready" in refusal(route("10.96.0.1", 80, replace(SERVER, healthy=False), WEB))


def test_a_refusal_counts_the_endpoints_by_what_keeps_each_from_being_chosen() -> None:
    web = replace(WEB, ports={80: 0})
    several = [
        replace(SERVER, uid="none", services={KEY: {}}),
        replace(SERVER, uid="idle", capacity=0),
        *(replace(SERVER, uid=f"lost{n}", addresses=()) for n in range(2)),
    ]
    assert refusal(route("10.96.0.1", 80, web, *several)) == (
        f"no healthy upstream: 10.96.0.1:80: service {KEY}: of 4 endpoints 1 have no capacity; "
        "2 have no address; 1 have no port 80"
    )
    strict = replace(WEB, mode=BalancingMode.STRICT, preferences=(Scope.NODE,))
    assert refusal(route("10.96.0.1", 80, strict, replace(SERVER, node="elsewhere"))) == (
        f"no healthy upstream: 10.96.0.1:80: service {KEY} is STRICT, and none of its 1 endpoints matches the client's NODE"
    )


def test_passthrough_svc_keeps_the_destination() -> None:
    passthrough = replace(WEB, mode=BalancingMode.PASSTHROUGH)
    assert target(route("10.96.0.1", 80, SERVER, passthrough)) == ("TCP", "10.96.0.1", 80)
    everywhere = replace(passthrough, vips=(NetworkAddress("", ip_address("10.0.0.0"), 24),))
    assert target(route("10.0.0.2", 80, SERVER, everywhere)) == ("HBONE", "10.0.0.2", 15008)


def test_a_pod_within_a_services_range_is_reached_where_the_service_has_nobody() -> None:
    """As itself, by mutual TLS: not in plain, and the range is no reason to refuse."""
    around = replace(WEB, vips=(NetworkAddress("", ip_address("10.0.0.0"), 8),), ports={443: 443})
    for outcome in (route("10.0.0.2", 9000, SERVER, around), route("10.0.0.2", 443, replace(SERVER, services={}), around)):
        assert isinstance(outcome, Route) and outcome.workload is not None
        assert (target(outcome), outcome.workload.uid, outcome.service) == (("HBONE", "10.0.0.2", 15008), "s", None)
    assert "has no port 9000" in refusal(route("10.0.0.9", 9000, SERVER, around)), "nobody has that address"
    listed = replace(PLAIN, services={KEY: {443: 443}})
    inventory = Inventory()
    inventory.apply([CLIENT, replace(SERVER, services={}), listed, around], [])
    asked = Request(CLIENT, CLIENT.addresses[0], ip_address("10.0.0.2"), 443)
    assert target(decide(inventory, "", asked, 0.5)) == ("TCP", "10.0.0.3", 443), "the service's own endpoint first"
    assert "set aside" in refusal(decide(inventory, "", asked, 0.5, frozenset({"p"}))), "and nobody else once that one failed"


def test_host_network_workload_passes_through() -> None:
    assert target(route("10.0.0.2", 80, replace(SERVER, network_mode=NetworkMode.HOST_NETWORK))) == ("TCP", "10.0.0.2", 80)


def test_a_workload_with_a_hostname_is_dialled_where_that_leads() -> None:
    named = replace(SERVER, addresses=(), hostname="db.example.com")
    outcome = route("10.96.0.1", 80, named, WEB)
    assert isinstance(outcome, Route) and (outcome.address, outcome.hostname) == (None, "db.example.com")
    found = outcome.resolved(ip_address("192.0.2.7"))
    assert target(found) == ("HBONE", "192.0.2.7", 15008)
    assert isinstance(found, Route) and str(found.authority) == "192.0.2.7:8080"
    assert "self call" in refusal(outcome.resolved(ip_address("127.0.0.1")))
    plain = route("10.96.0.1", 80, replace(named, protocol=TunnelProtocol.NONE), WEB)
    assert isinstance(plain, Route)
    assert target(plain.resolved(ip_address("192.0.2.7"))) == ("TCP", "192.0.2.7", 8080)
    assert target(plain.resolved(ip_address("127.0.0.1"))) == ("TCP", "127.0.0.1", 8080)
    captured = plain._replace(port=15001)
    assert "self call" in refusal(captured.resolved(ip_address("::1")))


def test_an_entry_that_lists_a_pods_address_is_no_reason_to_go_there_in_plain() -> None:
    uid = "K/networking.istio.io/ServiceEntry/ns/db/10.0.0.2"
    listed = Workload(uid, "db", "ns", SERVER.addresses, services={KEY: {80: 5432}})
    server, named = (
        replace(SERVER, services={}, service_account="server"),
        replace(WEB, subject_alt_names=("spiffe://td/ns/x/sa/y",)),
    )
    outcome = route("10.96.0.1", 80, listed, server, named)
    assert target(outcome) == ("HBONE", "10.0.0.2", 15008)
    assert isinstance(outcome, Route) and str(outcome.authority) == "10.0.0.2:5432" and outcome.workload is server
    assert outcome.expected == {"spiffe://td/ns/x/sa/y", "spiffe://cluster.local/ns/ns/sa/server"}
    assert outcome.choice is not None and outcome.choice.uid == uid, "should it fail, the entry's next endpoint is tried"
    plain = replace(server, protocol=TunnelProtocol.NONE)
    assert target(route("10.96.0.1", 80, listed, plain, named)) == ("TCP", "10.0.0.2", 5432)
    elsewhere = replace(server, network="other")
    assert target(route("10.96.0.1", 80, listed, elsewhere, named)) == ("TCP", "10.0.0.2", 5432)


def test_nor_is_a_name_that_leads_there() -> None:
    inventory = Inventory()
    server, named = (
        replace(SERVER, services={}),
        Workload("n", "n", "ns", hostname="db.example.com", services={KEY: {80: 5432}}),
    )
    inventory.apply([CLIENT, server, named, WEB], [])
    outcome = decide(inventory, "", Request(CLIENT, CLIENT.addresses[0], ip_address("10.96.0.1"), 80), 0.5)
    assert isinstance(outcome, Route) and outcome.protocol == "TCP"
    for address, expected in (("10.0.0.2", ("HBONE", "10.0.0.2", 15008)), ("192.0.2.7", ("TCP", "192.0.2.7", 5432))):
        found = outcome.resolved(ip_address(address))
        assert isinstance(found, Route) and target(in_mesh(inventory, found)) == expected


def test_multiple_address_workload_and_service_ip_families() -> None:
    dual = replace(WEB, vips=(NetworkAddress("", ip_address("10.96.0.1")), NetworkAddress("", ip_address("fd96::1"))))
    assert target(route("fd96::1", 80, SERVER, dual))[1] == "fd00::2"
    only4 = replace(dual, ip_families=IPFamilies.IPV4_ONLY)
    assert target(route("fd96::1", 80, SERVER, only4))[1] == "10.0.0.2"
    single = replace(SERVER, addresses=(ip_address("10.0.0.2"),))
    assert target(route("fd96::1", 80, single, dual))[1] == "10.0.0.2"
    only6 = replace(dual, ip_families=IPFamilies.IPV6_ONLY)
    assert target(route("10.96.0.1", 80, SERVER, only6))[1] == "fd00::2"
    assert "no address of the family" in refusal(route("10.96.0.1", 80, single, only6))


def test_a_service_of_another_namespace_may_be_hidden() -> None:
    hidden = replace(WEB, namespace="other", namespace_only=True)
    assert target(route("10.96.0.1", 80, hidden)) == ("TCP", "10.96.0.1", 80)
