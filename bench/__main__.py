"""`python -m bench`: measures weft beside bare TCP and pairs of real Envoys, paired round by round, on a lab of its own."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench import accounts, contenders, envoy_pair, events, report
from bench.contenders import Contender
from bench.stage import Stage, pids_of, stage
from bench.topology import MESH, PLAIN, PODS, PORT, Place

# A lab of its own: one that is up already is left alone (but disturbs the figures).
_OWN = {"WEFT_PREFIX": "weft-bench", "WEFT_RUN_DIR": "/run/weft-bench", "WEFT_STATE_DIR": "/var/lib/weft-bench"}
_HELD = 1000
_CLIENT_PORT, _TUNNEL_PORT = 9001, 9002


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help="how often every contender is measured (default 8; 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="short loads, to see that it works; no figures to quote")
    layouts = "CPUs: as the kernel likes; all on the last; clients on the first and all else on the last"
    parser.add_argument("--layout", choices=["free", "one", "split"], default="free", help=layouts)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for bench.md and bench.json")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    flags = parser.parse_args()
    flags.rounds = flags.rounds or (2 if flags.quick else 8)
    return flags


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _place(namespace: str, name: str) -> Place:
    return next(place for place in PODS if (place.namespace, place.name) == (namespace, name))


def _weft_pids(made: Stage) -> list[int]:
    return [*made.node_pids("ztunnel"), *made.node_pids("agent")]


def _workers(made: Stage) -> int:
    """Data workers of one node."""
    workers = [node for pid, node in made.node_pids("ztunnel").items() if accounts.command_of(pid) == "ztunnel.worker"]
    return workers.count("a") or 1


def _contenders(made: Stage, envoys: ExitStack, workers: int) -> list[Contender]:
    """All ways from client to server, with their Envoys started in the pods' network namespaces."""
    far = made.address(_place(PLAIN, "far"))
    plain, mesh = made.clients[PLAIN], made.clients[MESH]
    pairs: dict[str, list[int]] = {}
    made_contenders = [
        Contender(contenders.DIRECT, plain, far, PORT, list),
        Contender(contenders.WEFT, mesh, made.address(_place(MESH, "far")), PORT, lambda: _weft_pids(made)),
    ]
    for number, (name, mode) in enumerate(((contenders.ENVOY_TLS, "tls"), (contenders.ENVOY_HBONE, "hbone"))):
        ports = (_CLIENT_PORT + 10 * number, _TUNNEL_PORT + 10 * number)
        ends = envoy_pair.Ends(
            made.netns(_place(PLAIN, "client")), made.netns(_place(PLAIN, "far")), ports[0], (far, ports[1]), PORT
        )
        folder = Path(envoys.enter_context(tempfile.TemporaryDirectory(prefix="weft-envoy-")))
        kind: envoy_pair.Mode = "tls" if mode == "tls" else "hbone"
        pairs[name] = envoys.enter_context(envoy_pair.running(kind, folder, ends, workers))
        made_contenders.append(Contender(name, plain, "127.0.0.1", ports[0], _fixed(pairs[name])))
    near = made.address(_place(PLAIN, "near")), made.address(_place(MESH, "near"))
    made_contenders += [
        Contender(contenders.NEAR_DIRECT, plain, near[0], PORT, list),
        Contender(contenders.NEAR_WEFT, mesh, near[1], PORT, lambda: _weft_pids(made)),
    ]
    return made_contenders


def _fixed(pids: list[int]) -> Callable[[], list[int]]:
    return lambda: pids


def _lay_out(made: Stage, layout: str, others: list[int]) -> None:
    """Put processes on CPUs."""
    if layout == "free":
        return
    last = {(os.cpu_count() or 1) - 1}
    clients = [
        pid for client in made.clients.values() for pid in pids_of(made.layout.pod_cgroup(client.place.node, client.place.key))
    ]
    accounts.pin([*_weft_pids(made), *made.pod_pids(), *others], last)
    if layout == "split":
        accounts.pin(clients, {0})


def _memory(made: Stage, found: list[Contender], results: report.Results, state: str) -> None:
    for part in ("agent", "ztunnel"):
        for pid in sorted(made.node_pids(part)):
            entry = {"process": f"weft {accounts.command_of(pid)}", "state": state, "pss_bytes": accounts.pss_bytes(pid)}
            results.memory.append(entry)
    for pid in pids_of(made.layout.control_cgroup):
        results.memory.append({"process": "weft control", "state": state, "pss_bytes": accounts.pss_bytes(pid)})
    for one in found:
        if one.name in (contenders.ENVOY_TLS, contenders.ENVOY_HBONE):
            for pid in one.pids():
                results.memory.append({"process": one.name, "state": state, "pss_bytes": accounts.pss_bytes(pid)})


def _held_memory(made: Stage, found: list[Contender], results: report.Results) -> None:
    """Memory again while every proxied contender carries many idle connections."""
    held = [one for one in found if one.name in (contenders.WEFT, contenders.ENVOY_TLS, contenders.ENVOY_HBONE)]
    for one in held:
        one.client.run("hold", host=one.host, port=one.port, connections=_HELD)
    _memory(made, found, results, f"{_HELD:,} connections")
    for one in held:
        one.client.run("release")


def _rounds(found: list[Contender], results: report.Results, flags: argparse.Namespace) -> None:
    for one in found:
        one.await_answer()
        one.measure("exchanges", seconds=0.3)  # certificates, pools and code are warm before the first round
    for number in range(flags.rounds):
        stolen = accounts.stolen_s()
        samples = {}
        first = number % len(found)  # nobody is always measured after the same one
        for load in contenders.loads(flags.quick):
            for one in (*found[first:], *found[:first]):
                samples[one.name, load.key] = one.measure(load.order, **load.details)
        results.rounds.append(samples)
        _say(
            f"round {number + 1} of {flags.rounds}, load {os.getloadavg()[0]:.1f}, stolen {accounts.stolen_s() - stolen:.2f} s"
        )


def _run(flags: argparse.Namespace) -> tuple[dict[str, object], report.Results]:
    results = report.Results()
    with stage(_say, flags.keep) as made, ExitStack() as envoys:
        workers = _workers(made)
        where = report.surroundings(workers, flags.rounds, flags.layout, flags.quick)
        found = _contenders(made, envoys, workers)
        _lay_out(made, flags.layout, [pid for one in found for pid in one.pids()])
        _rounds(found, results, flags)
        _memory(made, found, results, "idle, warm")
        _held_memory(made, found, results)
        times = 5 if flags.quick else 20
        _say("enrolment and policy")
        results.events["enrol a pod: request to answer"] = events.enrolments(made, times)
        for name, figure in events.policies(made, times).items():
            results.events[f"policy: apply or delete until {name}"] = figure
    return where, results


def main() -> int:
    """Run the bench. Exit codes: 0 measured, 1 something did not work."""
    flags = _flags()
    for name, value in _OWN.items():
        os.environ.setdefault(name, value)
    try:
        envoy_pair.envoy_binary()
        where, results = _run(flags)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        _say(f"failed: {error}")
        return 1
    text, data = report.write(flags.out, where, results)
    print(text.read_text())
    _say(f"written to {text} and {data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
