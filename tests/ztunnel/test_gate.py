"""What inbound requests may name: the recorded statuses of Istio's ztunnel."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.inventory import Inventory
from mesh.workload import (
    ApplicationTunnel,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    Service,
    WeightedWaypoint,
    Workload,
)
from ztunnel.gate import Admitted, Rejected, admit, service_of
from ztunnel.hbone import ConnectRequest, parse_authority

pytestmark = pytest.mark.unit

KEY = "amb/web.amb.svc.cluster.local"
LOCAL = ip_address("10.244.0.8")
WEB = Service(
    "web", "amb", "web.amb.svc.cluster.local", (NetworkAddress("", ip_address("10.96.0.1")),), {80: 8080, 443: 0, 15: 15008}
)
SERVER = Workload("s", "s", "amb", (LOCAL,), services={KEY: {80: 8080}})
OTHER = Workload("o", "o", "amb", (ip_address("10.244.1.4"),))


def ask(authority: str, workload: Workload = SERVER, *known: Workload | Service, host: str = "") -> Admitted | Rejected:
    inventory = Inventory()
    inventory.apply([workload, OTHER, WEB, *known], [])
    return admit(inventory, "", workload, LOCAL, ConnectRequest(parse_authority(authority), host))


@pytest.mark.parametrize(
    ("authority", "port"), [("10.244.0.8:8080", 8080), ("10.244.0.8:9999", 9999), ("web.amb.svc.cluster.local:80", 8080)]
)
def test_admitted(authority: str, port: int) -> None:
    outcome = ask(authority)
    assert isinstance(outcome, Admitted) and outcome.port == port


@pytest.mark.parametrize(
    ("authority", "status"),
    [
        ("10.244.0.8:15001", 503),
        ("10.244.0.8:15006", 503),
        ("10.244.0.8:15008", 503),
        ("web.amb.svc.cluster.local:12345", 503),
        ("web.amb.svc.cluster.local:443", 503),
        ("web.amb.svc.cluster.local:15", 503),
        ("WEB.amb.svc.cluster.local:80", 503),
        ("nope.amb.svc.cluster.local:80", 503),
        ("10.244.1.4:8080", 400),
        ("9.9.9.9:80", 400),
        ("127.0.0.1:8080", 400),
        ("10.96.0.1:80", 400),
        ("[fd00::1]:80", 400),
    ],
)
def test_rejected(authority: str, status: int) -> None:
    outcome = ask(authority)
    assert isinstance(outcome, Rejected) and outcome.status == status


def test_a_hostname_is_for_who_serves_it_or_stands_in_front_of_it() -> None:
    elsewhere = replace(SERVER, services={})
    outcome = ask("web.amb.svc.cluster.local:80", elsewhere)
    assert outcome == Rejected(503, "port 80 of web.amb.svc.cluster.local has no target here")
    waypoint = GatewayAddress(NetworkAddress("", LOCAL), 15008)
    for local, web in (
        (elsewhere, replace(WEB, waypoint=waypoint)),
        (replace(elsewhere, application_tunnel=ApplicationTunnel(False, 0)), WEB),
    ):
        outcome = ask("web.amb.svc.cluster.local:80", local, web)
        assert isinstance(outcome, Admitted) and outcome.port == 8080
        assert isinstance(ask("web.amb.svc.cluster.local:443", local, web), Rejected), "a named port has no number here"


def test_who_serves_a_service_is_reached_by_its_name_whoever_sees_it() -> None:
    """One that is shown to other namespaces only: its own pods ask for it in vain, and serve it all the same."""
    hidden = replace(WEB, shown_to=("elsewhere",))
    outcome = ask("web.amb.svc.cluster.local:80", SERVER, hidden)
    assert isinstance(outcome, Admitted) and (outcome.port, outcome.service) == (8080, hidden)
    assert ask("web.amb.svc.cluster.local:80", replace(SERVER, services={}), hidden) == Rejected(
        503, "unknown hostname web.amb.svc.cluster.local"
    )


@pytest.mark.parametrize("listed", [8080, 0])
def test_svc_hostname_port_and_named_port(listed: int) -> None:
    """What the workload itself says of a port counts, and alone where the service has only a name for it."""
    server = replace(SERVER, services={KEY: {80: 9090}})
    outcome = ask("web.amb.svc.cluster.local:80", server, replace(WEB, ports={80: listed}))
    assert isinstance(outcome, Admitted) and (outcome.port, outcome.service) == (9090, replace(WEB, ports={80: listed}))


def test_nobody_reaches_a_nodes_own_ports_through_a_pod_that_shares_its_address() -> None:
    outcome = ask("10.244.0.8:10250", replace(SERVER, network_mode=NetworkMode.HOST_NETWORK))
    assert outcome == Rejected(503, "10.244.0.8 is a node's address: what listens there is the node's, not s's")


def test_hbone_ip_mismatch_says_both() -> None:
    assert ask("9.9.9.9:80") == Rejected(400, "ip mismatch: 10.244.0.8 != 9.9.9.9")


POD, VIP = "10.0.0.3", "10.10.0.2"
"""The waypoint's."""
SERVER_POD, SERVER_VIP, CLIENT_POD = "10.0.0.2", "10.10.0.1", "10.0.0.1"


