"""Authorities as Istio's ztunnel wrote them, recorded in one run."""

from ipaddress import ip_address

import pytest

from mesh.inventory import Inventory
from mesh.workload import GatewayAddress, NetworkAddress, Service, TunnelProtocol, Workload
from ztunnel.route import Request, Route, decide

pytestmark = pytest.mark.unit


def vip(text: str) -> tuple[NetworkAddress, ...]:
    return (NetworkAddress("", ip_address(text)),)


WAYPOINT = GatewayAddress(NetworkAddress("", ip_address("10.77.0.30")), 15008)
FAR_GATEWAY = GatewayAddress(NetworkAddress("net2", ip_address("10.77.0.40")), 15008)
NAMES = ("spiffe://cluster.local/ns/fz/sa/c",)
HBONE = TunnelProtocol.HBONE
APP = Workload("app", "app", "fz", (ip_address("10.77.0.2"),), protocol=HBONE)
MESH: list[Workload | Service] = [
    APP,
    Workload("pod", "pod", "fz", (ip_address("10.77.0.12"),), protocol=HBONE, services={"fz/b.fz.svc.cluster.local": {}}),
    Workload("behind", "behind", "fz", (ip_address("10.88.2.2"),), protocol=HBONE, waypoint=WAYPOINT),
    Workload("wp", "wp", "fz", (ip_address("10.77.0.30"),)),
    Workload("g", "g", "fz", (ip_address("10.77.0.40"),), network="net2"),
    Workload("far", "far", "fz", network="net2", network_gateway=FAR_GATEWAY, services={"fz/c.fz.svc.cluster.local": {}}),
    Service("a", "fz", "a.fz.svc.cluster.local", vip("10.88.1.1"), {80: 8080}, waypoint=WAYPOINT),
    Service("b", "fz", "b.fz.svc.cluster.local", vip("10.88.1.2"), {80: 8081}),
    Service("c", "fz", "c.fz.svc.cluster.local", vip("10.88.1.3"), {80: 8080}, NAMES),
]


@pytest.mark.parametrize(
    ("destination", "port", "dialled", "authority"),
    [
        ("10.88.1.1", 80, "10.77.0.30:15008", "10.88.1.1:80"),
        ("10.88.1.2", 80, "10.77.0.12:15008", "10.77.0.12:8081"),
        ("10.77.0.12", 8085, "10.77.0.12:15008", "10.77.0.12:8085"),
        ("10.88.2.2", 8080, "10.77.0.30:15008", "10.88.2.2:8080"),
        ("10.88.1.3", 80, "10.77.0.40:15008", "c.fz.svc.cluster.local:80"),
    ],
    ids=["service with waypoint", "service without", "pod", "workload with waypoint", "other network"],
)
def test_authorities(destination: str, port: int, dialled: str, authority: str) -> None:
    inventory = Inventory()
    inventory.apply(MESH, [])
    route = decide(inventory, "", Request(APP, APP.addresses[0], ip_address(destination), port), 0.5)
    assert isinstance(route, Route), route
    assert (f"{route.address}:{route.port}", str(route.authority)) == (dialled, authority)
