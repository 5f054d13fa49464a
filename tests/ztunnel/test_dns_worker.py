"""DNS of a pod whose worker is real: answered inside the pod, forwarded from inside the pod, counted, logged when asked."""

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from tests.ztunnel.nameserver import Nameserver, zone
from tests.ztunnel.world import VIP, PodWorld, World, patched, world
from wire.netns import entered
from ztunnel.channel import AddDNS, AddPod, DNSCounts, PodAdded, RemovePod, SetLogLevels, UpdateInventory
from ztunnel.dns_config import dns_places
from ztunnel.pod_sockets import Openings, open_pod_sockets, open_rest_of_dns

pytestmark = pytest.mark.kernel

# A nameserver is a thread here, which a busy machine may let wait.
UNHURRIED = patched(
    "from ztunnel import dns_upstream", "dns_upstream.Upstream.__init__.__defaults__ = dns_upstream.PORT, 100.0"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dns")


@pytest.fixture(scope="module")
def mesh(folder: Path) -> Iterator[World]:
    with world("dns") as made:
        (folder / "resolv.conf").write_text(f"nameserver {made.server.address}\n")
        made.client.log = folder / "log"
        made.client.program = UNHURRIED
        made.client.resolv_conf = str(folder / "resolv.conf")
        made.start()
        yield made


@pytest.fixture(scope="module")
def server(mesh: World) -> Iterator[Nameserver]:
    with entered(mesh.server.fd, mesh.home_fd):
        made = Nameserver(zone({"www.example.": ["60 A 192.0.2.1"]}), mesh.server.address, 53)
    yield made
    made.close()


def ask(
    pod: PodWorld, name: str, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, wanted: str = "A"
) -> dns.message.Message:
    """What a resolver in the pod would do."""
    query = dns.message.make_query(name, wanted)
    wire = query.to_wire()
    with entered(pod.fd, pod.home_fd):
        sock = socket.socket(family, kind)
    with sock:
        sock.settimeout(40)
        sock.connect(("127.0.0.1" if family == socket.AF_INET else "::1", 15053))
        if kind == socket.SOCK_DGRAM:
            sock.send(wire)
            return dns.message.from_wire(sock.recv(65536))
        sock.sendall(struct.pack("!H", len(wire)) + wire)
        size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
        return dns.message.from_wire(sock.recv(size, socket.MSG_WAITALL))


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_pod_is_answered_on_its_loopback(mesh: World, family: int, kind: int) -> None:
    answer = ask(mesh.client, "web.shop.", family, kind)
    assert answer.answer[0].to_text() == f"web.shop. 30 IN A {VIP}"


def test_other_names_are_asked_of_the_nameserver_from_inside_the_pod(mesh: World, server: Nameserver) -> None:
    assert ask(mesh.client, "www.example.").answer[0].to_text() == "www.example. 60 IN A 192.0.2.1"
    assert ask(mesh.client, "absent.example.").rcode() == dns.rcode.NXDOMAIN
    assert {address for address, _ in server.sources} == {mesh.client.address}


def test_what_was_asked_is_counted_once_a_second(mesh: World) -> None:
    ask(mesh.client, "web.", wanted="AAAA")  # as no other test does
    asked = "aaaa", "udp", "client", "v1"
    assert mesh.client.worker.wait_for(DNSCounts, lambda counts: asked in counts.queries).queries[asked].requests == 1


def test_queries_are_logged_only_when_asked_for(mesh: World, folder: Path) -> None:
    ask(mesh.client, "quiet.shop.svc.cluster.local.")
    mesh.client.worker.tell(SetLogLevels({"": 20, "dns": 10}))
    mesh.client.worker.tell(UpdateInventory([], []))
    line = 'src.workload="client" src.namespace="shop" query=A domain="web.shop" result="success" endpoints=1\n'
    until = time.monotonic() + 40
    while line not in (said := (folder / "log").read_text()):
        assert time.monotonic() < until, said
        ask(mesh.client, "web.shop.")
    mesh.client.worker.tell(SetLogLevels({"": 20}))
    assert "quiet" not in said


def test_a_pod_that_goes_takes_its_dns_with_it_and_comes_back(mesh: World) -> None:
    mesh.client.worker.tell(RemovePod(mesh.client.name))
    mesh.client.worker.settle()  # it has gone: what came to it shortly before would be lost
    with pytest.raises(ConnectionRefusedError):
        ask(mesh.client, "web.")
    mesh.client.add_pod()
    assert ask(mesh.client, "web.").answer


def test_a_pod_whose_connections_are_not_carried_has_its_dns(mesh: World) -> None:
    mesh.client.worker.tell(RemovePod(mesh.client.name))
    sockets = open_pod_sockets(mesh.client.fd, mesh.home_fd, Openings(0x539, dns_places({}, ipv6=True), ports=()))
    mesh.client.worker.tell(AddPod(mesh.client.name, "shop", "client", "client", ports=()), sockets.fds())
    sockets.close()
    assert mesh.client.worker.wait_for(PodAdded).error == ""
    assert ask(mesh.client, "web.").answer
    with pytest.raises(ConnectionRefusedError):
        mesh.client.connect(VIP, 80)


def test_a_pod_without_dns_gets_it_when_its_port_is_free(mesh: World, folder: Path) -> None:
    mesh.client.worker.tell(RemovePod(mesh.client.name))
    sockets = open_pod_sockets(mesh.client.fd, mesh.home_fd, Openings(0x539))
    mesh.client.worker.tell(AddPod(mesh.client.name, "shop", "client", "client"), sockets.fds())
    assert mesh.client.worker.wait_for(PodAdded).error == ""
    for places in (dns_places({}, ipv6=False), dns_places({}, ipv6=True)):  # one, then the other
        opened, trouble = open_rest_of_dns(sockets, mesh.home_fd, Openings(0x539, places))
        assert len(opened) == 2 and not trouble
        sockets.dns.extend(opened)
        mesh.client.worker.tell(AddDNS(mesh.client.name), [sock.fileno() for sock in opened])
        assert ask(mesh.client, "web.").answer
    mesh.client.worker.tell(AddDNS(mesh.client.name))  # as when they found no room
    mesh.client.worker.tell(AddDNS("gone"), [mesh.client.fd])
    mesh.client.worker.tell(AddDNS(mesh.client.name), [mesh.client.fd])  # no socket: costs nobody the worker
    sockets.close()
    mesh.client.worker.settle()  # all of that has been read
    assert ask(mesh.client, "web.").answer
    assert "its DNS cannot be served here: too many descriptors are open, raise the limit" in (folder / "log").read_text()