def inbound(
    attached: str, waypoint: str, tunnel: ApplicationTunnel | None, dialled: str, authority: str
) -> Admitted | Rejected:
    """The world of Istio's test of the same name: a server, a client, a waypoint by its pod's or its service's address."""
    gateway = GatewayAddress(NetworkAddress("", ip_address(waypoint)), 15008) if waypoint else None

    def service(name: str, vip: str, gateway: GatewayAddress | None) -> Service:
        hostname = f"{name}.default.svc.cluster.local"
        return Service(name, "default", hostname, (NetworkAddress("", ip_address(vip)),), {80: 8080}, waypoint=gateway)

    def pod(name: str, address: str, gateway: GatewayAddress | None, tunnel: ApplicationTunnel | None) -> Workload:
        services: dict[str, dict[int, int]] = {f"default/{name}.default.svc.cluster.local": {}}
        return Workload(
            f"cluster1//v1/Pod/default/{name}",
            name,
            "default",
            (ip_address(address),),
            waypoint=gateway,
            services=services,
            application_tunnel=tunnel,
        )

    pods = {
        SERVER_POD: pod("server", SERVER_POD, gateway if attached == "workload" else None, None),
        CLIENT_POD: pod("client", CLIENT_POD, None, None),
        POD: pod("waypoint", POD, None, tunnel),
    }
    inventory = Inventory()
    inventory.apply([*pods.values(), service("waypoint", VIP, None)], [])
    inventory.apply([service("server", SERVER_VIP, gateway if attached == "service" else None)], [])
    asked = ConnectRequest(parse_authority(authority), "")
    return admit(inventory, "", pods[dialled], ip_address(dialled), asked)


PROXY = ApplicationTunnel(True, 15088)
Tunnel = ApplicationTunnel | None


@pytest.mark.parametrize(
    ("attached", "waypoint", "tunnel", "dialled", "authority", "port", "announced"),
    [
        ("", "", None, SERVER_POD, f"{SERVER_POD}:8080", 8080, None),
        ("", "", None, SERVER_POD, "server.default.svc.cluster.local:80", 8080, None),
        ("workload", POD, None, POD, f"{SERVER_POD}:8080", 8080, None),
        ("workload", VIP, None, POD, f"{SERVER_POD}:8080", 8080, None),
        ("workload", VIP, PROXY, POD, f"{SERVER_POD}:8080", 15088, (SERVER_POD, 8080)),
        ("service", POD, None, POD, f"{SERVER_VIP}:8080", 8080, None),
        ("service", VIP, None, POD, f"{SERVER_VIP}:8080", 8080, None),
        ("service", VIP, PROXY, POD, f"{SERVER_VIP}:8080", 15088, (SERVER_VIP, 8080)),
        ("service", VIP, PROXY, POD, "server.default.svc.cluster.local:80", 15088, (SERVER_VIP, 80)),
        ("service", VIP, ApplicationTunnel(False, 15088), POD, f"{SERVER_VIP}:8080", 15088, None),
        ("service", VIP, ApplicationTunnel(True, 0), POD, f"{SERVER_VIP}:8080", 8080, (SERVER_VIP, 8080)),
        ("", "", PROXY, POD, f"{SERVER_POD}:8080", 15088, (SERVER_POD, 8080)),
    ],
)
def test_build_inbound_request(
    attached: str,
    waypoint: str,
    tunnel: Tunnel,
    dialled: str,
    authority: str,
    port: int,
    announced: tuple[str, int] | None,
) -> None:
    outcome = inbound(attached, waypoint, tunnel, dialled, authority)
    assert isinstance(outcome, Admitted), outcome
    assert outcome.port == port
    assert outcome.announced == (announced and (ip_address(announced[0]), announced[1]))


@pytest.mark.parametrize(
    ("attached", "waypoint", "dialled", "authority"),
    [
        ("", "", SERVER_POD, f"{CLIENT_POD}:8080"),
        ("", "", POD, f"{CLIENT_POD}:8080"),
        ("service", POD, POD, f"{SERVER_POD}:8080"),
        ("workload", POD, POD, f"{SERVER_VIP}:8080"),
        ("workload", VIP, CLIENT_POD, f"{SERVER_POD}:8080"),
    ],
    ids=[
        "ip mismatch",
        "waypoint without attachment",
        "workload, wrong attachment",
        "service, wrong attachment",
        "not behind the waypoint's service",
    ],
)
def test_find_inbound_upstream_rejects(attached: str, waypoint: str, dialled: str, authority: str) -> None:
    outcome = inbound(attached, waypoint, None, dialled, authority)
    assert isinstance(outcome, Rejected) and outcome.status == 400


