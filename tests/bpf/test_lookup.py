"""Inbound: what reaches the app past the proxy, which is nothing that the proxy did not send; and what the proxy is spared."""

import errno
import os
import socket
import struct
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from bpf.layout import MARK_DELIVER, MARK_PROXY, PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND, Reason
from tests.bpf.conftest import DEADLINE_S

pytestmark = pytest.mark.kernel
FAMILIES = pytest.mark.parametrize("family", ["ip4", "ip6"])
MARKS = pytest.mark.parametrize("mark", [MARK_PROXY, MARK_DELIVER])


def nobody_comes(listener: socket.socket) -> bool:
    listener.settimeout(0.05)
    try:
        listener.accept()
    except TimeoutError:
        return True
    return False


@FAMILIES
@MARKS
@pytest.mark.parametrize("place", [("c", "pods/c"), ("node", "host"), ("node", "pods/hostnet"), ("c", "host")])
def test_a_forged_mark_meets_the_proxy(
    world: Any, app: socket.socket, inbound: socket.socket, place: Any, mark: int, family: str
) -> None:
    world.dial(place, getattr(world.pods["b"], family), 8080, mark=mark)
    inbound.accept()
    assert nobody_comes(app)
    assert list(world.map("bypass").keys()) == []


@FAMILIES
@MARKS
def test_a_forged_mark_in_an_enrolled_pod_is_captured(
    world: Any, app: socket.socket, outbound: socket.socket, inbound: socket.socket, mark: int, family: str
) -> None:
    world.dial(world.pods["a"].where, getattr(world.pods["b"], family), 8080, mark=mark)
    outbound.accept()
    assert nobody_comes(app)


@FAMILIES
@pytest.mark.parametrize("mark", [0, MARK_PROXY, MARK_DELIVER])
def test_an_app_cannot_claim_another_source(
    world: Any, app: socket.socket, inbound: socket.socket, mark: int, family: str
) -> None:
    """A transparent socket may bind any source; towards its own pod's app that is the proxy's privilege."""
    source, target = getattr(world.pods["a"], family), getattr(world.pods["b"], family)
    with pytest.raises(OSError):  # the proxy's listener answers the claimed source, which never asked
        world.dial(world.pods["b"].where, target, 8080, source=source, mark=mark, timeout=0.2)
    assert nobody_comes(app)
    assert list(world.map("bypass").keys()) == []


@FAMILIES
def test_no_listener_means_refused(world: Any, app: socket.socket, family: str) -> None:
    assert world.refused_at_once(world.pods["c"].where, getattr(world.pods["b"], family), 8080)
    event, *_ = world.events()
    assert event.reason == Reason.NO_LISTENER
    assert event.netns_cookie == world.cookie("b")
    assert (str(event.source), str(event.destination)) == (getattr(world.pods["c"], family), getattr(world.pods["b"], family))
    assert event.destination_port == 8080
    assert event.family == (4 if family == "ip4" else 6)


@pytest.mark.parametrize("port", [PORT_OUTBOUND, PORT_INBOUND])
@pytest.mark.parametrize("place", [("c", "pods/c"), ("node", "host"), ("a", "pods/a"), ("b", "pods/b")])
@pytest.mark.parametrize("target", ["ip4", "ip6", "127.0.0.1", "::1"])
def test_the_proxys_own_ports_cannot_be_dialled(world: Any, port: int, place: Any, target: str) -> None:
    if target in ("127.0.0.1", "::1"):
        place = ("b", "pods/b")
    address = getattr(world.pods["b"], target, target)
    with world.proxy_listener("b", PORT_OUTBOUND) as out, world.proxy_listener("b", PORT_INBOUND) as plain:
        if place[0] == "a":  # captured: its own proxy decides
            with world.proxy_listener("a", PORT_OUTBOUND) as own:
                world.dial(place, address, port)
                own.accept()
        else:
            with pytest.raises(ConnectionRefusedError):
                world.dial(place, address, port)
            assert Reason.DIRECT in [event.reason for event in world.events()]
        assert nobody_comes(out)
        assert nobody_comes(plain)


