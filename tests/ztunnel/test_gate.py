"""What inbound requests may name: the recorded statuses of Istio's ztunnel."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.inventory import Inventory
from mesh.workload import ApplicationTunnel, GatewayAddress, NamespacedHostname, NetworkAddress, Service, Workload
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


def test_a_hostname_whose_service_is_not_served_here_is_rejected() -> None:
    outcome = ask("web.amb.svc.cluster.local:80", replace(SERVER, services={}))
    assert isinstance(outcome, Rejected) and outcome.status == 503


def test_ip_mismatch_says_both() -> None:
    assert ask("9.9.9.9:80") == Rejected(400, "ip mismatch: 10.244.0.8 != 9.9.9.9")


def test_a_waypoint_may_be_named_for_what_it_serves() -> None:
    key = "amb/wp.amb.svc.cluster.local"
    waypoint = replace(SERVER, services={key: {}})
    gateway = Service("wp", "amb", "wp.amb.svc.cluster.local")
    by_name = GatewayAddress(NamespacedHostname("amb", "wp.amb.svc.cluster.local"), 15008)
    behind = replace(OTHER, waypoint=by_name)
    assert isinstance(ask("10.244.1.4:8080", waypoint, gateway, behind), Admitted)
    by_address = replace(OTHER, waypoint=GatewayAddress(NetworkAddress("", LOCAL), 15008))
    assert isinstance(ask("10.244.1.4:8080", waypoint, by_address), Admitted)
    assert isinstance(ask("10.244.1.4:8080", replace(SERVER, services={}), gateway, behind), Rejected)


def test_application_tunnel_moves_the_port() -> None:
    plain = replace(SERVER, application_tunnel=ApplicationTunnel(False, 15088))
    outcome = ask("10.244.1.4:8080", plain)
    assert isinstance(outcome, Admitted) and outcome.port == 15088
    assert isinstance(ask("10.244.0.8:80", replace(SERVER, application_tunnel=ApplicationTunnel(True, 15088))), Rejected)


def test_destination_service_is_the_one_that_was_named() -> None:
    api = Service("api", "amb", "api.amb.svc.cluster.local", ports={80: 8080})
    both = replace(SERVER, services={KEY: {80: 8080}, "amb/api.amb.svc.cluster.local": {80: 8080}})
    inventory = Inventory()
    inventory.apply([both, WEB, api], [])
    assert service_of(inventory, both, 8080) == WEB
    assert service_of(inventory, both, 8080, "api.amb.svc.cluster.local") == api
    assert service_of(inventory, both, 1) is None
