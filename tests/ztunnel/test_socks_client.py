"""A pod's SOCKS listener: by address, by name of the mesh, by name of a nameserver; refusals; and nobody waits for ever."""

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ztunnel.nameserver import Nameserver, zone
from tests.ztunnel.world import VIP, World, assert_reset, world
from ztunnel.channel import PORTS, SOCKS, AddPod, Closed, EarlyFailure, PodAdded, RemovePod
from ztunnel.pod_sockets import Openings, open_pod_sockets
from ztunnel.tuning import Tuning

pytestmark = pytest.mark.kernel

NAMESERVER = f"127.53.0.{os.getpid() % 250 + 1}"
"""Of this machine, as the proxy's own nameservers are."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world("socks") as made:
        conf: Path = tmp_path_factory.mktemp("socks") / "resolv.conf"
        conf.write_text(f"nameserver {NAMESERVER}\n")
        made.client.resolv_conf = str(conf)
        made.client.configuration = {"socks5": True, "tuning": Tuning(connect_timeout_s=12.0)}
        made.start()
        serve_socks(made)
        yield made


def serve_socks(made: World) -> None:
    client = made.client
    client.worker.tell(RemovePod(client.name))
    sockets = open_pod_sockets(client.fd, made.home_fd, Openings(0x539, ports=(*PORTS, SOCKS)))
    client.worker.tell(AddPod(client.name, "shop", "client", "client", ports=(*PORTS, SOCKS)), sockets.fds())
    sockets.close()
    assert client.worker.wait_for(PodAdded).error == ""


@pytest.fixture
def app(mesh: World) -> Iterator[socket.socket]:
    mesh.settle()
    with mesh.server.listen(8080) as listener:
        yield listener
    mesh.reset_sockets()


def ask(mesh: World, host: bytes, port: int, behind: bytes = b"") -> tuple[socket.socket, bytes]:
    """Everything at once, as hasty clients do; the socket, and what was answered."""
    sock = mesh.client.connect("127.0.0.1", SOCKS)
    sock.sendall(b"\5\1\0" + b"\5\1\0" + host + struct.pack("!H", port) + behind)
    said = b""
    while len(said) < 12:  # a socket with a timeout waits for no more than the first byte
        said += (part := sock.recv(12 - len(said)))
        assert part, said
    return sock, said


def by_name(name: str) -> bytes:
    return bytes((3, len(name))) + name.encode()


@pytest.mark.parametrize("host", [b"\1" + socket.inet_aton(VIP), by_name("web.shop.svc.cluster.local"), by_name("web")])
def test_a_client_goes_where_it_says_as_a_captured_connection_would(mesh: World, app: socket.socket, host: bytes) -> None:
    sock, said = ask(mesh, host, 80, b"ping")
    assert said.hex() == "050005000001000000000000"
    server, peer = app.accept()
    server.settimeout(40)
    assert server.recv(4) == b"ping" and peer[0] != "127.0.0.1"
    server.sendall(b"pong")
    server.close()
    assert sock.recv(10) == b"pong" and sock.recv(1) == b""
    sock.close()
    record = mesh.client.worker.closed()
    assert record.protocol == "HBONE" and record.error == "" and record.destination_service == mesh.service.key
    assert (record.bytes_sent, record.bytes_received) == (4, 4)


def test_other_names_are_asked_of_the_proxys_nameservers(mesh: World, app: socket.socket) -> None:
    server = Nameserver(zone({"elsewhere.example.": [f"60 A {mesh.server.address}"]}), NAMESERVER, 53)
    try:
        _, said = ask(mesh, by_name("elsewhere.example"), 8080)
        assert said[:4] == b"\5\0\5\0"
        assert app.accept()
        _, said = ask(mesh, by_name("absent.example"), 8080)
        assert said[:4] == b"\5\0\5\4"
        assert mesh.client.worker.wait_for(EarlyFailure).error == "no address found for absent.example"
    finally:
        server.close()


def test_who_asks_for_what_is_not_served_hears_it(mesh: World, app: socket.socket) -> None:
    sock = mesh.client.connect("127.0.0.1", SOCKS)
    sock.sendall(b"\5\1\2")
    assert sock.recv(10) == b"\5\xff" and sock.recv(1) == b""
    failure = mesh.client.worker.wait_for(EarlyFailure)
    assert failure.direction == "outbound" and failure.error == "the client wants to authenticate itself"
    for port in (15001, SOCKS):
        sock, said = ask(mesh, b"\1\x7f\0\0\1", port)
        assert said[:4] == b"\5\0\5\0"
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert "self call to 127.0.0.1" in mesh.client.worker.wait_for(Closed).record.error


def test_it_is_on_the_pods_own_loopback_alone(mesh: World, app: socket.socket) -> None:
    with pytest.raises(ConnectionRefusedError):
        mesh.client.connect("::1", SOCKS)
    assert_reset(lambda: mesh.server.connect(mesh.client.address, SOCKS))
    assert "http status: 503" in mesh.server.worker.wait_for(Closed).record.error


def test_a_pod_that_goes_takes_waiting_clients_along(mesh: World, app: socket.socket) -> None:
    sock = mesh.client.connect("127.0.0.1", SOCKS)
    sock.sendall(b"\5\1\0")
    assert sock.recv(2) == b"\5\0"
    mesh.client.worker.tell(RemovePod(mesh.client.name))
    assert sock.recv(1) == b""
    serve_socks(mesh)


def test_a_silent_client_is_closed_after_a_while(mesh: World, app: socket.socket) -> None:
    begun = time.monotonic()
    sock = mesh.client.connect("127.0.0.1", SOCKS)
    assert sock.recv(1) == b"" and time.monotonic() - begun > 11.9, "not by the usual time-out, which is 10 s"
    assert mesh.client.worker.wait_for(EarlyFailure).error == "SOCKS: timed out"
