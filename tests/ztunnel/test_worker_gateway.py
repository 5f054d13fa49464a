"""A tunnel in a tunnel, over real sockets and real TLS: to another network through its gateway.

The gateway's own proxy ends the outer tunnel; behind it a program passes bytes on to the server's port 15008, as an
east-west gateway does, and understands none of them.
"""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.identity import Identity
from mesh.workload import ApplicationTunnel, GatewayAddress, NamespacedHostname, NetworkAddress, Service, Workload
from tests.ztunnel.revocation_lists import revocation_list
from tests.ztunnel.world import CLIENT, PROGRAM, SERVER, Authority, World, assert_reset, run, world
from ztunnel.baggage import Described
from ztunnel.channel import (
    CertificateFailed,
    ForgetCertificate,
    NeedCertificate,
    Opened,
    RemovePod,
    SetRevoked,
    UpdateInventory,
    WorkerStatus,
)
from ztunnel.crl_file import read_lists
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

MiB = 1 << 20
VIP, HOSTNAME = "10.199.0.5", "far.shop.svc.cluster.local"
PASS_PORT = 15443
GATEWAY = Identity("cluster.local", "shop", "gateway")


class Relay:
    """Takes connections in the gateway's pod, and passes their bytes on to the server's proxy."""

    def __init__(self, mesh: World) -> None:
        self._mesh = mesh
        self._listener = mesh.pods["gateway"].listen(PASS_PORT)
        self._listener.settimeout(None)
        self.passed: list[socket.socket] = []
        self.flows = threading.Event()
        """While it is not set, what comes from the gateway goes no further."""
        self.flows.set()
        self.answered = threading.Event()
        """Something went back to the gateway."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.passed.append(near)
            with suppress(OSError):  # closed meanwhile
                far = self._mesh.pods["gateway"].connect(self._mesh.server.address, 15008, mark=0x539)
                self.passed.append(far)
                for source, sink in ((near, far), (far, near)):
                    source.settimeout(None)
                    before = self.flows.wait if source is near else self.answered.set
                    threading.Thread(target=self._carry, args=(source, sink, before), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, before: Callable[[], object]) -> None:
        try:
            while data := source.recv(MiB):
                before()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)  # a close would not wake the thread that reads from it

    def close(self) -> None:
        self.flows.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self.passed:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def far_service(mesh: World, *names: str) -> Service:
    vips = (NetworkAddress("", ip_address(VIP)),)
    return Service("far", "shop", HOSTNAME, vips, {80: 8080}, names or (str(SERVER),))


def by_address(mesh: World) -> GatewayAddress:
    return GatewayAddress(NetworkAddress("remote", ip_address(mesh.pods["gateway"].address)), 15008)


def seen(mesh: World, through: GatewayAddress) -> Workload:
    """The server as the client's network knows it: somewhere behind a gateway."""
    uid = "remote/SplitHorizonWorkload/gateway/far"
    far = replace(mesh.server.workload, uid=uid, network="remote", addresses=(), network_gateway=through)
    return replace(far, services={f"shop/{HOSTNAME}": {80: 8080}})


@contextmanager
def networks(name: str, program: Sequence[str] = PROGRAM, tuning: Tuning | None = None) -> Iterator[World]:
    """The client on one network, the server on another one, behind a gateway.

    `program`: what the client's worker runs; `tuning`: how the server's is set.
    """
    with world(name, "gateway") as mesh:
        mesh.client.program = program
        mesh.server.configuration = {"tuning": tuning or Tuning()}
        gateway = mesh.pods["gateway"]
        mesh.server.network = gateway.network = "remote"
        service = far_service(mesh)
        own = replace(gateway.workload, network="remote", application_tunnel=ApplicationTunnel(False, PASS_PORT))
        server = replace(mesh.server.workload, network="remote", services={service.key: {80: 8080}})
        far = seen(mesh, by_address(mesh))
        mesh.client.start([mesh.client.workload, service, own, far], [mesh.authority.certificate_for(CLIENT)])
        gateway.start([own, service], [mesh.authority.certificate_for(GATEWAY)])
        papers = mesh.authority.certificate_for(SERVER)
        mesh.papers = papers  # type: ignore[attr-defined]
        mesh.server.start([server, service], [papers])
        yield mesh


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with networks("far") as mesh:
        yield mesh


@contextmanager
def relayed(shared: World) -> Iterator[Relay]:
    """A gateway for one test, which leaves nothing behind."""
    shared.settle()
    relay = Relay(shared)
    yield relay
    relay.close()
    shared.reset_sockets()


@pytest.fixture
def mesh(shared: World) -> Iterator[World]:
    with relayed(shared):
        yield shared


