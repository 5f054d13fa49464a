"""A pod's listeners, in real network namespaces: both families, one, taken ports, and nothing left behind."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from wire.netns import entered, open_home
from ztunnel.channel import HBONE, INBOUND, OUTBOUND
from ztunnel.dns_config import dns_places
from ztunnel.pod_sockets import BindError, Openings, open_pod_sockets, open_rest_of_dns

pytestmark = pytest.mark.kernel

DNS = dns_places({}, ipv6=True)


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"weft-test-{os.getpid()}-sockets"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def fds(netns: str) -> Iterator[tuple[int, int]]:
    netns_fd, home_fd = os.open(f"/run/netns/{netns}", os.O_RDONLY), open_home()
    yield netns_fd, home_fd
    os.close(netns_fd)
    os.close(home_fd)


def connect(fds: tuple[int, int], address: str, port: int) -> None:
    with entered(*fds):
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    with client:
        client.settimeout(10)
        client.connect((address, port))


def test_all_ports_in_both_families_marked_and_transparent(fds: tuple[int, int]) -> None:
    sockets = open_pod_sockets(*fds, Openings(0x539))
    for port in (OUTBOUND, INBOUND, HBONE):
        for address in ("127.0.0.1", "::1"):
            connect(fds, address, port)
    for listener, port in zip(sockets.listeners, (15001, 15006, 15008), strict=True):
        assert listener.getsockname()[1] == port and not listener.getblocking()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x539
        assert listener.getsockopt(socket.SOL_IP, socket.IP_TRANSPARENT) == 1
    assert len(set(sockets.fds())) == 4 and os.fstat(sockets.netns_fd).st_ino == os.fstat(fds[0]).st_ino
    sockets.close()
    with pytest.raises(ConnectionRefusedError):
        connect(fds, "127.0.0.1", HBONE)


def test_without_ipv6_the_other_family_is_served(netns: str, fds: tuple[int, int]) -> None:
    subprocess.run(["ip", "netns", "exec", netns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"], check=True)
    sockets = open_pod_sockets(*fds, Openings(0x539))
    connect(fds, "127.0.0.1", OUTBOUND)
    sockets.close()


def test_with_ipv6_turned_off_the_other_family_alone_is_served(fds: tuple[int, int]) -> None:
    sockets = open_pod_sockets(*fds, Openings(0x539, ipv6=False))
    assert {listener.getsockname()[0] for listener in sockets.listeners} == {"0.0.0.0"}
    for port in (OUTBOUND, INBOUND, HBONE):
        connect(fds, "127.0.0.1", port)
        with pytest.raises(ConnectionRefusedError):
            connect(fds, "::1", port)
    sockets.close()


def test_a_taken_port_is_named_and_nothing_stays_open(fds: tuple[int, int]) -> None:
    with entered(*fds):
        taken = socket.create_server(("::", INBOUND), family=socket.AF_INET6, dualstack_ipv6=True)
    before = open_descriptors()
    with taken, pytest.raises(BindError) as refusal:
        open_pod_sockets(*fds, Openings(0x539))
    assert str(refusal.value) == 'Bind([::]:15006, Os { code: 98, kind: AddrInUse, message: "Address already in use" })'
    assert open_descriptors() <= before
    with pytest.raises(ConnectionRefusedError):
        connect(fds, "127.0.0.1", HBONE)


def test_dns_listens_on_both_loopbacks_over_both_protocols_marked(fds: tuple[int, int]) -> None:
    sockets = open_pod_sockets(*fds, Openings(0x539, DNS))
    places = [(sock.type, sock.getsockname()[:2]) for sock in sockets.dns]
    kinds = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
    assert places == [(kind, (address, 15053)) for address in ("127.0.0.1", "::1") for kind in kinds]
    assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x539 for sock in sockets.dns)
    assert len(set(sockets.fds())) == 8 and not sockets.dns_trouble
    successor = open_pod_sockets(*fds, Openings(0x539, DNS))
    assert not successor.dns_trouble, "a successor listens beside its predecessor"
    for opened in (sockets, successor):
        opened.close()


def test_without_ipv6_on_the_loopback_dns_is_served_over_ipv4(netns: str, fds: tuple[int, int]) -> None:
    subprocess.run(["ip", "netns", "exec", netns, "sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1"], check=True)
    sockets = open_pod_sockets(*fds, Openings(0x539, DNS))
    assert [sock.getsockname()[0] for sock in sockets.dns] == ["127.0.0.1"] * 2 and not sockets.dns_trouble
    sockets.close()


def test_a_pod_whose_dns_port_is_taken_is_served_without_and_it_is_told(fds: tuple[int, int]) -> None:
    with entered(*fds):
        taken = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        taken.bind(("::", 15053))
    with taken:
        sockets = open_pod_sockets(*fds, Openings(0x539, DNS))
    assert sockets.dns == [] and len(sockets.fds()) == 4
    assert sockets.dns_trouble == "127.0.0.1:15053: Address already in use; [::1]:15053: Address already in use"
    connect(fds, "127.0.0.1", HBONE)
    sockets.close()


def test_a_proxy_that_carries_nothing_is_the_pods_dns_alone(fds: tuple[int, int]) -> None:
    sockets = open_pod_sockets(*fds, Openings(0x539, DNS, ports=()))
    assert sockets.listeners == [] and len(sockets.dns) == 4
    for port in (OUTBOUND, INBOUND, HBONE):
        with pytest.raises(ConnectionRefusedError):
            connect(fds, "127.0.0.1", port)
    sockets.close()


def test_ports_that_are_not_shared_wait_for_the_predecessor_to_leave(fds: tuple[int, int]) -> None:
    alone = Openings(0x539, DNS, shared=False)
    first = open_pod_sockets(*fds, alone)
    with pytest.raises(BindError, match=r"Bind\(\[::\]:15008, Os { code: 98"):
        open_pod_sockets(*fds, alone)
    with pytest.raises(BindError):
        open_pod_sockets(*fds, Openings(0x539, DNS))
    for listener in first.listeners:
        listener.close()
    second = open_pod_sockets(*fds, alone)
    assert second.dns_trouble, "the predecessor answers still"
    first.close()
    rest, trouble = open_rest_of_dns(second, fds[1], alone)
    assert len(rest) == 4 and not trouble
    for sock in rest:
        sock.close()
    second.close()


def test_what_is_no_namespace_is_refused(fds: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wrong = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="cannot enter the network namespace"):
        open_pod_sockets(wrong, fds[1], Openings(0x539))
    os.close(wrong)
