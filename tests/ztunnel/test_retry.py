"""An endpoint that does not take a connection: another one does, with every byte; a tunnel whose peer is somebody else now."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.identity import Identity
from mesh.workload import NetworkAddress, TunnelProtocol, Workload
from tests.ztunnel.world import CLIENT, SERVER, VIP, World, run, world
from ztunnel.channel import Closed, Opened, RemovePod, UpdateInventory, WorkerStatus
from ztunnel.stream import KEPT_BYTES
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

OTHER = Identity("cluster.local", "shop", "other")
FAILURES = 4
LOST = "10.199.0.9"
"""A service whose endpoints are not there."""
ABSENT = (200, 201)
"""The last bytes of their addresses."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[World]:
    with world("retry", "other") as made:
        key = made.service.key
        for name in ("server", "other"):
            pod = made.pods[name]
            pod.workload = replace(pod.workload, services={key: {80: 8080}})
        made.client.configuration = {"tuning": Tuning(outlier_failures=FAILURES, connect_timeout_s=60.0)}
        inventory = [*made.inventory, made.pods["other"].workload]
        made.client.start(inventory, [made.authority.certificate_for(CLIENT)])
        made.server.start(inventory, [made.authority.certificate_for(SERVER)])
        made.pods["other"].start(inventory, [made.authority.certificate_for(OTHER)])
        for number in ABSENT:  # else who dials them hears after three seconds that nobody has such an address
            nobody = ("lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
            run("ip", "-n", made.client.netns, "neigh", "replace", f"10.198.0.{number}", *nobody)
        yield made


@pytest.fixture
def app(mesh: World) -> Iterator[socket.socket]:
    """Listens in pod other; nobody does in pod server."""
    mesh.client.worker.settle()
    with mesh.pods["other"].listen(8080) as listener:
        listener.settimeout(40)
        yield listener
    mesh.reset_sockets()
    forgive(mesh)


def forgive(mesh: World) -> None:
    """Let the endpoint that failed take connections for a while, until all of them are over."""
    mesh.client.worker.settle()  # none that opened before is taken for one of these
    with mesh.server.listen(8080), mesh.pods["other"].listen(8080):
        for _ in range(20):  # one of them that it takes suffices
            mesh.client.connect(VIP, 80)
            if mesh.client.worker.wait_for(Opened).record.destination_workload == mesh.server.workload.uid:
                break
        mesh.client.reset_sockets()
        for pod in mesh.pods.values():
            pod.worker.settle()


def retries(mesh: World) -> int:
    """How many there were by now."""
    worker = mesh.client.worker
    worker.catch_up()
    worker.heard.clear()  # what it said before
    return worker.wait_for(WorkerStatus).gauges["endpoint_retries"]


def serve(app: socket.socket, expected: bytes) -> None:
    server, _ = app.accept()
    server.settimeout(40)
    got = b""
    while len(got) < len(expected):
        piece = server.recv(65536)
        assert piece, f"ended after {len(got)} bytes"
        got += piece
    assert got == expected
    server.sendall(b"served")
    server.close()


@pytest.mark.parametrize("early", [b"", b"x", b"y" * KEPT_BYTES], ids=["nothing", "a byte", "all that is kept"])
def test_every_connection_finds_the_endpoint_that_is_there(mesh: World, app: socket.socket, early: bytes) -> None:
    before = retries(mesh)
    for _ in range(FAILURES - 1):  # half of them meet the other one first
        client = mesh.client.connect(VIP, 80)
        if early:
            client.sendall(early)
        serve(app, early)
        assert client.recv(100) == b"served"
        client.close()
        record = mesh.client.worker.closed()
        assert record.destination_workload == mesh.pods["other"].workload.uid and record.flag == "-"
        assert (record.bytes_sent, record.bytes_received) == (len(early), 6)
    assert retries(mesh) - before <= FAILURES - 1


def test_a_client_that_ended_its_side_already_is_served_too(mesh: World, app: socket.socket) -> None:
    for _ in range(FAILURES - 1):
        client = mesh.client.connect(VIP, 80)
        client.sendall(b"all of it")
        client.shutdown(socket.SHUT_WR)
        server, _ = app.accept()
        server.settimeout(40)
        got = b""
        while piece := server.recv(100):
            got += piece
        assert got == b"all of it"
        server.sendall(b"served")
        server.close()
        assert client.recv(100) == b"served" and client.recv(1) == b""
        client.close()


def test_an_endpoint_that_keeps_failing_is_set_aside(mesh: World, app: socket.socket) -> None:
    worker, before = mesh.client.worker, retries(mesh)
    while not any(isinstance(one, WorkerStatus) and one.gauges["endpoints_aside"] for one in worker.heard):
        client = mesh.client.connect(VIP, 80)
        client.sendall(b"a")
        serve(app, b"a")
        assert client.recv(100) == b"served"  # else its end is a reset, of which a tunnel does not take any number
        client.close()
        worker.listen(0)
    tried = retries(mesh)
    assert tried - before <= FAILURES
    for _ in range(10):
        mesh.client.connect(VIP, 80).close()
    assert retries(mesh) == tried, "nobody is sent there now"


def test_when_nobody_takes_it_the_application_hears_so(mesh: World) -> None:
    mesh.client.worker.settle()
    before = retries(mesh)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):  # in whichever call it comes: perhaps before connect() returns
        client = mesh.client.connect(VIP, 80)
        client.sendall(b"anybody?")
        client.recv(1)
    record = mesh.client.worker.closed()
    assert record.flag == "CONNECT" and record.error == "http status: 503 Service Unavailable (at attempt 2)"
    assert retries(mesh) == before + 1
    forgive(mesh)


