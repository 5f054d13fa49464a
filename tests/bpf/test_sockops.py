"""The life of what a connection leaves in the maps: nothing outlives it, and what cannot be kept is refused."""

import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from bpf.events import Event
from bpf.layout import HANDSHAKE_CAPACITY, MARK_PROXY, POD_HANDSHAKES, PORT_OUTBOUND, Reason, Usage
from bpf.sock_destroy import connections, destroy
from tests.bpf.conftest import DEADLINE_S

pytestmark = pytest.mark.kernel


def usage_of(world: Any, name: str) -> tuple[int, int, int]:
    (found,) = [usage for usage in world.redirect.usage() if usage.netns_cookie == world.cookie(name)]
    return found.live4, found.live6, found.handshakes


def left_over(world: Any) -> int:
    return sum(fill.used for fill in world.redirect.fill() if fill.name in ("origins", "bypass"))


def test_live_connections_are_counted(world: Any, outbound: socket.socket) -> None:
    held = [world.dial(world.pods["a"].where, address, 80) for address in ("10.9.8.7", "::ffff:10.9.8.7", "2001:db8::7")]
    accepted = [outbound.accept()[0] for _ in held]
    world.becomes(lambda: usage_of(world, "a"), (2, 1, 0))
    for sock in (*accepted, *held):
        sock.close()
    world.becomes(lambda: usage_of(world, "a"), (0, 0, 0))
    world.becomes(lambda: left_over(world), 0)


@pytest.mark.parametrize("how", ["fin", "reset", "destroyed"])
def test_an_unaccepted_connection_leaves_nothing(world: Any, how: str) -> None:
    """The proxy hangs: its queue is full, and clients give up before it accepts."""
    hung = world.at(("a", "proxy"), lambda: _listener_with_backlog(0))
    clients = [world.at(world.pods["a"].where, lambda: _begun("10.9.8.7")) for _ in range(4)]
    world.becomes(lambda: left_over(world) > 0, True)
    world.becomes(lambda: usage_of(world, "a")[0], 4)
    if how == "destroyed":
        namespace = world.namespaces["a"]
        ours = {client.getsockname()[1] for client in clients}
        chosen = [found for found in connections(namespace, world.home) if found.local_port in ours]
        assert destroy(namespace, world.home, chosen) == len(chosen) == 4
    for client in clients:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    hung.close()
    world.becomes(lambda: left_over(world), 0)
    world.becomes(lambda: usage_of(world, "a"), (0, 0, 0))


def _listener_with_backlog(backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_PROXY)
    sock.bind(("::", PORT_OUTBOUND))
    sock.listen(backlog)
    return sock


def _begun(address: str) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    assert sock.connect_ex((address, 80)) in (0, errno.EINPROGRESS)
    return sock


def test_a_full_map_refuses_and_evicts_nobody(world: Any, outbound: socket.socket) -> None:
    world.becomes(lambda: left_over(world), 0)
    origins = world.map("origins")
    keys = [number.to_bytes(8, "little") + bytes(origins.key_size - 8) for number in range(1, HANDSHAKE_CAPACITY + 1)]
    for key in keys:
        origins.put(key, bytes(origins.value_size))
    try:
        before = world.redirect.counters()
        with pytest.raises(OSError) as refused:
            world.dial(world.pods["a"].where, "10.9.8.7", 80)
        assert refused.value.errno == errno.EHOSTUNREACH
        assert world.counted(before) == {"captured": 1, "full": 1}
        (event,) = world.told()
        assert (event.reason, str(event.destination), event.destination_port) == (Reason.FULL, "10.9.8.7", 80)
        assert left_over(world) == HANDSHAKE_CAPACITY
        assert usage_of(world, "a") == (0, 0, 0)
    finally:
        for key in keys:
            origins.delete(key)
    world.dial(world.pods["a"].where, "10.9.8.7", 80)
    outbound.accept()


def test_a_pod_cannot_take_more_than_its_share(world: Any, outbound: socket.socket) -> None:
    key = world.cookie("a").to_bytes(8, "little")
    world.map("usage").put(key, bytes(Usage(0, 0, POD_HANDSHAKES)))
    with pytest.raises(OSError) as refused:
        world.dial(world.pods["a"].where, "10.9.8.7", 80)
    assert refused.value.errno == errno.EHOSTUNREACH
    assert [event.reason for event in world.told()] == [Reason.FULL]


def test_an_untagged_listener_is_not_registered(world: Any) -> None:
    with world.listen(world.pods["a"].where, PORT_OUTBOUND, mark=MARK_PROXY):
        assert world.redirect.listening(world.cookie("a")) == frozenset()


def test_a_listener_that_came_before_the_pod_is_not_registered(world: Any) -> None:
    world.withdraw("a")
    with world.proxy_listener("a", PORT_OUTBOUND):
        world.enrol("a")
        assert world.redirect.listening(world.cookie("a")) == frozenset()


def test_events_are_limited_and_the_rest_counted(world: Any) -> None:
    before = world.redirect.counters()

    def flood() -> int:
        refused = 0
        for _ in range(3000):
            with socket.socket() as sock:
                refused += sock.connect_ex((world.pods["b"].ip4, 8080)) == errno.ECONNREFUSED
        return refused

    assert world.at(world.pods["c"].where, flood) == 3000

    def accounted_for(told: list[Event]) -> bool:
        counted = world.counted(before)
        refused = counted["no_listener"]  # more than were dialled where a busy machine lost an answer and the SYN came again
        return refused >= 3000 and len(told) + counted.get("events_limited", 0) + counted.get("events_lost", 0) == refused

    assert accounted_for(world.told(until=accounted_for))


def test_a_crowd_leaves_nothing(world: Any, outbound: socket.socket, tmp_path: Path) -> None:
    """Four processes dial at once, close in every way there is, and some never wait for an answer."""

    def dial_many() -> int:
        for number in range(300):
            sock = socket.socket(socket.AF_INET6 if number % 3 == 0 else socket.AF_INET)
            sock.settimeout(DEADLINE_S)
            sock.connect(("2001:db8::7" if number % 3 == 0 else "10.9.8.7", 80))
            try:
                sock.sendall(b"x")
                if number % 2:
                    sock.recv(1)
            except ConnectionError:
                pass  # the proxy closes without having read: a reset
            if number % 5 == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
        return 300

    def accept_many() -> int:
        taken = 0
        while True:
            try:
                accepted = outbound.accept()[0]
            except TimeoutError:
                if over.exists():
                    return taken
                continue
            taken += world.tag(accepted) is not None
            accepted.close()

    over = tmp_path / "over"
    outbound.settimeout(0.1)
    before = world.redirect.counters()
    proxies = [world.begin(("a", "proxy"), accept_many) for _ in range(2)]
    apps = [world.begin(world.pods["a"].where, dial_many) for _ in range(4)]
    assert [app() for app in apps] == [300] * 4
    over.touch()
    assert sum(proxy() for proxy in proxies) <= 1200
    assert world.counted(before) == {"captured": 1200}
    assert world.events(timeout=0.1) == []
    world.becomes(lambda: left_over(world), 0)
    world.becomes(lambda: usage_of(world, "a"), (0, 0, 0))
