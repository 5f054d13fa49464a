"""What a pod asks of whatever nameserver, the proxy answers, unnoticed; where the proxy does not, nothing changes."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rrset
import pytest

from bpf.layout import PORT_DNS, Role
from mesh.exclusions import Exclusions
from tests.bpf.conftest import DEADLINE_S

pytestmark = pytest.mark.kernel

PROXY, NAMESERVER = "192.0.2.53", "192.0.2.99"
"""What each of the two answers to every question."""
ELSEWHERE = ("10.213.0.4", "fd13::4")
"""Pod c, not enrolled, where the nameserver is."""
FAMILIES = pytest.mark.parametrize("address", [*ELSEWHERE, "169.254.20.10", "::ffff:10.213.0.4"])
RESOLVE = "import socket; print(socket.getaddrinfo('web.shop', 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])"


def answer(wire: bytes, address: str) -> bytes:
    reply = dns.message.make_response(dns.message.from_wire(wire))
    question = reply.question[0]
    if question.rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(question.name, 30, "IN", "A", address))
    return reply.to_wire()


class Answering:
    """UDP and TCP sockets, each of which answers every question with one address."""

    def __init__(self, world: Any, where: tuple[str, str], port: int, addresses: tuple[str, ...], says: str) -> None:
        self._says = says
        self._sockets = [
            world.at(where, lambda at=at, kind=kind: _bound(at, port, kind))
            for at in addresses
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
        ]
        self._threads = [threading.Thread(target=self._serve, args=(sock,), daemon=True) for sock in self._sockets]
        for thread in self._threads:
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            while True:
                if sock.type == socket.SOCK_DGRAM:
                    wire, peer = sock.recvfrom(4096)
                    if not wire:
                        return  # shut down
                    sock.sendto(answer(wire, self._says), peer)
                else:
                    with sock.accept()[0] as client, suppress(ConnectionError):  # who asked may have gone
                        size = int.from_bytes(client.recv(2, socket.MSG_WAITALL), "big")
                        if not size:
                            continue  # who connected had nothing to ask
                        reply = answer(client.recv(size, socket.MSG_WAITALL), self._says)
                        client.sendall(len(reply).to_bytes(2, "big") + reply)
        except OSError:
            return  # closed

    def close(self) -> None:
        for sock in self._sockets:
            with suppress(OSError):  # of a socket that is not connected it only wakes who reads
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for sock in self._sockets:
            sock.close()


def _bound(address: str, port: int, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen(8)
    return sock


@pytest.fixture
def nameserver(world: Any) -> Iterator[Answering]:
    made = Answering(world, world.pods["c"].where, 53, ELSEWHERE, NAMESERVER)
    yield made
    made.close()


@pytest.fixture
def proxy(world: Any, nameserver: Answering) -> Iterator[Answering]:
    made = Answering(world, ("a", "proxy"), PORT_DNS, ("127.0.0.1", "::1"), PROXY)
    yield made
    made.close()


def unconnected(address: str, patience_s: float = DEADLINE_S) -> tuple[str, str]:
    """Says what was answered, and from where."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(patience_s)
        sock.sendto(dns.message.make_query("web.shop", "A").to_wire(), (address, 53))
        wire, source = sock.recvfrom(4096)
        assert source[1] == 53
        return _address(dns.message.from_wire(wire)), source[0]


def connected(address: str, kind: int = socket.SOCK_DGRAM) -> tuple[str, str]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect((address, 53))
        query = dns.message.make_query("web.shop", "A")
        if kind == socket.SOCK_DGRAM:
            sock.send(query.to_wire())
            wire, source = sock.recvfrom(4096)
            assert source[:2] == sock.getpeername()[:2]
        else:
            dns.query.send_tcp(sock, query)
            wire = dns.query.receive_tcp(sock)[0].to_wire()
        return _address(dns.message.from_wire(wire)), sock.getpeername()[0]


def connected_tcp(address: str) -> tuple[str, str]:
    return connected(address, socket.SOCK_STREAM)


