"""`make bench-hostile`: what good clients notice of each attack, in windows by turns: undisturbed, attacked, undisturbed.

The attacker comes back with its attack as soon as it has lost its connection, through all of each attacked window; a crowd
comes in each of them and stays through it. A p99 is that of all windows of a kind together: of 4 times 4 s, so that it is one
of 100 new connections, and of 1,400 streams. The attacker has the lowest priority for the CPU, as it stands for another
machine. With ZTUNNEL_BIN, Istio's own ztunnel is measured afterwards in the place of the attacked node's proxy, under the same
agent and control plane.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.tables import markdown
from tests.lab.attacks import BENEATH, CROWDS, FLOODS, Attack, Beneath, Crowd, Flood, Storm, attacks, storms
from tests.lab.memory import Memory
from tests.lab.mesh import ECHO_PORT, Mesh, pod, service
from tests.lab.papers import text
from tests.lab.victim import ATTACKED_PORT, DEAF_PORT, HBONE, NOBODYS_PORT, TOPOLOGY, Victim
from ztunnel.frames import CLIENT_OPENING, Code

HEADS = (
    "attack",
    "p99 of a stream, ms",
    "ratio",
    "p99 of a new connection, ms",
    "ratio",
    "failures",
    "growth, MiB",
    "ends",
    "codes",
)
Strike = Attack | Crowd | Beneath | Storm | Flood
TARGET, GROWTH_MIB = 2.0, 16.0
_WHAT = ("stream", "connection")


class Found(NamedTuple):
    """What one attack did."""

    quiet: dict[str, list[float]]
    attacked: dict[str, list[float]]
    failures: int
    growth: float
    fate: dict[str, Any]


def _strike(victim: Victim, attack: Strike, seconds: float) -> dict[str, Any]:
    """The attack, for that long."""
    if isinstance(attack, Attack):
        return victim.besiege(attack, seconds)
    if isinstance(attack, Beneath):
        call = ("undermine", victim.address, HBONE, victim.papers, text(CLIENT_OPENING + victim.open_stream()), attack.manner)
        return dict(victim.attacker.do(*call, seconds, timeout_s=seconds + 60))
    if isinstance(attack, Storm):
        where = (victim.address, HBONE, victim.papers, text(CLIENT_OPENING), attack.manner)
        blocks = [text(one) for one in attack.blocks]
        return dict(victim.attacker.do("storm", *where, blocks, seconds, timeout_s=seconds + 60))
    if isinstance(attack, Flood):
        who = victim.neighbour if attack.near else victim.attacker
        where = "127.0.0.1" if attack.within else victim.node if attack.of_node else victim.address
        words = [text(one) for one in attack.words]
        return dict(who.do("flood", where, attack.port or ATTACKED_PORT, attack.manner, words, seconds, timeout_s=seconds + 60))
    call = ("crowd", victim.address, HBONE, victim.papers, attack.count, attack.manner, text(CLIENT_OPENING))
    number = victim.attacker.do(*call, timeout_s=120)
    victim.rest(seconds)
    cut = victim.attacker.do("cut", number)
    victim.attacker.do("disperse", number)
    return {"ends": {"shown out": cut, "held": attack.count - cut}, "codes": {}}


def _measure(victim: Victim, attack: Strike, seconds: float, rounds: int) -> Found:
    quiet: dict[str, list[float]] = {what: [] for what in _WHAT}
    attacked: dict[str, list[float]] = {what: [] for what in _WHAT}
    fate: dict[str, Any] = {}

    def note(times: dict[str, list[float]]) -> None:
        for what, some in victim.lap().items():
            times[what] += some

    with Memory([*victim.proxy(), *victim.mesh.processes("b", "agent")]) as memory:
        victim.begin()
        victim.lap()
        for _ in range(rounds):
            victim.rest(seconds)
            note(quiet)
            fate = _strike(victim, attack, seconds)
            note(attacked)
        victim.rest(seconds)
        note(quiet)
        mesh_peers, honest = victim.finish()
    failures = mesh_peers["failed"] + len(honest["failures"])
    return Found(quiet, attacked, failures, max(memory.growth.values()), fate)


def _p99(times: list[float]) -> float:
    return sorted(times)[len(times) * 99 // 100]


def _row(name: str, found: Found) -> list[str]:
    def code(number: str) -> str:
        return Code(int(number)).name if number.isdigit() and int(number) in Code._value2member_map_ else number

    cells = [name]
    for what in _WHAT:
        before, during = _p99(found.quiet[what]), _p99(found.attacked[what])
        cells += [f"{before:.1f} -> {during:.1f}", f"{during / before:.2f}{'' if during <= TARGET * before else ' (missed)'}"]
    cells += [str(found.failures), f"{found.growth:.1f}{'' if found.growth <= GROWTH_MIB else ' (missed)'}"]
    ends = ", ".join(f"{count} {end}" for end, count in sorted(found.fate["ends"].items()))
    return [*cells, ends, ", ".join(sorted({code(number) for number in found.fate["codes"]}))]


def _all(victim: Victim, only: list[str] | None) -> Iterator[Strike]:
    good, refused, deaf, nobody = map(victim.connect, (ATTACKED_PORT, 15001, DEAF_PORT, NOBODYS_PORT))
    found = (*attacks(good, refused, deaf, nobody), *CROWDS, *BENEATH, *storms(good, deaf, refused), *FLOODS)
    yield from (one for one in found if only is None or any(words in one.name for words in only))


def _contender(name: str, topology: str, flags: argparse.Namespace) -> str:
    rows = []
    with Mesh(topology) as mesh:
        mesh.puppet("far").echo(ECHO_PORT)
        victim = Victim(mesh, patient=True)
        with mesh.puppet("far").listen(DEAF_PORT):
            victim.begin()
            victim.rest(2)
            victim.finish()
            for attack in _all(victim, flags.only):
                try:
                    rows.append(_row(attack.name, _measure(victim, attack, flags.seconds, flags.rounds)))
                except (RuntimeError, OSError, AssertionError, TimeoutError) as error:
                    rows.append([attack.name, f"gave up: {error!r}"[:80], *[""] * 7])
                print(f"bench-hostile: {name}: {' | '.join(rows[-1])}", file=sys.stderr, flush=True)
        victim.end()
    return f"\n## {name}\n\n{markdown(HEADS, rows)}"


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="make bench-hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a window")
    parser.add_argument("--rounds", type=int, default=4, help="attacked windows")
    parser.add_argument("--only", action="append", metavar="WORDS", help="attacks whose names hold this; may be repeated")
    flags = parser.parse_args()
    topology = TOPOLOGY + pod("neighbour", "b") + service("far")
    tables = [_contender("weft", topology, flags)]
    if binary := os.environ.get("ZTUNNEL_BIN"):
        command = f"{shlex.quote(os.path.abspath(binary))} proxy ztunnel"
        node = f"name: b, annotations: {{lab.weft/ztunnel: {command!r}}}"
        tables.append(_contender("Istio's ztunnel", topology.replace("name: b}", node + "}", 1), flags))
    print(f"Good clients beside attackers: at most {TARGET:.0f}x of undisturbed, no failure, {GROWTH_MIB:.0f} MiB.", *tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
