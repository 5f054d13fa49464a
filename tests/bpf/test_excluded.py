"""What is excluded from capture travels as if there were no mesh, is told of, and nothing beside it is let out."""

import socket
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from bpf import layout
from bpf.excluded import NODE
from bpf.layout import Reason
from mesh.exclusions import MAX_ENTRIES, NOTHING, Exclusions

pytestmark = pytest.mark.kernel


@pytest.fixture
def server(world: Any) -> Iterator[socket.socket]:
    """A listener outside of the mesh, on pod c, port 5432."""
    with world.listen(world.pods["c"].where, 5432) as listener:
        yield listener


@pytest.fixture(autouse=True)
def nothing_for_the_node(world: Any) -> Iterator[None]:
    yield
    world.redirect.exclude(NOTHING)


def dial_c(world: Any, family: str) -> socket.socket:
    place = world.pods["c"]
    address = {"ip4": place.ip4, "ip6": place.ip6, "mapped": "::ffff:" + place.ip4}[family]
    return world.dial(world.pods["a"].where, address, 5432)


EXCLUDED = [
    (Exclusions(outbound_ports=(5432,)), "ip4"),
    (Exclusions(outbound_ports=(5432,)), "ip6"),
    (Exclusions(outbound_ranges=(ip_network("10.213.0.4/32"),)), "ip4"),
    (Exclusions(outbound_ranges=(ip_network("10.213.0.0/16"),)), "mapped"),
    (Exclusions(outbound_ranges=(ip_network("0.0.0.0/0"),)), "ip4"),
    (Exclusions(outbound_ranges=(ip_network("fd13::/16"),)), "ip6"),
    (Exclusions(outbound_ranges=(ip_network("::/0"),)), "ip6"),
]


@pytest.mark.parametrize(("exclusions", "family"), EXCLUDED)
@pytest.mark.parametrize("of_node", [False, True])
def test_what_is_excluded_outbound_leaves_as_it_is_and_is_told_of(
    world: Any, outbound: socket.socket, server: socket.socket, exclusions: Exclusions, family: str, of_node: bool
) -> None:
    world.redirect.exclude(exclusions if of_node else NOTHING)
    world.enrol("a", exclusions=NOTHING if of_node else exclusions)
    before = world.redirect.counters()
    client = dial_c(world, family)
    accepted, peer = server.accept()
    accepted.sendall(b"plain")
    assert client.recv(16) == b"plain" and peer[1] == client.getsockname()[1]
    assert world.counted(before) == {"excluded": 1} and world.tag(client) is None
    (event,) = world.events()
    assert (event.reason, event.refused, event.destination_port) == (Reason.EXCLUDED, False, 5432)
    assert (event.netns_cookie, event.source_port) == (world.cookie("a"), client.getsockname()[1])


@pytest.mark.parametrize(
    ("exclusions", "family"),
    [
        (Exclusions(outbound_ports=(5431,)), "ip4"),
        (Exclusions(inbound_ports=(5432,)), "ip4"),
        (Exclusions(all_inbound=True), "ip4"),
        (Exclusions(outbound_ranges=(ip_network("10.213.0.5/32"), ip_network("10.212.0.0/16"))), "ip4"),
        (Exclusions(outbound_ranges=(ip_network("::/0"),)), "ip4"),
        (Exclusions(outbound_ranges=(ip_network("::/0"),)), "mapped"),
        (Exclusions(outbound_ranges=(ip_network("0.0.0.0/0"),)), "ip6"),
    ],
)
def test_what_is_not_excluded_is_captured(
    world: Any, outbound: socket.socket, server: socket.socket, exclusions: Exclusions, family: str
) -> None:
    world.enrol("a", exclusions=exclusions)
    client = dial_c(world, family)
    assert outbound.accept()[1][1] == client.getsockname()[1]
    assert client.getpeername()[1] == 5432


def test_one_pods_exclusions_are_not_anothers(world: Any, outbound: socket.socket, server: socket.socket) -> None:
    everywhere = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    world.enrol("b", exclusions=Exclusions((5432,), everywhere, (5432,), all_inbound=True))
    dial_c(world, "ip4")
    assert outbound.accept()


