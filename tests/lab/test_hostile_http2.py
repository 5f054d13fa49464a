"""A pod with a valid certificate attacks its neighbour's proxy: it loses its connection, and nobody beside it notices.

The victim's node serves, all the while: an application of the mesh with a lasting connection and new ones, and an honest
HBONE peer with a new stream every 10 ms on a standing connection and a new TLS connection every 150 ms.
"""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.world import eventually
from tests.lab.mesh import ECHO_PORT, NODES, Mesh, authentication, pod
from tests.lab.papers import LabAuthority, attacker_in, data, papers, text
from tests.ztunnel.test_http2 import hostile
from ztunnel import frames
from ztunnel.fields import literal
from ztunnel.frames import CLIENT_OPENING, DATA, END_HEADERS, GOAWAY, HEADERS, PING, PRIORITY, Code, frame, rst_stream, settings

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

HBONE, DEAF_PORT = 15008, 7001
OUTSIDE = ", istio.io/dataplane-mode: none"
TOPOLOGY = (
    NODES
    + pod("client", "a")
    + pod("attacker", "a", OUTSIDE)
    + pod("witness", "a", OUTSIDE)
    + pod("far", "b")
    + authentication("STRICT")
)
GROWTH_MIB = 16
CALM = Code.ENHANCE_YOUR_CALM
TAKEN = {"stream overflow"}
"""No violation where the application takes what comes; for one that does not, see below."""


class Victim:
    """The lab under attack, and all that must not notice."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.authority = LabAuthority(mesh)
        self.address = mesh.address("far")
        self.attacker, self.witness = attacker_in(mesh, "attacker"), attacker_in(mesh, "witness")
        self.client = mesh.puppet("client")
        self.block = self.connect(ECHO_PORT)
        self.papers = self._papers("attacker")
        self._load: int
        self._watch: int

    def _papers(self, name: str) -> dict[str, Any]:
        return papers(self.authority, f"spiffe://cluster.local/ns/shop/sa/{name}")

    def connect(self, port: int) -> bytes:
        """A request that the victim accepts."""
        return literal(b":method", b"CONNECT") + literal(b":authority", f"{self.address}:{port}".encode())

    def begin(self) -> None:
        """Let the good ones work."""
        opening, block = text(CLIENT_OPENING), text(self.block)
        self._watch = self.witness.do("watch", self.address, HBONE, self._papers("witness"), opening, block)
        self._load = self.client.do("steady", self.address, ECHO_PORT, "ping")
        self.past(5)

    def past(self, count: int) -> None:
        """Wait until the good ones have done some more."""
        before = self.client.do("progress", self._load)

        def more() -> bool:
            now = self.client.do("progress", self._load)
            return bool(min(now[kind] - before[kind] for kind in ("fresh", "kept")) >= count or now["failed"])

        eventually(more, 30)

    def finish(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the good ones saw: those of the mesh, and the honest peer."""
        return self.client.do("halt", self._load), self.witness.do("verdict", self._watch)

    def attack(self, attack: bytes, repeat: int = 1, read: bool = True) -> dict[str, Any]:
        """Say CLIENT_OPENING and the attack, `repeat` times: how it ended, with the code of GOAWAY."""
        shown, opening = self.papers, CLIENT_OPENING
        if repeat == 1:
            fate = self.attacker.do("speak", self.address, HBONE, shown, text(opening + attack), 1, read)
        else:
            number = self.attacker.do("open", self.address, HBONE, shown, text(opening))
            fate = self.attacker.do("insist", number, text(attack), repeat, read)
        assert fate["end"] in ("end", "reset"), fate
        return {**fate, "code": goaway_code(data(fate["said"]))}

    def told(self, fate: dict[str, Any], words: str) -> None:
        """An operator is told what became of that very attacker."""
        self.mesh.await_flow(words, "--from-ip", self.mesh.address("attacker"), "--from-port", str(fate["port"]))


class Memory:
    """The proportional set size of the victim's proxy, watched while a block runs. MiB."""

    def __init__(self, mesh: Mesh) -> None:
        self._pids = mesh.processes("b", "ztunnel")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.now()
        self.highest = list(self.before)

    def now(self) -> list[float]:
        return [_pss_mib(pid) for pid in self._pids]

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.highest = [max(pair) for pair in zip(self.highest, self.now(), strict=True)]

    @property
    def growth(self) -> float:
        return max(after - before for after, before in zip(self.highest, self.before, strict=True))

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _pss_mib(pid: int) -> float:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def goaway_code(said: bytes) -> int | None:
    place, code = 0, None
    while place + 9 <= len(said):
        length = int.from_bytes(said[place : place + 3], "big")
        if said[place + 3] == GOAWAY:
            code = frames.read_code(said, place + 13)
        place += 9 + length
    return code


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Mesh(TOPOLOGY) as mesh:
        mesh.puppet("far").echo(ECHO_PORT)
        made = Victim(mesh)
        made.begin()  # every worker has done everything once before its memory is looked at
        made.attack(frame(PING, 0, 0, bytes(8)) * 300)
        made.finish()
        yield made
        made.attacker.end()
        made.witness.end()


