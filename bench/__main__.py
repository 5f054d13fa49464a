"""`python -m bench`: weft beside bare TCP and pairs of real Envoys and ztunnels, paired round by round, on a lab of its own."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import accounts, alone, budget, contenders, envoy_pair, events, large_mesh, report
from bench.contenders import Contender, Load
from bench.figures import Sample
from bench.image import Image
from bench.line_up import line_up, weft_pids, workers_of
from bench.stage import Stage, pids_of, stage

# A lab of its own: one that is up already is left alone (but disturbs the figures).
_OWN = {"WEFT_PREFIX": "weft-bench", "WEFT_RUN_DIR": "/run/weft-bench", "WEFT_STATE_DIR": "/var/lib/weft-bench"}


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help="how often every contender is measured (default 8; 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="short loads, to see that it works; no figures to quote")
    layouts = "CPUs: as the kernel likes; all on the last; clients on the first and all else on the last"
    parser.add_argument("--layout", choices=["free", "one", "split"], default="free", help=layouts)
    parser.add_argument("--image", type=Path, metavar="ROOT", help="run weft's processes from a node image's root file system")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for bench.md and bench.json")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    flags = parser.parse_args()
    flags.rounds = flags.rounds or (2 if flags.quick else 8)
    return flags


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _lay_out(made: Stage, layout: str, others: list[int]) -> None:
    """Put processes on CPUs."""
    if layout == "free":
        return
    last = {(os.cpu_count() or 1) - 1}
    clients = [
        pid for client in made.clients.values() for pid in pids_of(made.layout.pod_cgroup(client.place.node, client.place.key))
    ]
    accounts.pin([*weft_pids(made), *made.pod_pids(), *others], last)
    if layout == "split":
        accounts.pin(clients, {0})


def _memory(made: Stage, found: list[Contender], results: report.Results, state: str = "idle, warm") -> None:
    for part in ("agent", "ztunnel"):
        for pid in sorted(made.node_pids(part)):
            entry = {"process": f"weft {accounts.command_of(pid)}", "state": state, "pss_bytes": accounts.pss_bytes(pid)}
            results.memory.append(entry)
    for pid in pids_of(made.layout.control_cgroup):
        results.memory.append({"process": "weft control", "state": state, "pss_bytes": accounts.pss_bytes(pid)})
    for one in found:
        if one.name in contenders.PROXIED and one.name != contenders.WEFT:
            for pid in one.pids():
                results.memory.append({"process": one.name, "state": state, "pss_bytes": accounts.pss_bytes(pid)})


def _rounds(found: Sequence[Contender], loads: Sequence[Load], results: report.Results, rounds: int) -> None:
    """Every contender under every load, once a round."""
    for number in range(rounds):
        stolen = accounts.stolen_s()
        samples: dict[tuple[str, str], Sample] = {}
        first = number % len(found)  # nobody is always measured after the same one
        for load in loads:
            for one in (*found[first:], *found[:first]):
                if one.name not in contenders.NEAR or load.near:
                    samples[one.name, load.key] = one.measure(load.order, **load.details)
        if number < len(results.rounds):
            results.rounds[number].update(samples)
        else:
            results.rounds.append(samples)
        results.conditions.append({"loadavg": os.getloadavg()[0], "stolen_s": accounts.stolen_s() - stolen})
        _say("round {} of {}, load {loadavg:.1f}, stolen {stolen_s:.2f} s".format(number + 1, rounds, **results.conditions[-1]))


def _warm(found: Sequence[Contender]) -> None:
    """Certificates, pools and code are warm before the first round."""
    for one in found:
        one.await_answer()
        one.measure("exchanges", seconds=0.3)


def _run(flags: argparse.Namespace, image: Image | None) -> tuple[dict[str, object], report.Results]:
    results = report.Results()
    with stage(_say, flags.keep) as made, ExitStack() as proxies:
        workers = len(workers_of(made)) or 1
        where = report.surroundings(workers, flags.rounds, flags.layout, flags.quick, image)
        found = line_up(made, proxies, workers)
        _lay_out(made, flags.layout, [pid for one in found for pid in one.pids()])
        _warm(found)
        _rounds(found, contenders.loads(flags.quick), results, flags.rounds)
        _say("the hot path's budget")
        weft = next(one for one in found if one.name == contenders.WEFT)
        both = [*workers_of(made, "a"), *workers_of(made, "b")]
        results.budgets += budget.budgets(weft, both, flags.quick)
        results.notes += [f"the budget is incomplete: apt-get install {package}" for package in budget.missing_tools()]
        across = [one for one in found if one.name in contenders.PROXIED]
        _say("at fixed rates")
        _rounds(across, alone.paced_loads(flags.quick), results, flags.rounds // 2 or 1)
        results.alone += alone.paced_rows(results.rounds)
        _memory(made, found, results)
        results.alone.append(alone.idle_memory(made))
        results.alone += alone.held_memory(found)
        results.alone += alone.policy_rows(image)
        results.alone += alone.beside_bulk(found, flags.rounds // 2 or 1, 0.5 if flags.quick else 1.5)
        times = 5 if flags.quick else 20
        _say("enrolment and policy")
        results.events["enrol a pod: request to answer"] = events.enrolments(made, times)
        for name, figure in events.policies(made, times).items():
            results.events[f"policy: apply or delete until {name}"] = figure
        _say("a new peer for each connection")
        _rounds(across, [contenders.fresh(flags.quick)], results, flags.rounds)
        proxies.close()
        results.alone.append(alone.start_up(made, 2 if flags.quick else 5))
        results.alone += alone.restart(made, _say)
        _say("a large mesh")
        results.alone += large_mesh.rows(made)
    return where, results


def main() -> int:
    """Run the bench. Exit codes: 0 measured, 1 something did not work."""
    flags = _flags()
    for name, value in _OWN.items():
        os.environ.setdefault(name, value)
    try:
        envoy_pair.envoy_binary()
        image = Image.of(flags.image) if flags.image else None
        if image is not None:
            os.environ["WEFT_LAB_IMAGE"] = str(image.root)
        where, results = _run(flags, image)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        _say(f"failed: {error}")
        return 1
    text, data = report.write(flags.out, where, results)
    print(text.read_text())
    _say(f"written to {text} and {data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
