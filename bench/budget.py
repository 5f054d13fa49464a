"""The hot path's budget: what one round trip costs weft's data workers in the kernel, in OpenSSL and in the interpreter.

Times come from `perf` (samples of the CPU clock by the library that was running), system calls and bytes from `strace`, which
slows what it counts: at many connections more messages share a call than without it. Where a tool is missing, its part is left
out.
"""

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from bench import accounts
from bench.contenders import Contender
from bench.figures import Sample

_SHARE = re.compile(r"\s*([\d.]+)%\s+(\S+)")
_CALL = re.compile(r"^(?:\d+ +)?(?:<\.\.\. )?(\w+)(?: resumed>|\().*= (-?\d+)")
_RECEIVING = frozenset(("recvfrom", "recvmsg", "recv", "read"))
_SENDING = frozenset(("sendto", "sendmsg", "send", "write", "writev"))
_MIB = 1 << 20
_TOOLS = {"perf": "linux-perf", "strace": "strace"}
_SETTLE_S = 10.0


@dataclass(frozen=True, slots=True)
class _Load:
    """What is carried out, and in what it is counted."""

    name: str
    order: str
    details: dict[str, int]
    unit_of: Callable[[Sample], float]
    """Units of a whole load, warming up included."""


@dataclass(slots=True)
class Budget:
    """Of one round trip (or MiB) under one load, both nodes' workers together."""

    load: str
    cpu_us: float
    parts_us: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)
    received_bytes: float = 0.0
    sent_bytes: float = 0.0


def _loads(quick: bool) -> list[_Load]:
    many, seconds = (512, 1) if quick else (1024, 2)
    return [
        _Load(f"round trip, {name}", "round_trips", {**details, "seconds": seconds}, lambda found: found["total"])
        for name, details in (
            ("1 connection, 64 B", {"connections": 1, "size": 64}),
            ("64 connections, 1 KiB", {"connections": 64, "size": 1024}),
        )
    ] + [_Load("MiB, client to server", "upload", {"bytes": many * _MIB}, lambda found: found["bytes"] / _MIB)]


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


def budgets(weft: Contender, workers: Sequence[int], quick: bool) -> list[Budget]:
    """Measure every load. Raises: bench.stage.LoadError."""
    found = []
    for load in _loads(quick):
        with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
            budget = _times(weft, workers, load, Path(folder, "perf.data"))
            if shutil.which("strace"):
                _count_calls(budget, weft, workers, load, Path(folder, "trace"))
        found.append(budget)
    return found


def _carry_out(weft: Contender, load: _Load) -> float:
    """Units that were carried out, from the first connection on."""
    weft.client.order(load.order, host=weft.host, port=weft.port, **load.details)
    if load.order == "round_trips":
        weft.client.answer()  # it is warm
    return load.unit_of(weft.client.answer())


@contextmanager
def _watching(command: list[str]) -> Iterator[None]:
    """Run a tool that ends, with what it found, when it is interrupted."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as tool:
        try:
            yield
        finally:
            tool.send_signal(signal.SIGINT)
            try:
                tool.wait(_SETTLE_S)
            except subprocess.TimeoutExpired:
                tool.kill()


def _times(weft: Contender, workers: Sequence[int], load: _Load, file: Path) -> Budget:
    record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-p", ",".join(map(str, workers)), "-o", str(file)]
    has_perf = shutil.which("perf") is not None
    with _watching(record) if has_perf else nullcontext():
        _await(file.exists if has_perf else lambda: True)
        before = accounts.cpu_s(workers)
        units = _carry_out(weft, load)
    budget = Budget(load.name, (accounts.cpu_s(workers) - before) * 1e6 / units)
    if has_perf:
        report = ["perf", "report", "-q", "--stdio", "--sort", "dso", "-i", str(file)]
        said = subprocess.run(report, capture_output=True, text=True, timeout=60).stdout
        budget.parts_us = {part: share * budget.cpu_us for part, share in read_shares(said).items()}
    return budget


def _await(is_so: Callable[[], bool]) -> None:
    """Wait for a tool to be at work; one that never is finds nothing."""
    deadline = time.monotonic() + _SETTLE_S
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)


def _all_traced(pids: Sequence[int]) -> bool:
    return not any("TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text() for pid in pids)


def _count_calls(budget: Budget, weft: Contender, workers: Sequence[int], load: _Load, file: Path) -> None:
    attached = [word for pid in workers for word in ("-p", str(pid))]
    with _watching(["strace", "-f", "-qq", "-s", "0", "-o", str(file), *attached]):
        _await(lambda: _all_traced(workers))
        units = _carry_out(weft, load)
    calls, received, sent = read_calls(file.read_text(errors="replace"))
    budget.calls = {name: count / units for name, count in calls.most_common() if count / units >= 0.01}
    budget.received_bytes, budget.sent_bytes = received / units, sent / units
