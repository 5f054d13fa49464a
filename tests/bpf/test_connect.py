"""Outbound: what is captured, what the two ends learn, what is left alone, and what is refused."""

import ctypes
import errno
import socket
import struct
import time
from dataclasses import replace
from typing import Any

import pytest

from bpf.layout import PORT_OUTBOUND, Reason
from bpf.sock_destroy import State, connections
from tests.bpf.conftest import DEADLINE_S

pytestmark = pytest.mark.kernel
SO_ORIGINAL_DST = 80
MPTCP = 262
TCP_FASTOPEN_CONNECT = 30
FAMILIES = pytest.mark.parametrize("family", ["ip4", "ip6"])


def original_destination(accepted: socket.socket, level: int) -> tuple[str, int]:
    raw = accepted.getsockopt(level, SO_ORIGINAL_DST, 28 if level == socket.IPPROTO_IPV6 else 16)
    family = struct.unpack_from("=H", raw)[0]
    packed = raw[8:24] if family == socket.AF_INET6 else raw[4:8]
    return socket.inet_ntop(family, packed), int.from_bytes(raw[2:4], "big")


@pytest.mark.parametrize(
    ("dialled", "told", "level"),
    [
        ("10.9.8.7", "10.9.8.7", socket.IPPROTO_IP),
        ("2001:db8::7", "2001:db8::7", socket.IPPROTO_IPV6),
        ("::ffff:10.9.8.7", "10.9.8.7", socket.IPPROTO_IP),
    ],
)
def test_both_ends_learn_the_truth(world: Any, outbound: socket.socket, dialled: str, told: str, level: int) -> None:
    client = world.dial(world.pods["a"].where, dialled, 4321)
    accepted, peer = outbound.accept()
    with pytest.raises(OSError):
        accepted.getsockopt(level, SO_ORIGINAL_DST, 8)
    assert original_destination(accepted, level) == (told, 4321)
    assert world.tag(accepted) is None, "who was told needs it no more: 320 bytes of each connection"
    assert client.getpeername()[:2] == (dialled, 4321)
    own = {"10.9.8.7": world.pods["a"].ip4, "2001:db8::7": world.pods["a"].ip6}[told]
    assert client.getsockname()[0].removeprefix("::ffff:") == own
    assert accepted.getpeername()[:2] == peer[:2] != (told, 4321)
    with pytest.raises(OSError) as refused:
        client.getsockopt(level, SO_ORIGINAL_DST, 28)
    assert refused.value.errno in (errno.ENOPROTOOPT, errno.ENOENT)  # without and with connection tracking
    accepted.sendall(b"hello")
    assert client.recv(8) == b"hello"


def test_long_answers_of_other_options_pass(world: Any, outbound: socket.socket) -> None:
    def work() -> tuple[int, int]:
        libc = ctypes.CDLL(None, use_errno=True)
        size = ctypes.c_uint32(8192)
        buffer = ctypes.create_string_buffer(size.value)
        with socket.socket() as sock:
            result = libc.getsockopt(sock.fileno(), socket.IPPROTO_TCP, socket.TCP_INFO, buffer, ctypes.byref(size))
        return result, size.value

    result, size = world.at(world.pods["a"].where, work)
    assert result == 0
    assert 100 < size < 8192


@FAMILIES
def test_connect_write_close_before_the_proxy_accepts(world: Any, outbound: socket.socket, family: str) -> None:
    target = {"ip4": "10.9.8.7", "ip6": "2001:db8::7"}[family]

    def work() -> None:
        with socket.create_connection((target, 514), timeout=DEADLINE_S) as sock:
            sock.sendall(b"one line")

    world.at(world.pods["a"].where, work)
    accepted, _ = outbound.accept()
    level = socket.IPPROTO_IP if family == "ip4" else socket.IPPROTO_IPV6
    assert original_destination(accepted, level) == (target, 514)
    assert (accepted.recv(16), accepted.recv(16)) == (b"one line", b"")


