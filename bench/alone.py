"""The second table: what is asked of weft alone, measured one after the other when the paired rounds are done."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import yaml

from bench import accounts, contenders
from bench.contenders import Contender, Load, in_turn
from bench.figures import Figure, Round, Sample, ratio, values
from bench.image import Image
from bench.line_up import workers_of
from bench.stage import LoadClient, LoadError, Stage, ask_names, load_client
from bench.targets import Judged
from bench.topology import MESH, PORT, crowd, far_service, place
from lab.client import Lab

RATES = (500, 1000, 2000)
PACED = (contenders.WEFT, contenders.ENVOY_HBONE)
"""Whose requests go at fixed rates: the row is their ratio."""
_SMALL = {"rate": 500, "connections": 8}
"""Small messages beside bulk: on so many connections that some share a tunnel with it, whichever worker has it."""
_TURNS = 4
"""weft's in a round."""
_BESIDE_SLACK_S = 1.0
"""Small messages open their connections, and warm up, while bulk flows."""
NAMES_RATE = 1000
_HBONE_PORT = 15008
_BOOT_TIMEOUT_S = 30.0
_LOOK_S = 0.004
"""A look takes half a millisecond of a CPU that the proxy needs to start."""
CROWD = 100
_AT_ONCE = 20


def paced_loads(quick: bool) -> tuple[Load, ...]:
    """Requests at a fixed rate, counted from when they were due.

    The slowest hundredth are a few moments a second in which somebody else has the CPU: it takes many to say something.
    """
    seconds = 0.5 if quick else 2.0
    return tuple(Load(f"paced{rate}", "paced", {"rate": rate, "connections": 8, "seconds": seconds}, times=2) for rate in RATES)


def paced_rows(rounds: Sequence[Round]) -> list[Judged]:
    """A row per rate: weft's p99, judged by its ratio to E2's."""
    rows = []
    for rate in RATES:
        load = f"paced{rate}"
        found = ratio(rounds, contenders.WEFT, contenders.ENVOY_HBONE, load, "p99_us")
        if found:
            mine = median(values(rounds, contenders.WEFT, load, "p99_us"))
            row = Judged.of(f"fixed rate, {rate:,} requests/s, p99 from the moment they were due", found, 1.1, "x of E2")
            rows.append(row.noted(f"{found.spread}, {mine:,.0f} us"))
    return rows


def beside_bulk(found: Sequence[Contender], rounds: int, seconds: float, say: Callable[[str], None]) -> list[Judged]:
    """The p99 of small messages while a bulk stream goes to the same peer, to that without one just before.

    For others as well, to compare; the bare network says what of it is the machine's, whose CPUs bulk keeps busy. weft has more
    turns than they: what disturbs a moment without bulk moves a ratio by half.
    """
    everyone = [one for one in found if one.name in (contenders.DIRECT, *contenders.PROXIED)]
    times: dict[str, list[tuple[float, float]]] = {one.name: [] for one in everyone}
    for number in range(rounds):
        for one in in_turn(everyone, f"beside {number}"):
            with load_client(one.client.place) as other:
                for _ in range(_TURNS if one.name == contenders.WEFT else 1):
                    times[one.name].append(_without_and_with(one, other, seconds))
        say(f"round {number + 1} of {rounds}")
    return [_beside_row(name, pairs) for name, pairs in times.items()]


def _without_and_with(one: Contender, other: LoadClient, seconds: float) -> tuple[float, float]:
    """p99 of small messages, us. Raises: LoadError."""
    alone = one.measure("paced", seconds=seconds, **_SMALL)["p99_us"]
    bulk_s = seconds + _BESIDE_SLACK_S
    other.order("flood", host=one.host, port=one.port, seconds=bulk_s)
    other.answer()  # it flows
    ends = time.monotonic() + bulk_s
    beside = one.measure("paced", seconds=seconds, **_SMALL)["p99_us"]
    if time.monotonic() > ends:
        raise LoadError(f"{one.name}: bulk ended before the small messages beside it")
    other.answer()
    return alone, beside


def _beside_row(name: str, pairs: Sequence[tuple[float, float]]) -> Judged:
    figure = Figure.of([beside / alone for alone, beside in pairs])
    limit = 2.0 if name == contenders.WEFT else None
    row = Judged.of(f"small messages beside one bulk stream to the same peer, p99: {name}", figure, limit, "x of alone")
    alone_us, beside_us = (median(times) for times in zip(*pairs, strict=True))
    return row.noted(f"{figure.spread}, {beside_us:,.0f} us, alone {alone_us:,.0f} us")