def connected(mesh: World, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = mesh.client.connect(VIP, 80)
    server, _ = listener.accept()
    server.settimeout(40)
    return client, server


def test_double_hbone(mesh: World) -> None:
    with mesh.server.listen(8080) as listener:
        client, server = connected(mesh, listener)
        client.sendall(b"question")
        assert server.recv(100) == b"question"
        server.sendall(b"the answer")
        assert client.recv(100) == b"the answer"
        mesh.client.worker.wait_for(Opened)
        assert mesh.client.worker.catch_up()[0].protocol == "DOUBLEHBONE"
        client.close()
        assert server.recv(1) == b""
        server.close()
    mine, between, theirs = (mesh.pods[one].worker.closed() for one in ("client", "gateway", "server"))
    gateway = mesh.pods["gateway"]
    assert (mine.protocol, mine.hop, mine.error) == ("DOUBLEHBONE", "gateway", "")
    assert mine.destination == (ip_address(gateway.address), 15008) and mine.destination_workload == gateway.workload.uid
    assert mine.hbone_destination == between.hbone_destination == theirs.hbone_destination == f"{HOSTNAME}:80"
    assert mine.destination_identity == SERVER  # proved by who answers, behind the gateway
    assert mine.destination_described == Described(SERVER, "server", "v1", "pod", "server", "Kubernetes")
    assert (mine.bytes_sent, mine.bytes_received) == (8, 10) == (theirs.bytes_received, theirs.bytes_sent)
    assert between.source_identity == theirs.source_identity == CLIENT
    assert between.source_workload == "" and theirs.source_workload == ""  # it lives on another network than theirs
    assert theirs.source_described == Described(CLIENT, "client", "v1", "pod", "client", "Kubernetes")
    assert theirs.source[0] == ip_address(gateway.address)
    assert mine.destination_service == theirs.destination_service == f"shop/{HOSTNAME}"


def test_the_outer_tunnel_is_shared_and_the_inner_ones_are_not(mesh: World) -> None:
    with mesh.server.listen(8080) as listener:
        pairs = [connected(mesh, listener) for _ in range(10)]
        for number, (client, server) in enumerate(pairs):
            client.sendall(b"%d" % number)
            assert server.recv(10) == b"%d" % number
        mesh.client.worker.wait_for(WorkerStatus, lambda said: said.gauges["tunnels"] == 11)
        mesh.pods["gateway"].worker.wait_for(WorkerStatus, lambda said: said.gauges["tunnels"] == 1)
        mesh.server.worker.wait_for(WorkerStatus, lambda said: said.gauges["tunnels"] == 10)
        for pod in (mesh.client, mesh.server):
            pod.worker.heard.clear()  # before the first of them was made there were none either
        for pair in pairs:
            for sock in pair:
                sock.close()
        mesh.client.worker.wait_for(WorkerStatus, lambda said: said.gauges["tunnels"] == 1)
        mesh.server.worker.wait_for(WorkerStatus, lambda said: said.gauges["tunnels"] == 0)


@pytest.mark.parametrize("upload", [True, False])
def test_bulk_and_half_close(mesh: World, upload: bool) -> None:
    with mesh.server.listen(8080) as listener:
        client, server = connected(mesh, listener)
        source, sink = (client, server) if upload else (server, client)
        block = bytes(range(256)) * 4096

        def send() -> None:
            for _ in range(32):
                source.sendall(block)
            source.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = b"".join(iter(lambda: sink.recv(MiB), b""))
        sender.join()
        assert received == block * 32
        sink.sendall(b"answered after the end")
        sink.close()
        assert source.recv(100) == b"answered after the end" and source.recv(100) == b""
    record = mesh.client.worker.closed()
    assert record.error == "" and (record.bytes_sent if upload else record.bytes_received) == 32 * MiB


def test_resets_reach_the_other_side(mesh: World) -> None:
    for by_client in (True, False):
        with mesh.server.listen(8080) as listener:
            client, server = connected(mesh, listener)
            client.sendall(b"x")
            server.recv(1)
            mine, theirs = (client, server) if by_client else (server, client)
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            mine.close()
            with pytest.raises(ConnectionResetError):
                theirs.recv(1)


def test_who_answers_must_be_the_service(mesh: World) -> None:
    """The gateway is who it should be, and lets the client speak with somebody else: no byte goes there."""
    mesh.client.worker.tell(UpdateInventory([far_service(mesh, "spiffe://cluster.local/ns/shop/sa/another")], []))
    assert_reset(lambda: mesh.client.connect(VIP, 80))
    record = mesh.client.worker.closed()
    assert record.flag == "IDENTITY_ERROR"
    assert "did not present the expected SAN (spiffe://cluster.local/ns/shop/sa/another)" in record.error
    mesh.client.worker.tell(UpdateInventory([far_service(mesh)], []))


def test_double_hbone_through_a_gateway_with_a_service(mesh: World) -> None:
    gateway = mesh.pods["gateway"]
    service = Service("gtw", "shop", "gtw.shop.svc.cluster.local", ports={15009: 15008})
    own = replace(gateway.workload, network="remote", services={service.key: {15009: 15008}})
    by_name = GatewayAddress(NamespacedHostname("shop", "gtw.shop.svc.cluster.local"), 15009)
    mesh.client.worker.tell(UpdateInventory([service, own, seen(mesh, by_name)], []))
    with mesh.server.listen(8080) as listener:
        for sock in connected(mesh, listener):
            sock.close()
    assert mesh.client.worker.closed().destination == (ip_address(gateway.address), 15008)
    mesh.client.worker.tell(UpdateInventory([seen(mesh, by_address(mesh))], [service.key]))


def test_double_hbone_to_a_waypoint_on_the_other_network(mesh: World) -> None:
    """The inner tunnel ends at the waypoint: the server's pod, as one whose application wants the PROXY header."""
    waypoint = Service("wp", "shop", "wp.shop.svc.cluster.local", ports={15008: 15008}, subject_alt_names=(str(SERVER),))
    front = GatewayAddress(NamespacedHostname("shop", "wp.shop.svc.cluster.local"), 15008)
    behind = replace(far_service(mesh, "spiffe://cluster.local/ns/shop/sa/nobody"), waypoint=front)
    pod = replace(seen(mesh, by_address(mesh)), services={waypoint.key: {}})
    tunnel = ApplicationTunnel(True, 15088)
    own = replace(mesh.server.workload, network="remote", services={waypoint.key: {}}, application_tunnel=tunnel)
    mesh.client.worker.tell(UpdateInventory([waypoint, behind, pod], []))
    mesh.server.worker.tell(
        UpdateInventory([waypoint, behind, replace(own, application_tunnel=ApplicationTunnel(True, 15088))], [])
    )
    with mesh.server.listen(15088, address="127.0.0.1") as listener:
        client, server = connected(mesh, listener)
        client.sendall(b"question")
        said = b""
        while not said.endswith(b"question"):
            said += server.recv(1000)
        # The PROXY header: from the gateway's address, to the service's, with the client's identity.
        assert said[16:24] == ip_address(mesh.pods["gateway"].address).packed + ip_address(VIP).packed
        assert str(CLIENT).encode() in said
        client.close()
        server.close()
    record = mesh.client.worker.closed()
    assert record.hbone_destination == f"{HOSTNAME}:80" and record.destination_service == behind.key
    server_side = replace(mesh.server.workload, network="remote", services={f"shop/{HOSTNAME}": {80: 8080}})
    mesh.client.worker.tell(UpdateInventory([far_service(mesh), seen(mesh, by_address(mesh))], [waypoint.key]))
    mesh.server.worker.tell(UpdateInventory([far_service(mesh), server_side], [waypoint.key]))


def test_who_is_revoked_behind_a_gateway_is_refused_and_cut_off(mesh: World) -> None:
    with mesh.server.listen(8080) as listener:
        client, _ = connected(mesh, listener)
        lists = read_lists(revocation_list(mesh.authority, mesh.papers.chain_pem))  # type: ignore[attr-defined]
        mesh.client.worker.tell(SetRevoked(lists))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert mesh.client.worker.closed().flag == "CERT_REVOKED"
        assert_reset(lambda: mesh.client.connect(VIP, 80))
        assert mesh.client.worker.closed().flag == "CERT_REVOKED"
    mesh.client.worker.tell(SetRevoked({}))


def test_a_slow_reader_behind_a_gateway_costs_bounded_memory(mesh: World) -> None:
    """Each of the four proxies' ends holds back what the one behind it does not take."""
    with mesh.server.listen(8080) as listener:
        client, server = connected(mesh, listener)
        client.settimeout(1)
        sent = 0
        with pytest.raises((BlockingIOError, TimeoutError)):
            while True:
                sent += client.send(bytes(MiB))
        mesh.client.worker.heard.clear()
        status = mesh.client.worker.wait_for(WorkerStatus)
        assert status.gauges["buffered_bytes"] < 16 * MiB and sent < 64 * MiB, (status.gauges, sent)
        client.close()
        received = 0
        while part := server.recv(MiB):
            received += len(part)
        assert received == sent
        server.close()


def test_a_client_that_gives_up_leaves_nothing_at_the_gateway(mesh: World) -> None:
    """While the inner handshake waits for a relay that says nothing."""
    relay = mesh.pods["gateway"].listen(PASS_PORT + 1)
    own = replace(mesh.pods["gateway"].workload, network="remote")
    gateway = mesh.pods["gateway"].worker
    gateway.tell(UpdateInventory([replace(own, application_tunnel=ApplicationTunnel(False, PASS_PORT + 1))], []))
    client = mesh.client.connect(VIP, 80)
    client.sendall(b"x")
    silent, _ = relay.accept()
    assert silent.recv(MiB)[:3] == b"\x16\x03\x01"  # the inner ClientHello
    mesh.client.worker.tell(RemovePod("client"))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        while silent.recv(MiB):
            pass
    relay.close()
    mesh.client.add_pod()
    gateway.tell(UpdateInventory([replace(own, application_tunnel=ApplicationTunnel(False, PASS_PORT))], []))


def test_the_gateways_refusal_and_the_workloads_own_are_told(mesh: World) -> None:
    assert_reset(lambda: mesh.client.connect(VIP, 80))  # nobody listens at the server
    assert mesh.client.worker.closed().error == "http status: 503 Service Unavailable"
    assert mesh.server.worker.closed().error == "connection failed: Connection refused (os error 111)"
    gateway = mesh.pods["gateway"]
    gateway.worker.tell(UpdateInventory([replace(gateway.workload, network="remote")], []))
    assert_reset(lambda: mesh.client.connect(VIP, 80))
    assert mesh.client.worker.closed().error == "http status: 503 Service Unavailable"
    own = replace(gateway.workload, network="remote", application_tunnel=ApplicationTunnel(False, PASS_PORT))
    gateway.worker.tell(UpdateInventory([own], []))


def test_a_gateway_that_goes_away_ends_what_it_carried(mesh: World) -> None:
    with mesh.server.listen(8080) as listener:
        client, server = connected(mesh, listener)
        client.sendall(b"x")
        server.recv(1)
        gateway = mesh.pods["gateway"]
        run("ip", "netns", "exec", gateway.netns, "ss", "-K", "sport", "=", "15008")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert mesh.client.worker.closed().error.startswith("h2 failed")


def test_a_waypoint_that_comes_while_who_answers_is_greeted_is_not_gone_past(mesh: World) -> None:
    mesh.server.worker.tell(ForgetCertificate(SERVER))
    nowhere = GatewayAddress(NamespacedHostname("shop", "gone.shop.svc.cluster.local"), 15008)
    with mesh.server.listen(8080):
        client = mesh.client.connect(VIP, 80)
        mesh.server.worker.wait_for(NeedCertificate)
        mesh.client.worker.tell(UpdateInventory([replace(far_service(mesh), waypoint=nowhere)], []))
        mesh.server.worker.tell(mesh.papers)  # type: ignore[attr-defined]
        assert mesh.client.worker.closed().error.startswith("unknown waypoint: shop/gone.shop.svc.cluster.local")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    mesh.client.worker.heard.clear()
    mesh.client.worker.wait_for(WorkerStatus, lambda status: status.gauges["tunnels"] <= 1)  # the gateway's own
    mesh.client.worker.tell(UpdateInventory([far_service(mesh)], []))


@pytest.mark.parametrize("gone", ["certificate", "root"])
def test_who_is_greeted_behind_a_gateway_is_judged_by_what_holds_then(mesh: World, gone: str) -> None:
    """A certificate of ours that was withdrawn meanwhile begins nothing, and a root that is gone lets nobody in."""
    other, own = Authority("other root"), mesh.authority.certificate_for(CLIENT)
    mesh.client.worker.tell(mesh.authority.certificate_for(CLIENT, roots=mesh.authority.pem + other.pem))
    mesh.server.worker.heard.clear()
    mesh.server.worker.tell(ForgetCertificate(SERVER))
    with mesh.server.listen(8080) as listener:
        client = mesh.client.connect(VIP, 80)
        mesh.server.worker.wait_for(NeedCertificate)
        mesh.client.worker.tell(CertificateFailed(CLIENT, "withdrawn") if gone == "certificate" else own)
        mesh.client.worker.catch_up()
        mesh.server.worker.tell(other.certificate_for(SERVER, roots=mesh.authority.pem))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    error = {"certificate": f"{CLIENT} has no certificate any more", "root": "its peer's root is believed no more"}[gone]
    assert mesh.client.worker.closed().error == f"io error: {error}"
    mesh.client.worker.tell(own)
    mesh.server.worker.tell(mesh.papers)  # type: ignore[attr-defined]
    with mesh.server.listen(8080) as listener:
        for sock in connected(mesh, listener):
            sock.close()
        assert mesh.client.worker.closed().error == ""  # one that has yet to open would end in the next test's time