@pytest.mark.parametrize("device", ["", "eth0"])
def test_captured_with_and_without_a_device(world: Any, outbound: socket.socket, device: str) -> None:
    world.dial(world.pods["a"].where, world.pods["c"].ip4, 80, device=device)
    assert original_destination(outbound.accept()[0], socket.IPPROTO_IP) == (world.pods["c"].ip4, 80)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "own4", "own6", "own-mapped"]
)
def test_left_alone(world: Any, outbound: socket.socket, address: str) -> None:
    own = {"own4": world.pods["a"].ip4, "own6": world.pods["a"].ip6, "own-mapped": "::ffff:" + world.pods["a"].ip4}
    with world.listen(world.pods["a"].where, 9090) as app:
        client = world.dial(world.pods["a"].where, own.get(address, address), 9090)
        _, peer = app.accept()
        assert peer[1] == client.getsockname()[1]
        assert world.tag(client) is None


def test_link_local_is_left_alone(world: Any, outbound: socket.socket) -> None:
    world.ip("a", "addr add 169.254.1.1/24 dev eth0")
    world.ip("c", "addr add 169.254.1.2/24 dev eth0")
    try:
        with world.listen(world.pods["c"].where, 80) as server:
            world.dial(world.pods["a"].where, "169.254.1.2", 80)
            assert server.accept()[1][0] == "::ffff:169.254.1.1"
        with world.listen(world.pods["a"].where, 9090) as app:
            world.dial(world.pods["a"].where, "169.254.1.1", 9090)
            assert app.accept()[1][0] == "::ffff:169.254.1.1"
    finally:
        world.ip("a", "addr del 169.254.1.1/24 dev eth0")
        world.ip("c", "addr del 169.254.1.2/24 dev eth0")


def test_datagrams_are_not_touched(world: Any, outbound: socket.socket) -> None:
    with world.at(world.pods["c"].where, lambda: _bound_datagram(world.pods["c"].ip4, 5353)) as server:
        server.settimeout(DEADLINE_S)
        before = world.redirect.counters()

        def work() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((world.pods["c"].ip4, 5353))
                sock.send(b"query")

        world.at(world.pods["a"].where, work)
        assert server.recvfrom(16)[0] == b"query"
        assert world.counted(before) == {}


def _bound_datagram(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


@FAMILIES
def test_without_a_proxy_refused_at_once_and_never_plain(world: Any, family: str) -> None:
    target = getattr(world.pods["c"], family)
    with world.listen(world.pods["c"].where, 80) as server:
        assert world.refused_at_once(world.pods["a"].where, target, 80)
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()
    events = world.events(until=lambda events: len(events) >= 3)
    told = {(event.reason, event.refused, str(event.destination), event.destination_port) for event in events}
    assert told == {(Reason.NO_LISTENER, True, target, 80)}
    with world.proxy_listener("a", PORT_OUTBOUND) as back:
        world.dial(world.pods["a"].where, target, 80)
        back.accept()


def test_somebody_elses_listener_does_not_stand_in_for_the_proxy(world: Any) -> None:
    with world.listen(world.pods["a"].where, PORT_OUTBOUND), pytest.raises(ConnectionRefusedError):
        world.dial(world.pods["a"].where, "10.9.8.7", 80)


def test_a_family_that_the_pod_lacks_is_refused(world: Any, outbound: socket.socket) -> None:
    pod = world.pod("a")
    world.redirect.enrol(replace(pod, addresses=pod.addresses[:1]), world.namespaces["a"])
    before = world.redirect.counters()
    with pytest.raises(ConnectionRefusedError):
        world.dial(world.pods["a"].where, world.pods["c"].ip6, 80)
    assert world.counted(before) == {"no_address": 1}
    (event,) = world.told()
    assert (event.reason, event.source, str(event.destination)) == (Reason.NO_ADDRESS, None, world.pods["c"].ip6)


def test_a_socket_that_tries_again_elsewhere_forgets_the_first_destination(world: Any) -> None:
    with world.listen(world.pods["a"].where, 9090) as app:

        def work() -> tuple[Any, Any]:
            sock = socket.socket()
            first = sock.connect_ex(("10.9.8.7", 80))
            sock.connect(("127.0.0.1", 9090))
            return first, sock.getpeername()

        assert world.at(world.pods["a"].where, work) == (errno.ECONNREFUSED, ("127.0.0.1", 9090))
        app.accept()


def test_not_captured_until_asked(world: Any) -> None:
    world.withdraw("a")
    world.enrol("a", capture=False)
    with world.proxy_listener("a", PORT_OUTBOUND) as proxy, world.listen(world.pods["c"].where, 80) as server:
        world.dial(world.pods["a"].where, world.pods["c"].ip4, 80)
        server.accept()
        world.enrol("a")
        world.dial(world.pods["a"].where, world.pods["c"].ip4, 80)
        proxy.accept()


def test_mptcp_sockets_are_not_made_in_enrolled_pods(world: Any, outbound: socket.socket) -> None:
    with pytest.raises(OSError) as refused:
        world.dial(world.pods["a"].where, world.pods["c"].ip4, 80, protocol=MPTCP)
    assert refused.value.errno == errno.ENOPROTOOPT
    with world.listen(world.pods["c"].where, 80) as server:
        world.dial(("node", "host"), world.pods["c"].ip4, 80, protocol=MPTCP)
        server.accept()


def test_an_mptcp_socket_from_before_enrolment_is_captured(world: Any) -> None:
    world.withdraw("a")
    old = world.at(world.pods["a"].where, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP))
    world.enrol("a")
    with world.proxy_listener("a", PORT_OUTBOUND) as proxy:
        old.settimeout(DEADLINE_S)
        old.connect((world.pods["c"].ip4, 80))
        assert original_destination(proxy.accept()[0], socket.IPPROTO_IP) == (world.pods["c"].ip4, 80)