@pytest.fixture(autouse=True)
def nobody_else_notices(request: pytest.FixtureRequest, victim: Victim) -> Iterator[None]:
    pids = victim.mesh.processes("b", "ztunnel")
    victim.begin()
    with Memory(victim.mesh) as memory:
        yield
        victim.past(5)
    mesh_peers, honest = victim.finish()
    print(f"{request.node.name}: grew {memory.growth:.1f} MiB; {mesh_peers}; {honest}")
    assert mesh_peers["failed"] == 0, mesh_peers
    assert honest["failures"] == [] and honest["stream"]["count"] >= 5, honest
    assert memory.growth <= GROWTH_MIB, (memory.before, memory.highest)
    assert victim.mesh.processes("b", "ztunnel") == pids, "no process of the proxy has ended"


def test_every_violation_costs_its_own_connection_and_has_its_code(victim: Victim) -> None:
    for name, attack, code in hostile(victim.block):
        if name in TAKEN:
            continue
        fate = victim.attack(attack)
        assert fate["code"] == code, (name, fate)
        victim.told(fate, f"h2 failed: {code.name}: ")


FLOODS = {
    "PING": frame(PING, 0, 0, bytes(8)) * 100,
    "SETTINGS": settings([(3, 1)]) * 100,
    "PRIORITY": frame(PRIORITY, 0, 1, bytes(5)) * 100,
    "unknown frames": frame(0xBB, 0, 0, b"x") * 100,
    "header bombs": frame(HEADERS, END_HEADERS, 1, b"\x40\x01x\x7f\xa0\x1e" + b"y" * 3999 + b"\xbe" * 9000),
}


@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_without_an_end(victim: Victim, name: str, read: bool) -> None:
    """As much as the connection takes, whether the attacker reads the answers or not."""
    fate = victim.attack(FLOODS[name], 100_000, read)
    assert fate["code"] == CALM, fate
    assert fate["sent"] < 8 << 20, "it was cut off soon"
    victim.told(fate, "h2 failed: ENHANCE_YOUR_CALM: ")


@pytest.mark.parametrize("pattern", ["rapid reset", "streams", "refused streams", "empty DATA"])
def test_a_flood_of_streams(victim: Victim, pattern: str) -> None:
    sids = range(1, 8001, 2)
    if pattern == "empty DATA":
        flood = frame(HEADERS, END_HEADERS, 1, victim.block) + frame(DATA, 0, 1) * 4000
    else:
        block = victim.connect(15001) if pattern == "refused streams" else victim.block
        after = [rst_stream(sid, Code.CANCEL) if pattern == "rapid reset" else b"" for sid in sids]
        flood = b"".join(frame(HEADERS, END_HEADERS, sid, block) + end for sid, end in zip(sids, after, strict=True))
    fate = victim.attack(flood)
    assert fate["code"] == CALM, fate
    victim.told(fate, "h2 failed: ENHANCE_YOUR_CALM: too many ")


@pytest.mark.parametrize("port", [ECHO_PORT, DEAF_PORT], ids=["an application that answers", "one that does not read"])
def test_a_sender_that_ignores_flow_control_and_never_reads(victim: Victim, port: int) -> None:
    with victim.mesh.puppet("far").listen(DEAF_PORT):
        opening = frame(HEADERS, END_HEADERS, 1, victim.connect(port))
        fate = victim.attack(opening + frame(DATA, 0, 1, bytes(16 << 10)) * 4096, read=False)
    assert fate["sent"] < 48 << 20, "what the kernels hold on the way, and one window"
    victim.told(fate, "h2 failed: FLOW_CONTROL_ERROR: ")


def test_a_window_that_is_kept_shut(victim: Victim) -> None:
    """A peer that takes nothing holds one window of its own stream, and no more."""
    shut = settings([(4, 0)]) + frame(HEADERS, END_HEADERS, 1, victim.block)
    fate = victim.attack(shut + frame(DATA, 0, 1, bytes(16 << 10)) * 1024, read=False)
    victim.told(fate, "h2 failed: FLOW_CONTROL_ERROR: ")


def test_garbage_after_the_handshake(victim: Victim) -> None:
    for garbage in (b"GET / HTTP/1.1\r\nHost: far\r\n\r\n", bytes(1 << 20), b"\xff" * (1 << 20)):
        fate = victim.attacker.do("speak", victim.address, HBONE, victim.papers, text(garbage))
        assert fate["end"] in ("end", "reset") and goaway_code(data(fate["said"])) == Code.PROTOCOL_ERROR, fate
        victim.told(fate, "h2 failed: PROTOCOL_ERROR: not an HTTP/2 preface")


def test_crowds_at_the_door(victim: Victim) -> None:
    """1,000 that connect and say nothing, and 500 that begin a handshake: all are shown out, and nobody else waits."""
    crowds = {
        victim.attacker.do("crowd", victim.address, HBONE, count, greet): count for count, greet in ((1000, False), (500, True))
    }
    victim.past(20)
    eventually(lambda: all(victim.attacker.do("cut", crowd) == count for crowd, count in crowds.items()), 25)
    for crowd in crowds:
        victim.attacker.do("disperse", crowd)
    victim.mesh.await_flow("tls handshake error: timed out or evicted", "--from-pod", "shop/attacker", "--to-pod", "shop/far")


def test_a_siege(victim: Victim) -> None:
    """Four at a time come back with another attack as soon as the last one is over."""
    attacks = [text(attack) for name, attack, _ in hostile(victim.block) if name not in TAKEN]
    ends = victim.attacker.do("besiege", victim.address, HBONE, victim.papers, text(CLIENT_OPENING), attacks, 8)
    print(ends)
    assert set(ends) <= {"end", "reset"} and sum(ends.values()) > 100, ends