def names(made: Stage, rounds: int, seconds: float) -> Judged:
    """Questions of a pod for a name of the mesh, while it opens connections one after the other."""
    service, name = far_service()
    client, host = made.clients[MESH], made.address(place(MESH, "far"))
    p50, p99, failed = [], [], 0.0
    made.apply(service)
    try:
        for _ in range(rounds):
            client.order("exchanges", host=host, port=PORT, seconds=seconds + 1.0)
            found = ask_names(client.place, name, NAMES_RATE, seconds)
            client.answer()
            p50.append(found["p50_us"])
            p99.append(found["p99_us"])
            failed += found["failed"]
    finally:
        made.delete(service)
    figure = Figure.of(p99)
    row = f"DNS, a name of the mesh, {NAMES_RATE:,} questions/s beside new connections, p99 from the moment they were due"
    note = f"[{figure.low:,.0f} to {figure.high:,.0f}], p50 {median(p50):,.0f} us, {failed:.0f} without an answer"
    return Judged.at_most(row, figure.median, None, "us").noted(note)


def idle_memory(made: Stage) -> Judged:
    """The largest worker's proportional share of memory, idle after all loads."""
    sizes = [accounts.pss_bytes(pid) / 1e6 for node in ("a", "b") for pid in workers_of(made, node)]
    return Judged.at_most("memory of a worker (PSS), idle, warm", max(sizes), 30.0, "MB")


def policy_rows(image: Image | None) -> list[Judged]:
    """What one new connection pays for policies, in weft's own interpreter."""
    command = image.command("bench.policy_cost") if image else [sys.executable, "-m", "bench.policy_cost"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    cost: Mapping[str, float] = json.loads(said.stdout)
    return [
        Judged.at_most(
            "policy evaluation, 10,000 policies in the mesh, all for this workload", cost["all_apply_us"], 20.0, "us"
        ),
        Judged.at_most(
            "policy evaluation, 10,000 policies in the mesh, ten for this workload", cost["ten_apply_us"], 20.0, "us"
        ),
    ]


def start_up(made: Stage, times: int) -> Judged:
    """From the start of a proxy that takes the place of a killed one until a pod of its node has its HBONE listener."""
    (inside, *_) = made.pod_pids((place(MESH, "client"),))
    took = []
    for _ in range(times):
        before = made.proxy("a")
        accounts.kill(before)
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while (now := made.proxy("a")) in (0, before) or not accounts.listens(inside, _HBONE_PORT):
            if time.monotonic() > deadline:
                raise LoadError(f"no proxy of node a listens {_BOOT_TIMEOUT_S:g} s after one was killed")
            time.sleep(_LOOK_S)
        took.append((time.clock_gettime(time.CLOCK_BOOTTIME) - accounts.started_s(now)) * 1e3)
        made.await_ready("a")
    figure = Figure.of(took)
    return Judged.of("start to listening", figure, 200.0, "ms").noted(f"[{figure.low:.0f} to {figure.high:.0f}]")


def restart(made: Stage) -> list[Judged]:
    """A proxy with 100 pods is replaced, as an upgrade does it, while one of its pods tries a connection every millisecond."""
    pods, lab = crowd(CROWD), Lab(made.layout)
    for first in range(0, CROWD, _AT_ONCE):
        lab.up({"crowd.yaml": yaml.safe_dump_all(pods[first : first + _AT_ONCE], sort_keys=False)})
    client = made.clients[MESH]
    client.order("probe", host=made.address(place(MESH, "far")), port=PORT, rate=1000, seconds=6.0)
    client.answer()  # the first was answered
    time.sleep(1.0)
    done = lab.restart("a")
    found: Sample = client.answer()
    made.await_end(done["old"])
    gap_ms, tried = found["gap_s"] * 1e3, found["answered"] + found["failed"]
    note = f"of {tried:,.0f}; longest gap {gap_ms:,.0f} ms; the new proxy serves after {done['seconds'] * 1e3:,.0f} ms"
    return [Judged.at_most(f"a 1 kHz prober over a restart with {CROWD} pods", found["failed"], 0.0, "failed").noted(note)]
