"""The contract: for each kind of socket, who makes it, which mark it gets, what it carries, and what sk_lookup answers.

| socket          | made by                          | mark            | carries  | its SYN reaches              |
|-----------------|----------------------------------|-----------------|----------|------------------------------|
| app             | a pod's cgroup, in its namespace | the app's own   | CLIENT   | the proxy's 15001 in its pod |
| proxy to app    | the proxy's cgroup, in a pod     | 0x539 -> 0x111  | PROXY    | the app's own listener       |
| proxy outbound  | the proxy's cgroup, in a pod     | 0x539           | PROXY    | whatever it dials            |
| proxy listener  | the proxy's cgroup, in a pod     | 0x539           | PROXY    | -                            |
| host            | the node's cgroup and namespace  | none            | HOST     | the app's own listener       |
| foreign         | anybody else                     | any             | nothing  | the proxy's 15006 in the pod |
"""

import socket
from typing import Any

import pytest

from bpf.layout import MARK_DELIVER, MARK_PROXY, PORT_INBOUND, PORT_OUTBOUND, Reason, Role
from wire.cgroup import cgroup_id

pytestmark = pytest.mark.kernel
SO_BINDTOIFINDEX = 62
FAMILIES = pytest.mark.parametrize("family", ["ip4", "ip6"])


def mark_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)


@FAMILIES
def test_app(world: Any, outbound: socket.socket, family: str) -> None:
    before = world.redirect.counters()
    client = world.dial(world.pods["a"].where, getattr(world.pods["c"], family), 80)
    accepted, peer = outbound.accept()
    assert world.tag(client).role == Role.CLIENT
    assert world.tag(accepted).role == Role.ACCEPTED
    assert world.tag(accepted).cgroup == cgroup_id(world.cgroup / "pods/a")
    assert mark_of(client) == 0
    assert peer[1] == client.getsockname()[1]
    assert world.counted(before) == {"captured": 1}


@FAMILIES
def test_proxy_to_app(world: Any, app: socket.socket, inbound: socket.socket, family: str) -> None:
    before = world.redirect.counters()
    source = getattr(world.pods["a"], family)
    client = world.dial(("b", "proxy"), getattr(world.pods["b"], family), 8080, mark=MARK_PROXY, source=source)
    accepted, peer = app.accept()
    assert peer[0].removeprefix("::ffff:") == source
    assert world.tag(client) is None, "nothing is asked of it after its SYN"
    assert mark_of(client) == MARK_DELIVER
    device = client.getsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX)
    assert device == (socket.if_nametoindex("lo") if family == "ip4" else 0), "one route for all such sockets"
    assert mark_of(accepted) == MARK_DELIVER
    assert world.tag(accepted) is None
    assert world.counted(before) == {"delivered": 1}
    accepted.sendall(b"answer")
    assert client.recv(16) == b"answer"


@FAMILIES
def test_proxy_to_app_in_its_own_name(world: Any, app: socket.socket, inbound: socket.socket, family: str) -> None:
    """The answer to an address of the pod is on another way than that to a client's."""
    own = getattr(world.pods["b"], family)
    for source in (own, None):
        client = world.dial(("b", "proxy"), own, 8080, mark=MARK_PROXY, source=source)
        accepted, peer = app.accept()
        assert peer[0].removeprefix("::ffff:") == own
        assert (mark_of(client), client.getsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX)) == (MARK_DELIVER, 0)
        accepted.sendall(b"answer")
        assert client.recv(16) == b"answer"


@FAMILIES
def test_proxy_outbound(world: Any, outbound: socket.socket, family: str) -> None:
    with world.listen(world.pods["c"].where, 80) as server:
        client = world.dial(("a", "proxy"), getattr(world.pods["c"], family), 80, mark=MARK_PROXY)
        _, peer = server.accept()
        assert peer[0].removeprefix("::ffff:") == getattr(world.pods["a"], family)
        assert world.tag(client) is None
        assert mark_of(client) == MARK_PROXY


def test_proxy_listener(world: Any, outbound: socket.socket) -> None:
    cookie = world.cookie("a")
    assert world.tag(outbound).role == Role.PROXY
    assert mark_of(outbound) == MARK_PROXY
    assert world.redirect.listening(cookie) == {PORT_OUTBOUND}
    with world.proxy_listener("a", PORT_INBOUND):
        assert world.redirect.listening(cookie) == {PORT_OUTBOUND, PORT_INBOUND}
    assert world.redirect.listening(cookie) == {PORT_OUTBOUND}


@FAMILIES
def test_host(world: Any, app: socket.socket, inbound: socket.socket, family: str) -> None:
    address = getattr(world.pods["b"], family)
    client = world.dial(("node", "host"), address, 8080)
    app.accept()
    assert world.tag(client).role == Role.HOST
    assert mark_of(client) == 0
    (event,) = world.events()
    assert (event.reason, event.refused) == (Reason.HOST, False)
    assert (event.netns_cookie, event.cgroup_id) == (world.cookie("node"), cgroup_id(world.cgroup / "host"))
    assert (str(event.source), event.source_port) == client.getsockname()[:2]
    assert (str(event.destination), event.destination_port) == (address, 8080)


@FAMILIES
@pytest.mark.parametrize(
    ("place", "what"),
    [
        (("c", "pods/c"), "a pod that is not enrolled"),
        (("c", "host"), "a process of the node in a foreign namespace"),
        (("node", "pods/hostnet"), "a hostNetwork pod"),
        (("node", "proxy"), "the proxy outside of its pods"),
    ],
)
def test_foreign(world: Any, app: socket.socket, inbound: socket.socket, place: Any, what: str, family: str) -> None:
    before = world.redirect.counters()
    client = world.dial(place, getattr(world.pods["b"], family), 8080)
    accepted, peer = inbound.accept()
    assert accepted.getsockname()[0].removeprefix("::ffff:") == getattr(world.pods["b"], family)
    assert accepted.getsockname()[1] == 8080
    assert peer[1] == client.getsockname()[1]
    assert world.tag(client) is None or world.tag(client).role == Role.PROXY
    assert world.counted(before) == {"steered": 1}
