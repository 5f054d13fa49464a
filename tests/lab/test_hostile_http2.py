"""A pod with a valid certificate attacks its neighbour's proxy: it loses its connection, and nobody beside it notices.

The victim's node serves, all the while: an application of the mesh with a lasting connection and new ones, and an honest
HBONE peer with a new stream every 10 ms on a standing connection and a new TLS connection every 150 ms.
"""

from collections.abc import Iterator

import pytest

from tests.lab.attacks import CROWDS, TAKEN, Crowd, attacks, goaway_code
from tests.lab.memory import Memory
from tests.lab.mesh import ECHO_PORT, Mesh
from tests.lab.papers import data, text
from tests.lab.victim import ATTACKED_PORT, DEAF_PORT, HBONE, NOBODYS_PORT, TOPOLOGY, Victim
from tests.lab.world import eventually
from tests.ztunnel.test_http2 import hostile
from ztunnel.frames import CLIENT_OPENING, PING, Code, frame

pytestmark = pytest.mark.lab

GROWTH_MIB = 16
P99_MS = 500
"""Of the good ones beside attackers: a bound that a busy machine of two cores keeps. `make bench-hostile` measures."""


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Mesh(TOPOLOGY) as mesh:
        mesh.puppet("far").echo(ECHO_PORT)
        made = Victim(mesh)
        made.begin()  # every worker has done everything once before its memory is looked at
        made.attack(frame(PING, 0, 0, bytes(8)) * 300)
        made.finish()
        yield made
        made.end()


@pytest.fixture(autouse=True)
def nobody_else_notices(request: pytest.FixtureRequest, victim: Victim) -> Iterator[None]:
    pids = victim.proxy()
    victim.begin()
    with Memory(pids) as memory:
        yield
        victim.past(5)
    mesh_peers, honest = victim.finish()
    growth = max(memory.growth.values())
    print(f"{request.node.name}: grew {growth:.1f} MiB; {mesh_peers}; {honest}")
    assert mesh_peers["failed"] == 0, mesh_peers
    assert honest["failures"] == [] and honest["stream"]["count"] >= 5, honest
    assert honest["stream"]["p99_ms"] < P99_MS, honest
    assert growth <= GROWTH_MIB, (memory.before, memory.highest)
    assert victim.proxy() == pids, "no process of the proxy has ended"


def test_every_violation_costs_its_own_connection_and_has_its_code(victim: Victim) -> None:
    for name, attack, code in hostile(victim.block, 10)[::4]:  # each offence makes the next one wait; see tests/ztunnel for all
        if name in TAKEN:
            continue
        fate = victim.attack(attack)
        assert fate["code"] == code, (name, fate)
        victim.told(fate, f"h2 failed: {code.name}: ")


WORDS = attacks(*[b""] * 4)
"""By name; what is said depends on the victim."""


@pytest.mark.parametrize("place", range(len(WORDS)), ids=[attack.name for attack in WORDS])
def test_an_attack_costs_its_own_connection(victim: Victim, place: int) -> None:
    """Twice over, one after the other: as much as the connection takes, whether the attacker reads the answers or not."""
    with victim.mesh.puppet("far").listen(DEAF_PORT):
        ports = (ATTACKED_PORT, 15001, DEAF_PORT, NOBODYS_PORT)
        attack = attacks(*map(victim.connect, ports))[place]
        fate = victim.besiege(attack, 0.5)
    assert set(fate["ends"]) <= {"end", "reset"}, (attack.name, fate)
    allowed = {str(int(code)) if code is not None else "none" for code in attack.codes}
    assert set(fate["codes"]) <= allowed, (attack.name, fate)
    assert fate["longest_s"] < 10, "it was cut off soon"


@pytest.mark.parametrize("name", ["rapid reset", "PING, unread", "garbage after the handshake"])
def test_an_operator_is_told_who_it_was(victim: Victim, name: str) -> None:
    attack = next(one for one in attacks(*[victim.block] * 4) if one.name == name)
    fate = victim.attacker.do(
        "speak", victim.address, HBONE, victim.papers, text((CLIENT_OPENING if attack.opening else b"") + attack.words[0] * 4)
    )
    code = Code(goaway_code(data(fate["said"])) or 0).name
    victim.told(fate, f"h2 failed: {code}: ")
    name = "spiffe://cluster.local/ns/shop/sa/attacker"
    victim.mesh.await_access_log("b", f'src.identity="{name}"', f":{fate['port']} ", f"h2 failed: {code}: ")
    eventually(lambda: f'weft_offences_total{{identity="{name}",kind="{code}"}}' in victim.mesh.metrics("b"))


@pytest.mark.parametrize("crowd", CROWDS, ids=[crowd.name for crowd in CROWDS])
def test_crowds_at_the_door(victim: Victim, crowd: Crowd) -> None:
    """Nobody else waits, and who says nothing is shown out; who has said all that HTTP/2 asks for stays, up to a number."""
    number = victim.attacker.do(
        "crowd", victim.address, HBONE, victim.papers, crowd.count, crowd.manner, text(CLIENT_OPENING), timeout_s=250
    )
    victim.past(20)
    if crowd.ends:
        eventually(lambda: victim.attacker.do("cut", number) == crowd.count)
        victim.mesh.await_flow("timed out or evicted", "--from-pod", "shop/attacker", "--to-pod", "shop/far")
    victim.attacker.do("disperse", number)


def test_a_siege(victim: Victim) -> None:
    """Four at a time come back with another attack as soon as the last one is over, and are greeted ever later."""
    every = next(one for one in attacks(*[victim.block] * 4) if one.name == "every violation")
    fate = victim.besiege(every, 8, at_once=4)
    print(fate)
    assert set(fate["ends"]) <= {"end", "reset"} and 10 < sum(fate["ends"].values()) < 100, fate
