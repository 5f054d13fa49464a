"""The agent's view: pods in and out, and nothing left behind."""

import os
import socket
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from bpf.layout import PORT_INBOUND, PORT_OUTBOUND
from bpf.redirect import PodRedirect
from wire.cgroup import cgroup_id

pytestmark = pytest.mark.kernel


def test_the_kernel_tells_what_is_enrolled(world: Any) -> None:
    found = {entry.pod.uid: entry for entry in world.redirect.enrolled()}
    assert set(found) == {"uid-a", "uid-b"}
    assert found["uid-a"].pod == world.pod("a")
    assert found["uid-a"].steered


def test_enrolling_again_changes_nothing(world: Any, inbound: socket.socket) -> None:
    link = world.bpffs / "links/uid-b"
    before = (link.stat().st_ino, world.redirect.enrolled())
    world.enrol("b")
    assert (link.stat().st_ino, world.redirect.enrolled()) == before
    world.dial(world.pods["c"].where, world.pods["b"].ip4, 80)
    inbound.accept()


def test_withdrawing_leaves_nothing(world: Any, outbound: socket.socket, inbound: socket.socket) -> None:
    live = world.dial(world.pods["a"].where, "10.9.8.7", 80)
    accepted = outbound.accept()[0]
    world.withdraw("a")
    world.withdraw("b")
    assert world.redirect.enrolled() == []
    world.becomes(lambda: {fill.name for fill in world.redirect.fill() if fill.used}, {"proxies"})
    assert list((world.bpffs / "links").iterdir()) == []
    live.sendall(b"goes on")
    assert accepted.recv(16) == b"goes on"
    with world.listen(world.pods["c"].where, 80) as server:
        world.dial(world.pods["a"].where, world.pods["c"].ip4, 80)
        server.accept()
    with world.listen(world.pods["b"].where, 80) as app:
        world.dial(world.pods["c"].where, world.pods["b"].ip4, 80)
        app.accept()
    world.redirect.withdraw("uid-a", world.cookie("a"))


def test_connections_from_before_a_second_enrolment_do_not_disturb_the_count(world: Any, outbound: socket.socket) -> None:
    old = world.dial(world.pods["a"].where, "10.9.8.7", 80)
    world.withdraw("a")
    world.enrol("a")
    old.close()
    (usage,) = [usage for usage in world.redirect.usage() if usage.netns_cookie == world.cookie("a")]
    assert (usage.live4, usage.handshakes) == (0, 0)


def test_a_uid_in_another_namespace_moves_the_link(world: Any) -> None:
    world.redirect.withdraw("uid-b", world.cookie("b"))
    moved = PodRedirect("uid-a", world.cookie("c"), (ip_address(world.pods["c"].ip4),))
    try:
        world.redirect.enrol(moved, world.namespaces["c"])
        with pytest.raises(ConnectionRefusedError):
            world.dial(("node", "pods/hostnet"), world.pods["c"].ip4, 80)
        with world.listen(world.pods["a"].where, 80) as app:
            world.dial(("node", "pods/hostnet"), world.pods["a"].ip4, 80)
            app.accept()
    finally:
        world.redirect.withdraw("uid-a", world.cookie("c"))


def test_a_pod_whose_namespace_is_gone_is_seen_and_withdrawn(world: Any) -> None:
    world.add_namespace("gone")
    descriptor = world.namespaces["gone"]
    cookie = world.cookie("gone")
    world.redirect.enrol(PodRedirect("uid-gone", cookie, (ip_address("10.213.0.99"),)), descriptor)
    os.close(descriptor)
    os.system(f"ip netns del {world.prefix}-gone")
    del world.namespaces["gone"]
    world.events(until=lambda _: not _steered(world, "uid-gone"), timeout=100)  # the kernel takes its time
    assert not _steered(world, "uid-gone")
    world.redirect.withdraw("uid-gone", cookie)
    assert {entry.pod.uid for entry in world.redirect.enrolled()} == {"uid-a", "uid-b"}


def _steered(world: Any, uid: str) -> bool:
    return next(entry.steered for entry in world.redirect.enrolled() if entry.pod.uid == uid)


def test_one_proxy_after_the_other(world: Any) -> None:
    successor = world.cgroup / "proxy2"
    successor.mkdir()
    first, second = cgroup_id(world.cgroup / "proxy"), cgroup_id(successor)
    try:
        world.redirect.add_proxy(second)
        assert world.redirect.proxies() == {first, second}
        with world.proxy_listener("a", PORT_OUTBOUND) as old:
            with world.listen(("a", "proxy2"), PORT_INBOUND):
                assert world.redirect.listening(world.cookie("a")) == {PORT_OUTBOUND, PORT_INBOUND}
            world.redirect.remove_proxy(first)
            world.dial(world.pods["a"].where, "10.9.8.7", 80)
            old.accept()  # it drains: sockets that it made stay its own
        with world.proxy_listener("a", PORT_OUTBOUND):
            assert world.redirect.listening(world.cookie("a")) == frozenset()
        world.redirect.remove_proxy(second)
        assert world.redirect.proxies() == frozenset()
    finally:
        world.redirect.add_proxy(first)
        if second in world.redirect.proxies():
            world.redirect.remove_proxy(second)
        successor.rmdir()


def test_nobody_is_exempt_before_the_node_is_known(world: Any, inbound: socket.socket) -> None:
    world.redirect.set_node(0, 0)
    try:
        world.dial(("node", "host"), world.pods["b"].ip4, 80)
        inbound.accept()
    finally:
        world.redirect.set_node(world.cookie("node"), cgroup_id(world.cgroup / "pods"))


def test_programs_tell_whether_they_are_attached(world: Any) -> None:
    states = {state.name: state.attached for state in world.redirect.programs()}
    assert states.pop("lookup") == 2
    assert set(states.values()) == {1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uid": "../../etc"}, "letters, digits"),
        ({"uid": "u" * 64}, "at most 63"),
        ({"netns_cookie": 0}, "no netns cookie"),
        ({"addresses": (ip_address("127.0.0.1"),)}, "cannot be a pod's address"),
        ({"addresses": (ip_address("fe80::1"),)}, "not link-local"),
        ({"addresses": ()}, "not link-local"),
    ],
)
def test_what_cannot_be_a_pod_is_refused(world: Any, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        world.redirect.enrol(replace(world.pod("a"), **change), world.namespaces["a"])
