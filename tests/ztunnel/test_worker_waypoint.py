"""Waypoints over real sockets and real TLS: who is dialled, what is asked for, and that nobody is reached past one."""

import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.policy import Action, Match, Policy, Scope
from mesh.workload import (
    ApplicationTunnel,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    Service,
    TunnelProtocol,
    Workload,
)
from tests.ztunnel.world import CLIENT, SERVER, VIP, World, assert_reset, world
from ztunnel.channel import Opened, UpdateInventory, UpdatePolicies
from ztunnel.proxy_header import proxy_header

pytestmark = pytest.mark.kernel

BEHIND_VIP, WAYPOINT_VIP = "10.199.0.2", "10.199.0.3"
BACKEND = "10.198.0.77"
"""Nobody is there: what is asked for is seen only by the waypoint."""
BY_NAME = GatewayAddress(NamespacedHostname("shop", "wp.shop.svc.cluster.local"), 15008)


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world("waypoint") as made:
        made.start()
        yield made


@pytest.fixture
def mesh(shared: World) -> Iterator[World]:
    shared.settle()
    yield shared
    shared.reset_sockets()


def behind(mesh: World, gateway: GatewayAddress, tunnel: ApplicationTunnel | None = None) -> Service:
    """A service behind a waypoint, which is the server's pod; and a workload behind it too."""
    web = Service(
        "l7", "shop", "l7.shop.svc.cluster.local", (NetworkAddress("", ip_address(BEHIND_VIP)),), {80: 8080}, waypoint=gateway
    )
    waypoint = Service(
        "wp", "shop", "wp.shop.svc.cluster.local", (NetworkAddress("", ip_address(WAYPOINT_VIP)),), {15008: 15008}
    )
    services = mesh.server.workload.services | {waypoint.key: {}}
    pod = replace(mesh.server.workload, services=services, application_tunnel=tunnel)
    backend = Workload(
        "k//Pod/shop/backend", "backend", "shop", (ip_address(BACKEND),), services={web.key: {}}, waypoint=gateway
    )
    for one in (mesh.client, mesh.server):
        one.worker.tell(UpdateInventory([web, waypoint, pod, backend], []))
    return web


def talk(mesh: World, address: str, port: int) -> None:
    with mesh.server.listen(port) as listener, mesh.client.connect(address, port) as client:
        server, _ = listener.accept()
        with server:
            assert server.getpeername()[0] == mesh.client.address
            client.sendall(b"question")
            assert server.recv(100) == b"question"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"


GATEWAYS = [BY_NAME, *(GatewayAddress(NetworkAddress("", ip_address(one)), 15008) for one in (WAYPOINT_VIP, "10.198.0.2"))]


@pytest.mark.parametrize("gateway", GATEWAYS, ids=["hostname", "vip", "pod"])
def test_service_waypoint(mesh: World, gateway: GatewayAddress) -> None:
    web = behind(mesh, gateway)
    talk(mesh, BEHIND_VIP, 80)
    mine, theirs = mesh.client.worker.closed(), mesh.server.worker.closed()
    assert mine.hbone_destination == theirs.hbone_destination == f"{BEHIND_VIP}:80"
    assert mine.destination == (ip_address(mesh.server.address), 15008)
    assert mine.destination_identity == theirs.destination_identity == SERVER
    assert mine.destination_workload == mesh.server.workload.uid and mine.destination_service == web.key
    assert not mine.error and not theirs.error


@pytest.mark.parametrize("gateway", GATEWAYS, ids=["hostname", "vip", "pod"])
def test_workload_waypoint(mesh: World, gateway: GatewayAddress) -> None:
    behind(mesh, gateway)
    talk(mesh, BACKEND, 9000)
    mine = mesh.client.worker.closed()
    assert mine.hbone_destination == f"{BACKEND}:9000" and mine.destination_workload == mesh.server.workload.uid
    assert mine.destination_service == "" and mine.destination_identity == SERVER


def test_service_waypoint_workload_hostname(mesh: World) -> None:
    """A waypoint that is a workload with a hostname, and no service: the client dials it; it knows itself by its address."""
    named = GatewayAddress(NamespacedHostname("shop", "wp.example.com"), 15008)
    behind(mesh, named)
    mesh.client.worker.tell(UpdateInventory([replace(mesh.server.workload, hostname="wp.example.com")], []))
    mesh.server.worker.tell(UpdateInventory([replace(mesh.server.workload, hostname="wp.example.com")], []))
    talk(mesh, BEHIND_VIP, 80)
    assert mesh.client.worker.closed().destination_workload == mesh.server.workload.uid


def test_a_waypoint_that_is_gone_is_not_passed(mesh: World) -> None:
    behind(mesh, BY_NAME)
    mesh.client.worker.tell(UpdateInventory([], ["shop/wp.shop.svc.cluster.local"]))
    with mesh.server.listen(80) as listener:
        listener.settimeout(0)
        for address, wanted_by in ((BEHIND_VIP, "service shop/l7.shop.svc.cluster.local"), (BACKEND, "workload backend.shop")):
            assert_reset(lambda address=address: mesh.client.connect(address, 80))  # type: ignore[misc]
            error = mesh.client.worker.closed().error
            assert error.startswith(f"unknown waypoint: shop/wp.shop.svc.cluster.local, wanted by {wanted_by}, is not known")
        with pytest.raises((BlockingIOError, socket.timeout)):
            listener.accept()


