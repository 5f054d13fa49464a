"""A proxy that ends in order: what is open goes on, what is new goes to its successor, and the other kind plays along."""

import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.puppet import Wire
from tests.lab.world import eventually
from tests.peer.cross import DRAIN_S, ECHO_PORT, VERSIONS, CrossMesh
from tests.peer.successor import Successor

pytestmark = [pytest.mark.peer, pytest.mark.timeout(90)]

KINDS = {"a": "weft", "b": "Istio"}


@pytest.fixture(params=KINDS, ids=KINDS.values())
def node(request: pytest.FixtureRequest, cross: CrossMesh) -> Iterator[str]:
    """The node whose proxy ends."""
    yield request.param
    cross.await_ready()
    eventually(lambda: set(fates(cross, request.param).values()) == {"answered"}, 20)


def paths(of: str) -> dict[str, tuple[str, str]]:
    """By mutual TLS to a node's server and from its client, and plain text to its server."""
    other = "ab".replace(of, "")
    return {
        "to it": (f"client-{other}", f"server-{of}"),
        "from it": (f"client-{of}", f"server-{other}"),
        "within it": (f"client-{of}", f"server-{of}"),
        "plain to it": (f"outsider-{other}", f"server-{of}"),
    }


def fates(cross: CrossMesh, of: str) -> dict[str, str]:
    return {
        f"{path}, IPv{version}": cross.puppet(client).fate(cross.address(server, version), ECHO_PORT)
        for path, (client, server) in paths(of).items()
        for version in VERSIONS
    }


def open_wires(cross: CrossMesh, of: str) -> dict[str, Wire]:
    wires = {}
    for path, (client, server) in paths(of).items():
        wires[path] = cross.puppet(client).connect(cross.address(server), ECHO_PORT)
        assert wires[path].says("before")
    return wires


def terminate(proxy: int) -> None:
    """Tell it to end, and let its peers hear of it: Istio's loses a stream that crosses the first GOAWAY."""
    os.kill(proxy, signal.SIGTERM)
    time.sleep(0.1)


def command(cross: CrossMesh, of: str) -> tuple[str, ...]:
    return tuple(shlex.split(cross.command)) if of == "b" else ()


def test_a_drain_beside_a_successor_fails_nobody(cross: CrossMesh, node: str, tmp_path: Path) -> None:
    """The old one goes as soon as its last stream has gone: its peers opened no other on it, and let go of the tunnel."""
    wires = open_wires(cross, node)
    proxy = cross.program(node, "ztunnel")
    with Successor(cross, node, command(cross, node), tmp_path):
        terminate(proxy)
        began = time.monotonic()
        while time.monotonic() - began < 1:
            found = fates(cross, node)
            assert set(found.values()) == {"answered"}, found
        for path, wire in wires.items():
            assert wire.says("during"), path
            wire.close()
        eventually(lambda: proxy not in cross.processes(node, "ztunnel"), 3)
        cross.await_ready()
    assert set(fates(cross, node).values()) == {"answered"}


def test_without_a_successor_what_is_open_goes_on_and_what_is_new_is_refused(cross: CrossMesh, node: str) -> None:
    """At once, and nothing is left waiting on a connection that takes no more; then the next proxy serves."""
    wires = open_wires(cross, node)
    proxy = cross.program(node, "ztunnel")
    terminate(proxy)
    eventually(lambda: set(fates(cross, node).values()) <= {"refused", "reset", "end"})
    for path, wire in wires.items():
        assert wire.says("during"), path
        wire.close()
    eventually(lambda: proxy not in cross.processes(node, "ztunnel"), 3)


def test_a_killed_proxy_is_dialled_anew(cross: CrossMesh, node: str) -> None:
    """Its peers take the ends of its connections for what they are."""
    wires = open_wires(cross, node)
    cross.kill_proxy(node)
    for path, wire in wires.items():
        assert wire.ended() in ("reset", "end"), path


def test_the_deadline_ends_what_still_runs(cross: CrossMesh, node: str) -> None:
    wires = open_wires(cross, node)
    os.kill(cross.program(node, "ztunnel"), signal.SIGTERM)
    began = time.monotonic()
    for path, wire in wires.items():
        assert wire.ended(8) in ("reset", "end"), path
    assert DRAIN_S - 0.5 < time.monotonic() - began < DRAIN_S + 1.5