def own_address(address: str, kind: int = socket.SOCK_DGRAM, bound: str = "") -> str:
    """What a program finds by connecting to some nameserver."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        if bound:
            sock.bind((bound, 0))
        sock.connect((address, 53))
        return str(sock.getsockname()[0])


def dnspython(address: str) -> tuple[str, str]:
    """Refuses an answer from anybody but whom it asked."""
    return _address(dns.query.udp(dns.message.make_query("web.shop", "A"), address, timeout=DEADLINE_S)), address


def _address(message: dns.message.Message) -> str:
    return message.answer[0][0].to_text()


HOWS = pytest.mark.parametrize("how", [unconnected, connected, connected_tcp, dnspython])


@HOWS
@FAMILIES
def test_the_proxy_answers_in_the_nameservers_name(
    world: Any, proxy: Answering, how: Callable[[str], tuple[str, str]], address: str
) -> None:
    before = world.redirect.counters()
    assert world.at(world.pods["a"].where, lambda: how(address)) == (PROXY, address)
    assert world.counted(before) == {"dns": 1}


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@FAMILIES
def test_a_connected_socket_has_the_pods_address(world: Any, proxy: Answering, address: str, kind: int) -> None:
    pod = world.pods["a"]
    expected = f"::ffff:{pod.ip4}" if "ffff" in address else pod.ip6 if ":" in address else pod.ip4
    assert world.at(pod.where, lambda: own_address(address, kind)) == expected
    loopback = "::1" if ":" in address and "ffff" not in address else "::ffff:127.0.0.1" if ":" in address else "127.0.0.1"
    assert world.at(pod.where, lambda: own_address(address, kind, loopback)) == loopback, "as it was bound"


@HOWS
@pytest.mark.parametrize("address", ELSEWHERE)
def test_the_proxy_itself_asks_the_nameserver(world: Any, proxy: Answering, how: Any, address: str) -> None:
    before = world.redirect.counters()
    assert world.at(("a", "proxy"), lambda: how(address)) == (NAMESERVER, address)
    assert world.counted(before) == {}


@pytest.mark.parametrize("name", ["web.shop", "web.shop."])
@pytest.mark.parametrize("nameservers", [["10.213.0.4"], ["fd13::4"], ["10.99.0.10", "10.213.0.4"]])
def test_libc_resolves(world: Any, proxy: Answering, tmp_path: Path, nameservers: list[str], name: str) -> None:
    assert resolved(world, "a", tmp_path, nameservers) == PROXY


def resolved(world: Any, pod: str, folder: Path, nameservers: list[str]) -> str:
    """What getaddrinfo answers with these nameservers in /etc/resolv.conf."""
    (folder / "resolv.conf").write_text(
        "options timeout:30 attempts:1\n" + "".join(f"nameserver {one}\n" for one in nameservers)
    )
    script = 'mount --bind "$1/resolv.conf" /etc/resolv.conf && exec "$2" -c "$3"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(folder), sys.executable, RESOLVE]

    def run() -> str:
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False).stdout.strip()

    return str(world.at(world.pods[pod].where, run))


UDP4 = ELSEWHERE[0]


def asked_of_the_nameserver(world: Any, address: str = UDP4, pod: str = "a") -> bool:
    """Datagrams reach it, whose pod is in the mesh or not."""
    return bool(world.at(world.pods[pod].where, lambda: unconnected(address)) == (NAMESERVER, address))


def test_a_pod_that_opted_out_asks_whom_it_means(world: Any, proxy: Answering, tmp_path: Path) -> None:
    world.enrol("a", exclusions=Exclusions(dns=True))
    assert {one.pod.uid: one.pod.exclusions.dns for one in world.redirect.enrolled()} == {"uid-a": True, "uid-b": False}
    for how in (unconnected, connected, dnspython):
        for address in ELSEWHERE:
            assert world.at(world.pods["a"].where, lambda how=how, address=address: how(address)) == (NAMESERVER, address)
    assert resolved(world, "a", tmp_path, [UDP4]) == NAMESERVER
    world.enrol("a")
    assert not asked_of_the_nameserver(world)


def test_excluded_ports_and_ranges_hold_for_names_too(world: Any, proxy: Answering) -> None:
    world.enrol("a", exclusions=Exclusions(outbound_ports=(53,)))
    assert asked_of_the_nameserver(world)


def test_where_the_proxy_does_not_answer_nothing_changes(world: Any, nameserver: Answering) -> None:
    """No proxy, or one without DNS: and whoever else has its port is not the proxy."""
    assert asked_of_the_nameserver(world)
    with world.at(world.pods["a"].where, lambda: _bound("127.0.0.1", PORT_DNS, socket.SOCK_DGRAM)):
        assert asked_of_the_nameserver(world)
    with world.at(("a", "proxy"), lambda: _bound("127.0.0.1", PORT_DNS, socket.SOCK_DGRAM)) as held:
        assert world.tag(held).role == Role.PROXY
        assert asked_of_the_nameserver(world, ELSEWHERE[1]), "of the other family it does not"
        with pytest.raises(TimeoutError):
            world.at(world.pods["a"].where, lambda: unconnected(UDP4, patience_s=0.5))


def test_pods_outside_of_the_mesh_and_not_captured_yet_ask_whom_they_mean(world: Any, proxy: Answering) -> None:
    assert asked_of_the_nameserver(world, pod="b"), "whose proxy has no DNS"
    world.enrol("a", capture=False)
    assert asked_of_the_nameserver(world)


def test_a_pods_own_nameserver_is_its_own(world: Any, proxy: Answering) -> None:
    own = Answering(world, world.pods["a"].where, 53, ("127.0.0.1", world.pods["a"].ip4), "192.0.2.7")
    try:
        for address in ("127.0.0.1", world.pods["a"].ip4):
            assert world.at(world.pods["a"].where, lambda address=address: unconnected(address)) == ("192.0.2.7", address)
    finally:
        own.close()


def test_other_datagrams_and_other_peers_of_a_socket_that_asked_are_untouched(world: Any, proxy: Answering) -> None:
    echo = world.at(world.pods["c"].where, lambda: _bound("10.213.0.4", 5353, socket.SOCK_DGRAM))

    def ask_and_talk() -> list[Any]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(DEADLINE_S)
            sock.sendto(dns.message.make_query("web.shop", "A").to_wire(), ("10.99.0.10", 53))
            first = sock.recvfrom(4096)[1]
            sock.sendto(b"hello", ("10.213.0.4", 5353))
            second = sock.recvfrom(100)
            sock.connect(("10.213.0.4", 5353))
            return [first, second, sock.getpeername()]

    talk = world.begin(world.pods["a"].where, ask_and_talk)
    echo.settimeout(DEADLINE_S)
    data, peer = echo.recvfrom(100)
    echo.sendto(data, peer)
    assert talk() == [("10.99.0.10", 53), (b"hello", ("10.213.0.4", 5353)), ("10.213.0.4", 5353)]


def test_a_socket_bound_to_a_device_is_left_alone(world: Any, proxy: Answering) -> None:
    def ask() -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(DEADLINE_S)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            sock.sendto(dns.message.make_query("web.shop", "A").to_wire(), (UDP4, 53))
            return _address(dns.message.from_wire(sock.recv(4096)))

    assert world.at(world.pods["a"].where, ask) == NAMESERVER


def test_a_socket_bound_to_the_pods_address_is_answered(world: Any, proxy: Answering) -> None:
    def ask() -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(DEADLINE_S)
            sock.bind((world.pods["a"].ip4, 0))
            sock.sendto(dns.message.make_query("web.shop", "A").to_wire(), (UDP4, 53))
            wire, source = sock.recvfrom(4096)
            return _address(dns.message.from_wire(wire)), source

    assert world.at(world.pods["a"].where, ask) == (PROXY, (UDP4, 53))