def test_an_exclusion_that_is_taken_back_captures_again(world: Any, outbound: socket.socket, server: socket.socket) -> None:
    exclusions = Exclusions((5432,), (ip_network("10.213.0.0/16"),))
    world.enrol("a", exclusions=exclusions)
    kept = dial_c(world, "ip4")
    world.enrol("a")
    assert dial_c(world, "ip4") and outbound.accept()
    server.accept()[0].sendall(b"goes on")
    assert kept.recv(16) == b"goes on"


@pytest.mark.parametrize("family", ["ip4", "ip6"])
@pytest.mark.parametrize(
    ("of_pod", "of_node"),
    [
        (Exclusions(inbound_ports=(8080,)), NOTHING),
        (Exclusions(all_inbound=True), NOTHING),
        (NOTHING, Exclusions(inbound_ports=(8080,))),
    ],
)
def test_what_is_excluded_inbound_reaches_the_app_and_is_told_of(
    world: Any, inbound: socket.socket, app: socket.socket, of_pod: Exclusions, of_node: Exclusions, family: str
) -> None:
    world.enrol("b", exclusions=of_pod)
    world.redirect.exclude(of_node)
    client = world.dial(world.pods["c"].where, getattr(world.pods["b"], family), 8080)
    assert app.accept()[1][1] == client.getsockname()[1]
    (event,) = world.events()
    assert (event.reason, event.netns_cookie, event.destination_port) == (Reason.EXCLUDED, world.cookie("b"), 8080)


def test_what_is_not_excluded_inbound_goes_to_the_proxy(world: Any, inbound: socket.socket, app: socket.socket) -> None:
    world.enrol("b", exclusions=Exclusions(outbound_ports=(8080,), inbound_ports=(8081,)))
    world.dial(world.pods["c"].where, world.pods["b"].ip4, 8080)
    assert inbound.accept()


@pytest.mark.parametrize("port", [layout.PORT_OUTBOUND, layout.PORT_INBOUND])
def test_the_proxys_ports_stay_closed_whatever_is_excluded(world: Any, inbound: socket.socket, port: int) -> None:
    world.enrol("b", exclusions=Exclusions(all_inbound=True))
    with pytest.raises(ConnectionRefusedError):
        world.dial(world.pods["c"].where, world.pods["b"].ip4, port)


def test_the_kernel_tells_what_is_excluded_and_withdrawing_leaves_none(world: Any) -> None:
    ranges = (ip_network("0.0.0.0/0"), ip_network("10.0.0.0/8"), ip_network("::/0"), ip_network("fd00::1/128"))
    full = Exclusions(tuple(range(1, 1 + MAX_ENTRIES)), ranges, (9100,), all_inbound=True)
    world.enrol("a", exclusions=full)
    world.redirect.exclude(Exclusions((53,)))
    assert {one.pod.uid: one.pod.exclusions for one in world.redirect.enrolled()} == {"uid-a": full, "uid-b": NOTHING}
    assert world.redirect.excluded() == Exclusions((53,))
    world.withdraw("a")
    world.redirect.withdraw("uid-nobody", NODE)  # a link without a pod has no cookie: the node's lists are not its own
    assert world.redirect.excluded() == Exclusions((53,))
    assert {fill.name: fill.used for fill in world.redirect.fill() if "excluded" in fill.name} == {
        "excluded_ports": 1,
        "excluded_ranges": 0,
    }


def test_a_full_map_refuses_the_pod_and_excludes_nothing(world: Any) -> None:
    table = world.map("excluded_ports")
    others = [bytes(layout.ExcludedPort(1 << 40, port, layout.EXCLUDED_INBOUND)) for port in range(table.capacity)]
    for key in others:
        table.put(key, (1).to_bytes(4, "little"))
    try:
        with pytest.raises(OSError, match="map excluded_ports"):
            world.enrol("a", exclusions=Exclusions((5432,)))
        assert all(one.pod.exclusions == NOTHING for one in world.redirect.enrolled())
    finally:
        for key in others:
            table.delete(key)