@FAMILIES
@pytest.mark.parametrize("port", [8080, PORT_OUTBOUND, PORT_HBONE])
def test_late_segments_inside_a_pod_are_strays_and_nobody_is_told_of_them(world: Any, family: str, port: int) -> None:
    address = getattr(world.pods["b"], family)

    def send() -> None:
        with socket.socket(socket.AF_INET6 if family == "ip6" else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
            for _ in range(20):
                sock.sendto(_acknowledgement(address, port), (address, 0))

    before = world.redirect.counters()
    world.at(("b", "host"), send)
    world.becomes(lambda: world.redirect.counters()["stray"] - before["stray"] >= 20, True)
    assert world.counted(before) == {}


def _acknowledgement(address: str, port: int) -> bytes:
    """A segment of a connection of an address with itself that nobody knows any more."""

    def segment(checksum: int) -> bytes:
        return struct.pack("!HHIIBBHHH", 9, port, 1, 1, 5 << 4, 0x10, 1024, checksum, 0)

    summed = 2 * ip_address(address).packed + segment(0)
    words = struct.unpack(f"!{len(summed) // 2}H", summed)
    return segment(~((sum(words) + len(segment(0)) + socket.IPPROTO_TCP) % 0xFFFF) & 0xFFFF)


@FAMILIES
def test_tunnels_reach_the_proxy(world: Any, inbound: socket.socket, family: str) -> None:
    with world.proxy_listener("b", PORT_HBONE) as tunnels:
        world.dial(world.pods["c"].where, getattr(world.pods["b"], family), PORT_HBONE)
        tunnels.accept()


@FAMILIES
def test_a_tunnel_is_the_proxys_whoever_took_its_port_before(world: Any, family: str) -> None:
    address = getattr(world.pods["b"], family)
    with world.listen(world.pods["b"].where, PORT_HBONE) as squatter:
        with pytest.raises(ConnectionRefusedError):
            world.dial(world.pods["c"].where, address, PORT_HBONE)
        assert nobody_comes(squatter)
        assert [event.reason for event in world.events()] == [Reason.NO_LISTENER]


@FAMILIES
def test_a_closed_port_refuses_at_once_and_inside_the_pod(world: Any, family: str) -> None:
    source, target = getattr(world.pods["a"], family), getattr(world.pods["b"], family)

    wire = world.at(("b", "host"), lambda: _sniffer("eth0"))
    assert world.refused_at_once(("b", "proxy"), target, 9999, mark=MARK_PROXY, source=source)
    assert _tcp_seen(wire, 9999) == 0
    assert list(world.map("bypass").keys()) == []


@FAMILIES
def test_delivery_stays_inside_the_pod(world: Any, app: socket.socket, family: str) -> None:
    wire = world.at(("b", "host"), lambda: _sniffer("eth0"))
    source = getattr(world.pods["a"], family)
    client = world.dial(("b", "proxy"), getattr(world.pods["b"], family), 8080, mark=MARK_PROXY, source=source)
    accepted, _ = app.accept()
    accepted.sendall(b"x" * 100_000)
    accepted.close()
    received = 0
    while data := client.recv(65536):
        received += len(data)
    port = client.getsockname()[1]
    client.close()
    assert received == 100_000
    assert _tcp_seen(wire, port) == 0


def _sniffer(device: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
    sock.bind((device, 0x0003))
    sock.setblocking(False)
    return sock


def _tcp_seen(wire: socket.socket, port: int) -> int:
    """Segments from or to a port: what another test left may still come to its end."""
    seen = 0
    while True:
        try:
            packet, sender = wire.recvfrom(256)
        except BlockingIOError:
            return seen
        protocol, head = (packet[9], 20) if sender[1] == 0x0800 else (packet[6], 40) if sender[1] == 0x86DD else (0, 0)
        seen += protocol == socket.IPPROTO_TCP and port in struct.unpack_from("!HH", packet, head)


def test_an_address_that_is_not_registered_is_closed(world: Any, app: socket.socket, inbound: socket.socket) -> None:
    world.ip("b", "addr add 10.213.0.77/24 dev eth0")
    try:
        with pytest.raises(ConnectionRefusedError):
            world.dial(world.pods["c"].where, "10.213.0.77", 8080)
        assert [event.reason for event in world.events()] == [Reason.NO_POD]
        pod = world.pod("b")
        grown = replace(pod, addresses=(*pod.addresses, ip_address("10.213.0.77")))
        world.redirect.enrol(grown, world.namespaces["b"])
        world.dial(world.pods["c"].where, "10.213.0.77", 8080)  # the listener needs no second registration
        inbound.accept()
        world.redirect.enrol(pod, world.namespaces["b"])
        with pytest.raises(ConnectionRefusedError):
            world.dial(world.pods["c"].where, "10.213.0.77", 8080)
    finally:
        world.ip("b", "addr del 10.213.0.77/24 dev eth0")


def test_a_shared_port_does_not_share_the_connections(world: Any) -> None:
    """A pod's process with the proxy's user id could join its port; the hook names the proxy's own socket."""

    def shared(mark: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET6)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.bind(("::", PORT_INBOUND))
        sock.listen(64)
        sock.settimeout(DEADLINE_S)
        return sock

    real = world.at(("b", "proxy"), lambda: shared(MARK_PROXY))
    rogue = world.at(world.pods["b"].where, lambda: shared(0))
    with real, rogue:
        for _ in range(16):
            world.dial(world.pods["c"].where, world.pods["b"].ip4, 80)
            real.accept()
        assert nobody_comes(rogue)
        with world.at(("b", "proxy"), lambda: shared(MARK_PROXY)) as successor:
            world.dial(world.pods["c"].where, world.pods["b"].ip4, 80)
            successor.accept()


def test_a_deeper_cgroup_is_known_by_its_ancestors(world: Any, app: socket.socket, inbound: socket.socket) -> None:
    deep = world.cgroup / "pods/c/container"
    deep.mkdir()
    try:
        world.dial(("node", "pods/c/container"), world.pods["b"].ip4, 8080)
        inbound.accept()
    finally:
        os.rmdir(deep)


def test_a_full_bypass_refuses(world: Any, app: socket.socket, inbound: socket.socket) -> None:
    bypass = world.map("bypass")
    keys = [number.to_bytes(4, "little") + bytes(bypass.key_size - 4) for number in range(1, bypass.capacity + 1)]
    for key in keys:
        bypass.put(key, bytes(8))
    try:
        before = world.redirect.counters()
        with pytest.raises(OSError) as refused:
            source = world.pods["a"].ip4
            world.dial(("b", "proxy"), world.pods["b"].ip4, 8080, mark=MARK_PROXY, source=source)
        assert refused.value.errno == errno.EHOSTUNREACH
        assert world.counted(before)["bypass_full"] == 1
        assert nobody_comes(app)
        assert nobody_comes(inbound)
    finally:
        for key in keys:
            bypass.delete(key)