def test_a_connection_that_passed_no_hook_does_not_escape(world: Any) -> None:
    """A deferred fast open: connect() came before enrolment, the SYN comes with the first write."""
    world.withdraw("a")
    kept = world.sysctl("a", "ipv4/tcp_fastopen")
    world.sysctl("a", "ipv4/tcp_fastopen", "5")  # as client, without asking for a cookie

    def deferred() -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.connect((world.pods["c"].ip4, 80))
        return sock

    try:
        with world.listen(world.pods["c"].where, 80) as server:
            old = world.at(world.pods["a"].where, deferred)
            world.enrol("a")
            with pytest.raises(OSError) as refused:
                old.send(b"secret")
            assert refused.value.errno in (errno.EHOSTUNREACH, errno.ECONNABORTED)
            server.settimeout(0.05)
            with pytest.raises(TimeoutError):
                server.accept()
    finally:
        world.sysctl("a", "ipv4/tcp_fastopen", kept)
    (event,) = world.told()
    assert (event.reason, str(event.destination)) == (Reason.ESCAPE, world.pods["c"].ip4)
    assert not connections(world.namespaces["a"], world.home, [State.SYN_SENT])


@FAMILIES
@pytest.mark.parametrize("both_ends", [False, True])
def test_fast_open_is_captured(world: Any, family: str, both_ends: bool) -> None:
    target = {"ip4": "10.9.8.7", "ip6": "2001:db8::7"}[family]
    kept = world.sysctl("a", "ipv4/tcp_fastopen")
    world.sysctl("a", "ipv4/tcp_fastopen", "1543" if both_ends else "1")  # 0x607: no cookies asked, every listener

    def work() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if family == "ip6" else socket.AF_INET)
        sock.sendto(b"early", socket.MSG_FASTOPEN, (target, 80))
        return sock

    try:
        with world.proxy_listener("a", PORT_OUTBOUND) as proxy:
            client = world.at(world.pods["a"].where, work)
            accepted, _ = proxy.accept()
            level = socket.IPPROTO_IP if family == "ip4" else socket.IPPROTO_IPV6
            assert original_destination(accepted, level) == (target, 80)
            assert accepted.recv(8) == b"early"
            assert client.getpeername()[:2] == (target, 80)
    finally:
        world.sysctl("a", "ipv4/tcp_fastopen", kept)


def test_local_ports_come_back_after_a_second(world: Any, outbound: socket.socket) -> None:
    kept = world.sysctl("a", "ipv4/ip_local_port_range")
    world.sysctl("a", "ipv4/ip_local_port_range", "20000 20003")  # of which none is left in TIME_WAIT by another test
    try:
        for _ in range(4):
            with world.dial(world.pods["a"].where, "10.9.8.7", 80):
                accepted = outbound.accept()[0]
            assert accepted.recv(1) == b""
            accepted.close()  # the client closed first: its port is in TIME_WAIT
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                world.dial(world.pods["a"].where, "10.9.8.7", 80)
                break
            except OSError as error:
                assert error.errno == errno.EADDRNOTAVAIL
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        world.sysctl("a", "ipv4/ip_local_port_range", kept)