def test_a_waypoint_may_be_a_workload_with_a_hostname() -> None:
    named = replace(SERVER, services={}, hostname="wp.example.com")
    behind = replace(OTHER, waypoint=GatewayAddress(NamespacedHostname("amb", "wp.example.com"), 15008))
    assert isinstance(ask("10.244.1.4:8080", named, behind), Admitted)
    assert isinstance(ask("10.244.1.4:8080", replace(named, hostname=""), behind), Rejected)


def test_a_waypoint_that_shares_a_services_traffic_hears_what_is_for_the_service() -> None:
    first, second = (GatewayAddress(NetworkAddress("", ip_address(one)), 15008) for one in ("10.244.9.9", str(LOCAL)))
    shares = (WeightedWaypoint(first, 70), WeightedWaypoint(second, 30))
    shared = replace(WEB, waypoint=first, weighted_waypoints=shares)
    waypoint = replace(SERVER, services={})
    for authority, port in (("10.96.0.1:80", 80), ("web.amb.svc.cluster.local:80", 8080)):
        outcome = ask(authority, waypoint, shared)
        assert isinstance(outcome, Admitted) and outcome.port == port
        assert isinstance(ask(authority, waypoint, replace(shared, weighted_waypoints=shares[:1])), Rejected), "another's share"


@pytest.mark.parametrize("authority", ["10.244.0.8:15008", "10.244.0.8:80"])
def test_no_tunnel_leads_to_a_port_of_the_proxy(authority: str) -> None:
    reserved = 15006 if authority.endswith(":80") else 15088
    outcome = ask(authority, replace(SERVER, application_tunnel=ApplicationTunnel(True, reserved)))
    assert isinstance(outcome, Rejected) and outcome.status == 503 and "self call" in outcome.reason


def test_a_hostname_is_announced_by_the_services_best_address() -> None:
    proxied = replace(SERVER, application_tunnel=PROXY)
    vips = (NetworkAddress("n2", ip_address("10.9.9.9")), NetworkAddress("", ip_address("fd96::1")))
    outcome = ask("web.amb.svc.cluster.local:80", proxied, replace(WEB, vips=vips))
    assert isinstance(outcome, Admitted) and outcome.announced == (ip_address("fd96::1"), 80)
    outcome = ask(
        "web.amb.svc.cluster.local:80", proxied, replace(WEB, vips=(*vips, NetworkAddress("", ip_address("10.96.0.7"))))
    )
    assert isinstance(outcome, Admitted) and outcome.announced == (ip_address("10.96.0.7"), 80)
    ranges = (NetworkAddress("", ip_address("10.96.0.0"), 16),)
    outcome = ask("web.amb.svc.cluster.local:80", proxied, replace(WEB, vips=ranges))
    assert isinstance(outcome, Rejected) and outcome.status == 503 and "PROXY header" in outcome.reason


def test_destination_service_is_the_one_that_was_named() -> None:
    api = Service("api", "amb", "api.amb.svc.cluster.local", ports={80: 8080})
    both = replace(SERVER, services={KEY: {80: 8080}, "amb/api.amb.svc.cluster.local": {80: 8080}})
    inventory = Inventory()
    inventory.apply([both, WEB, api], [])
    assert service_of(inventory, both, 8080) == WEB
    assert service_of(inventory, both, 8080, "api.amb.svc.cluster.local") == api
    assert service_of(inventory, both, 1) is None


def test_destination_service_of_an_address_is_the_one_that_was_named_else_the_first_that_leads_to_the_port() -> None:
    api = Service("api", "amb", "api.amb.svc.cluster.local", ports={80: 8081})
    both = replace(SERVER, services={"amb/gone.amb.svc.cluster.local": {80: 8080}, KEY: {}, api.key: {80: 9090}})
    for authority, host, service in (
        ("10.244.0.8:8080", "", WEB),
        ("10.244.0.8:8080", api.hostname, api),
        ("10.244.0.8:8080", "gone.amb.svc.cluster.local", WEB),
        ("10.244.0.8:9090", "", api),
        ("10.244.0.8:8081", "", api),
        ("10.244.0.8:81", "", None),
    ):
        outcome = ask(authority, both, api, host=host)
        assert isinstance(outcome, Admitted) and outcome.service == service, (authority, host)
