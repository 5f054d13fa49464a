"""`make bench-hostile`: what good clients notice of each attack, in paired windows: undisturbed, attacked, undisturbed.

The attacker comes back with its attack as soon as it has lost its connection, through all of the attacked window; a crowd stays
through all of it. It has the lowest priority for the CPU, as it stands for another machine. With ZTUNNEL_BIN, Istio's own
ztunnel is measured afterwards in the place of the attacked node's proxy, under the same agent and control plane.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from bench.tables import markdown
from tests.lab.attacks import CROWDS, Attack, Crowd, attacks
from tests.lab.memory import Memory
from tests.lab.mesh import ECHO_PORT, Mesh
from tests.lab.papers import text
from tests.lab.victim import ATTACKED_PORT, DEAF_PORT, HBONE, TOPOLOGY, Victim
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
TARGET, GROWTH_MIB = 2.0, 16.0


class Found(NamedTuple):
    """What one attack did."""

    quiet: dict[str, float]
    attacked: dict[str, float]
    ratio: dict[str, float]
    failures: int
    growth: float
    fate: dict[str, Any]


def _strike(victim: Victim, attack: Attack | Crowd, seconds: float) -> dict[str, Any]:
    """The attack, for that long."""
    if isinstance(attack, Attack):
        return victim.besiege(attack, seconds)
    call = ("crowd", victim.address, HBONE, victim.papers, attack.count, attack.manner, text(CLIENT_OPENING))
    number = victim.attacker.do(*call, timeout_s=120)
    victim.rest(seconds)
    cut = victim.attacker.do("cut", number)
    victim.attacker.do("disperse", number)
    return {"ends": {"shown out": cut, "held": attack.count - cut}, "codes": {}}


def _measure(victim: Victim, attack: Attack | Crowd, seconds: float, rounds: int) -> Found:
    laps: list[tuple[dict[str, Any], ...]] = []
    fate: dict[str, Any] = {}
    with Memory(victim.proxy()) as memory:
        for _ in range(rounds):
            victim.begin()
            victim.lap()
            victim.rest(seconds)
            before = victim.lap()
            fate = _strike(victim, attack, seconds)
            during = victim.lap()
            victim.rest(seconds)
            mesh_peers, after = victim.finish()
            laps.append((before, during, after, {"failed": mesh_peers["failed"] + len(after["failures"])}))
    quiet, attacked, ratio = {}, {}, {}
    for what in ("stream", "connection"):
        base = [(before[what]["p99_ms"] + after[what]["p99_ms"]) / 2 for before, _, after, _ in laps]
        hit = [during[what]["p99_ms"] for _, during, _, _ in laps]
        quiet[what], attacked[what] = median(base), median(hit)
        ratio[what] = median(one / other for one, other in zip(hit, base, strict=True))
    return Found(quiet, attacked, ratio, sum(lap[3]["failed"] for lap in laps), max(memory.growth.values()), fate)


def _row(name: str, found: Found) -> list[str]:
    def code(number: str) -> str:
        return Code(int(number)).name if number.isdigit() and int(number) in Code._value2member_map_ else number

    cells = [name]
    for what in ("stream", "connection"):
        met = "" if found.ratio[what] <= TARGET else " (missed)"
        cells += [f"{found.quiet[what]:.1f} -> {found.attacked[what]:.1f}", f"{found.ratio[what]:.1f}{met}"]
    cells += [str(found.failures), f"{found.growth:.1f}{'' if found.growth <= GROWTH_MIB else ' (missed)'}"]
    ends = ", ".join(f"{count} {end}" for end, count in sorted(found.fate["ends"].items()))
    return [*cells, ends, ", ".join(sorted({code(number) for number in found.fate["codes"]}))]


def _all(victim: Victim, only: str) -> Iterator[Attack | Crowd]:
    found = attacks(victim.connect(ATTACKED_PORT), victim.connect(15001), victim.connect(DEAF_PORT))
    yield from (one for one in (*found, *CROWDS) if only in one.name)


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
    parser.add_argument("--rounds", type=int, default=3, help="windows of each kind; figures are medians")
    parser.add_argument("--only", default="", metavar="WORDS", help="attacks whose names hold these words")
    flags = parser.parse_args()
    tables = [_contender("weft", TOPOLOGY, flags)]
    if binary := os.environ.get("ZTUNNEL_BIN"):
        command = f"{shlex.quote(os.path.abspath(binary))} proxy ztunnel"
        node = f"name: b, annotations: {{lab.weft/ztunnel: {command!r}}}"
        tables.append(_contender("Istio's ztunnel", TOPOLOGY.replace("name: b}", node + "}", 1), flags))
    print(f"Good clients beside attackers: at most {TARGET:.0f}x of undisturbed, no failure, {GROWTH_MIB:.0f} MiB.", *tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
