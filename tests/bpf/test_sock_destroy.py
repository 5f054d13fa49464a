"""Listing and closing a pod's live connections."""

import os
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from bpf.sock_destroy import State, connections, destroy
from tests.bpf.conftest import DEADLINE_S

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("address", ["ip4", "ip6", "mapped"])
def test_a_live_connection_is_closed_and_others_stay(world: Any, address: str) -> None:
    place = world.pods["c"]
    target = {"ip4": place.ip4, "ip6": place.ip6, "mapped": "::ffff:" + place.ip4}[address]
    namespace = world.namespaces["c"]
    with world.listen(place.where, 80) as server:
        chosen, kept = (world.dial(("node", "host"), target, 80) for _ in range(2))
        accepted = {peer[1]: sock for sock, peer in (server.accept(), server.accept())}
        port = chosen.getsockname()[1]
        chosen_there, kept_there = accepted[port], accepted[kept.getsockname()[1]]
        listed = {found.remote_port: found for found in connections(namespace, world.home)}
        found = listed[port]
        assert (str(found.local), found.local_port, found.state) == (target.removeprefix("::ffff:"), 80, State.ESTABLISHED)
        assert found.remote == ip_address(chosen.getsockname()[0].removeprefix("::ffff:"))
        assert found.inode == _inode(chosen_there)
        assert destroy(namespace, world.home, [found]) == 1
        with pytest.raises(ConnectionAbortedError):
            chosen_there.recv(1)
        with pytest.raises(ConnectionResetError):
            chosen.recv(1)
        assert destroy(namespace, world.home, [found]) == 0
        kept.sendall(b"still here")
        assert kept_there.recv(16) == b"still here"


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_what_a_listener_accepts_has_its_mark(world: Any) -> None:
    namespace = world.namespaces["c"]
    world.becomes(lambda: connections(namespace, world.home), [])
    with world.listen(world.pods["c"].where, 80) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x539)
        with world.dial(("node", "host"), world.pods["c"].ip4, 80), server.accept()[0]:
            assert [one.mark for one in connections(namespace, world.home)] == [0x539]


@pytest.mark.parametrize("address", ["ip4", "ip6"])
def test_a_connection_whose_handshake_is_under_way_is_listed_and_closed(world: Any, address: str) -> None:
    """It would be there when it is too late to look: a client may take its time, and a listener have it wait."""
    namespace, place = world.namespaces["c"], world.pods["c"]
    world.becomes(lambda: connections(namespace, world.home), [])
    with world.listen(place.where, 80) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        with world.dial(("node", "host"), getattr(place, address), 80) as client:
            [found] = connections(namespace, world.home)
            assert (found.state, found.remote_port) == (State.SYN_RECV, client.getsockname()[1])
            assert (found.local, found.local_port, found.mark) == (ip_address(getattr(place, address)), 80, 0)
            assert destroy(namespace, world.home, [found]) == 1
            assert connections(namespace, world.home) == []
            client.sendall(b"too late")
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_listeners_are_listed_only_when_asked_for(world: Any) -> None:
    namespace = world.namespaces["c"]
    world.becomes(lambda: connections(namespace, world.home), [])  # those of others have ended
    with world.listen(world.pods["c"].where, 4321):
        assert connections(namespace, world.home) == []
        assert [found.local_port for found in connections(namespace, world.home, [State.LISTEN])] == [4321]


def test_more_connections_than_one_answer_holds(world: Any) -> None:
    world.becomes(lambda: connections(world.namespaces["c"], world.home), [])
    with world.listen(world.pods["c"].where, 80) as server:
        held = []
        for _ in range(300):
            with world.entered("c"):
                held.append(socket.create_connection((world.pods["c"].ip4, 80), timeout=DEADLINE_S))
            held.append(server.accept()[0])
        found = connections(world.namespaces["c"], world.home)
        assert len(found) == 600
        assert destroy(world.namespaces["c"], world.home, found) >= 300
        for sock in held:
            sock.close()
