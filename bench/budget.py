"""The hot path's budget: what one round trip costs weft's data workers in the kernel, in OpenSSL and in the interpreter.

Times come from `perf` (samples of the CPU clock by the library that was running), system calls and bytes from `strace`, which
slows what it counts: at many connections more messages share a call than without it. Where a tool is missing, its part is left
out.
"""

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import accounts
from bench.contenders import Contender

_SHARE = re.compile(r"\s*([\d.]+)%\s+(\S+)")
_CALL = re.compile(r"^(?:\d+ +)?(?:<\.\.\. )?(\w+)(?: resumed>|\().*= (-?\d+)")
_RECEIVING = frozenset(("recvfrom", "recvmsg", "recv", "read"))
_SENDING = frozenset(("sendto", "sendmsg", "send", "write", "writev"))
_LOADS = {
    "1 connection, 64 B": {"connections": 1, "size": 64},
    "64 connections, 1 KiB": {"connections": 64, "size": 1024},
}
_TOOLS = {"perf": "linux-perf", "strace": "strace"}
_SETTLE_S = 10.0


@dataclass(slots=True)
class Budget:
    """Of one round trip under one load, both nodes' workers together."""

    load: str
    cpu_us: float
    parts_us: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)
    received_bytes: float = 0.0
    sent_bytes: float = 0.0


def part_of(library: str) -> str:
    """Where a sample was taken, in three words."""
    if library.startswith("[k") or library.startswith("[guest"):
        return "kernel"
    return "OpenSSL" if re.match(r"lib(crypto|ssl)\b", library) else "interpreter"


def read_shares(report: str) -> dict[str, float]:
    """Shares of the CPU time by part, of `perf report --sort dso`."""
    shares: dict[str, float] = {}
    for line in report.splitlines():
        found = _SHARE.match(line)
        if found:
            part = part_of(found[2])
            shares[part] = shares.get(part, 0.0) + float(found[1])
    total = sum(shares.values())
    return {part: shares[part] / total for part in sorted(shares, key=lambda part: -shares[part])} if total else {}


def read_calls(trace: str) -> tuple[Counter[str], int, int]:
    """Calls by name, and bytes received and sent, of `strace`'s lines. Calls that failed count as calls."""
    calls: Counter[str] = Counter()
    received = sent = 0
    for line in trace.splitlines():
        found = _CALL.match(line)
        if not found:
            continue
        name, result = found[1], int(found[2])
        calls[name] += 1
        if name in _RECEIVING:
            received += max(result, 0)
        elif name in _SENDING:
            sent += max(result, 0)
    return calls, received, sent


def missing_tools() -> list[str]:
    """Debian packages whose tools are not there."""
    return [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]


def budgets(weft: Contender, workers: Sequence[int], seconds: float) -> list[Budget]:
    """Measure every load. Raises: bench.stage.LoadError."""
    return [_budget(weft, workers, seconds, name) for name in _LOADS]


def _budget(weft: Contender, workers: Sequence[int], seconds: float, name: str) -> Budget:
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        budget = _times(weft, workers, seconds, name, Path(folder, "perf.data"))
        if shutil.which("strace"):
            _count_calls(budget, weft, workers, seconds, Path(folder, "trace"))
    return budget


def _times(weft: Contender, workers: Sequence[int], seconds: float, name: str, file: Path) -> Budget:
    client, pids = weft.client, ",".join(map(str, workers))
    client.order("round_trips", host=weft.host, port=weft.port, seconds=seconds, **_LOADS[name])
    client.answer()  # it is warm
    before = accounts.cpu_s(workers)
    perf = None
    if shutil.which("perf"):
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-p", pids, "-o", str(file)]
        perf = subprocess.Popen(
            [*command, "--", "sleep", str(seconds * 0.8)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    found = client.answer()
    budget = Budget(name, (accounts.cpu_s(workers) - before) * 1e6 / found["count"])
    if perf is not None:
        perf.wait(_SETTLE_S)
        report = ["perf", "report", "-q", "--stdio", "--sort", "dso", "-i", str(file)]
        said = subprocess.run(report, capture_output=True, text=True, timeout=60).stdout
        budget.parts_us = {part: share * budget.cpu_us for part, share in read_shares(said).items()}
    return budget


def _count_calls(budget: Budget, weft: Contender, workers: Sequence[int], seconds: float, file: Path) -> None:
    attached = [word for pid in workers for word in ("-p", str(pid))]
    command = ["strace", "-f", "-qq", "-s", "0", "-o", str(file), *attached]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as strace:
        try:
            found = weft.client
            found.order("round_trips", host=weft.host, port=weft.port, seconds=seconds, **_LOADS[budget.load])
            found.answer()
            total = found.answer()["total"]
        finally:
            strace.terminate()
            strace.wait(_SETTLE_S)
    calls, received, sent = read_calls(file.read_text(errors="replace"))
    budget.calls = {name: count / total for name, count in calls.most_common() if count / total >= 0.01}
    budget.received_bytes, budget.sent_bytes = received / total, sent / total