def test_a_pod_that_goes_asks_no_other_endpoint(mesh: World) -> None:
    worker = mesh.client.worker
    worker.settle()
    lost = replace(
        mesh.service, name="lost", hostname="lost.shop.svc.cluster.local", vips=(NetworkAddress("", ip_address(LOST)),)
    )
    nobody = [
        Workload(f"Kubernetes//Pod/shop/nobody{number}", f"nobody{number}", "shop", (ip_address(f"10.198.0.{number}"),),
                 protocol=TunnelProtocol.HBONE, services={lost.key: {}}) for number in ABSENT
    ]  # fmt: skip
    worker.tell(UpdateInventory([lost, *nobody], []))
    tried = retries(mesh)
    client = mesh.client.connect(LOST, 80)
    worker.wait_for(WorkerStatus, lambda status: status.gauges["connecting"] == 1)
    worker.tell(RemovePod("client"))
    gauges = worker.wait_for(WorkerStatus, lambda status: not status.gauges["pods"]).gauges
    assert (gauges["connecting"], gauges["tunnels"], gauges["endpoint_retries"]) == (0, 0, tried)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    worker.tell(UpdateInventory([], [lost.key, *(one.uid for one in nobody)]))
    mesh.client.add_pod()


def _in_a_tunnel(mesh: World, app: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection through which a byte went."""
    app.settimeout(40)
    client = mesh.client.connect(mesh.server.address, 8080)
    client.sendall(b"a")
    server, _ = app.accept()
    assert server.recv(1) == b"a"
    return client, server


def test_a_tunnel_ends_at_once_when_its_peers_address_is_another_pods(mesh: World) -> None:
    mesh.client.worker.settle()
    with mesh.server.listen(8080) as app:
        client, server = _in_a_tunnel(mesh, app)
        stranger = Workload("Kubernetes//Pod/shop/new", "new", "shop", (ip_address(mesh.server.address),),
                            protocol=TunnelProtocol.HBONE, service_account="new")  # fmt: skip
        mesh.client.worker.tell(UpdateInventory([stranger], [mesh.server.workload.uid]))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        closed = mesh.client.worker.wait_for(Closed).record
        assert f"{mesh.server.address} belongs to shop/new now" in closed.error
        server.close()
        mesh.client.worker.tell(UpdateInventory([mesh.server.workload], [stranger.uid]))


@pytest.mark.parametrize(
    "differs", [{"uid": "Kubernetes//Pod/shop/new", "name": "new"}, {"node": "elsewhere"}], ids=["name", "node"]
)
def test_a_tunnel_ends_at_once_when_its_peers_address_is_another_pods_with_the_same_identity(
    mesh: World, differs: dict[str, str]
) -> None:
    mesh.client.worker.settle()
    with mesh.server.listen(8080) as app:
        client, server = _in_a_tunnel(mesh, app)
        own = mesh.server.workload
        mesh.client.worker.tell(UpdateInventory([replace(own, canonical_revision="v2")], []))
        client.sendall(b"b")
        assert server.recv(1) == b"b", "the same pod with another label"
        other = replace(own, **differs)
        mesh.client.worker.tell(UpdateInventory([other], [own.uid] if other.uid != own.uid else []))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert f"{mesh.server.address} belongs to shop/{other.name} now" in mesh.client.worker.wait_for(Closed).record.error
        server.close()
        mesh.client.worker.tell(UpdateInventory([own], [other.uid] if other.uid != own.uid else []))