def test_a_proxy_that_is_no_waypoint_of_the_target_rejects_it(mesh: World) -> None:
    """The client believes that the server's pod is the waypoint; the server's own proxy knows better."""
    behind(mesh, BY_NAME)
    mesh.server.worker.tell(UpdateInventory([mesh.server.workload], []))
    assert_reset(lambda: mesh.client.connect(BEHIND_VIP, 80))
    assert mesh.client.worker.closed().error == "http status: 400 Bad Request"
    assert mesh.server.worker.early(f"ip mismatch: {mesh.server.address} != {BEHIND_VIP}").flag == "CONNECT"


@pytest.mark.parametrize(("address", "port"), [(BEHIND_VIP, 80), (BACKEND, 9000)], ids=["service", "workload"])
@pytest.mark.parametrize("own_port", [15088, 0])
def test_sandwich_waypoint_proxy_protocol(mesh: World, address: str, port: int, own_port: int) -> None:
    """The waypoint's application hears at its loopback address, and is told who called and whom."""
    behind(mesh, BY_NAME, ApplicationTunnel(True, own_port))
    with mesh.server.listen(own_port or port, address="127.0.0.1") as listener:
        client = mesh.client.connect(address, port)
        client.sendall(b"question")
        server, (peer, _) = listener.accept()
        said = b""
        while not said.endswith(b"question"):
            said += server.recv(1000)
        source = (ip_address(mesh.client.address), mesh.server.worker.wait_for(Opened).record.source[1])
        assert said == proxy_header(source, (ip_address(address), port), CLIENT) + b"question"
        assert peer == "127.0.0.1"
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"
        server.close()
        client.close()
    theirs = mesh.server.worker.closed()
    assert theirs.hbone_destination == f"{address}:{port}" and theirs.destination[1] == 15008
    assert (theirs.bytes_received, theirs.bytes_sent) == (8, 6)  # the header is the proxy's own


def test_sandwich_waypoint_plain_on_a_port_of_its_own(mesh: World) -> None:
    behind(mesh, BY_NAME, ApplicationTunnel(False, 15088))
    with mesh.server.listen(15088) as listener, mesh.client.connect(BEHIND_VIP, 80) as client:
        client.sendall(b"question")
        server, (peer, _) = listener.accept()
        with server:
            assert server.recv(100) == b"question" and peer == mesh.client.address


def test_policy_sees_the_port_that_the_application_hears_at(mesh: World) -> None:
    behind(mesh, BY_NAME, ApplicationTunnel(True, 15088))
    rules = (((Match(destination_ports=(15088,)),),),)
    mesh.server.worker.tell(UpdatePolicies([Policy("shop", "deny", Scope.NAMESPACE, Action.DENY, rules)], []))
    try:
        assert_reset(lambda: mesh.client.connect(BEHIND_VIP, 80))
        assert mesh.server.worker.closed().flag == "DENY"
    finally:
        mesh.server.worker.tell(UpdatePolicies([], ["shop/deny"]))


def test_service_loadbalancing() -> None:
    """Connections are shared among endpoints by capacity, and one that is not ready gets none."""
    with world("shares", "second", "third") as mesh:
        pods = {name: mesh.pods[name] for name in ("server", "second", "third")}
        key = mesh.service.key
        shared = [replace(pod.workload, services={key: {80: 8080}}) for pod in pods.values()]
        shared[0] = replace(shared[0], capacity=3)
        shared[2] = replace(shared[2], healthy=False)
        plain = [replace(one, protocol=TunnelProtocol.NONE) for one in shared]
        mesh.client.start([mesh.client.workload, mesh.service, *plain], [mesh.authority.certificate_for(CLIENT)])
        for pod in pods.values():
            pod.start([pod.workload], [])
        listeners = {name: pod.listen(8080) for name, pod in pods.items()}
        for _ in range(100):
            mesh.client.connect(VIP, 80).close()
        heard = [mesh.client.worker.wait_for(Opened) for _ in range(100)]
        uids = Counter(one.record.destination_workload.rpartition("/")[2] for one in heard)
        assert set(uids) == {"server", "second"} and 50 <= uids["server"] <= 95, uids  # 75 expected; once in ten million runs
        for listener in listeners.values():
            listener.close()


def test_without_original_sources_applications_see_the_proxy() -> None:
    with world("orig") as mesh:
        mesh.server.configuration = {"keep_source_address": False, "enhanced_baggage": False}
        mesh.start()
        with mesh.server.listen(8080) as listener, mesh.client.connect(VIP, 80):
            server, (peer, _) = listener.accept()
            server.close()
            assert peer == mesh.server.address
