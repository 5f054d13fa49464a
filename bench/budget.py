"""What one of each load costs the proxies: in the kernel and above it, where weft's workers have OpenSSL and the interpreter.

Others are sampled as well: only beside them does a part say what stands between weft and a target. Times come from `perf`
(samples of the CPU clock by the library that was running), system calls and bytes from `strace`, which slows what it counts: at
many connections more messages share a call than without it. Where a tool is missing, its part is left out.
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
from typing import Any

from bench import accounts
from bench.contenders import WEFT, Contender
from bench.figures import Sample
from bench.topology import SOURCES

_SHARE = re.compile(r"\s*([\d.]+)%\s+(\S+)")
_CALL = re.compile(r"^(?:\d+ +)?(?:<\.\.\. )?(\w+)(?: resumed>|\().*= (-?\d+)")
_RECEIVING = frozenset(("recvfrom", "recvmsg", "recv", "read"))
_SENDING = frozenset(("sendto", "sendmsg", "send", "write", "writev"))
_MIB = 1 << 20
_TOOLS = {"perf": "linux-perf", "strace": "strace"}
_SETTLE_S = 10.0
INTERPRETER = "interpreter"


@dataclass(frozen=True, slots=True)
class Load:
    """What is carried out, and in what it is counted."""

    name: str
    order: str
    details: dict[str, Any]
    unit_of: Callable[[Sample], float]
    """Units of a whole load, warming up included."""


@dataclass(slots=True)
class Budget:
    """Of one round trip (or MiB, or connection) under one load, both nodes' proxies together; of weft's the workers."""

    load: str
    whose: str
    cpu_us: float
    parts_us: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)
    received_bytes: float = 0.0
    sent_bytes: float = 0.0


def warm_loads(quick: bool) -> list[Load]:
    """Those that leave nothing behind."""
    many, seconds = (512, 1) if quick else (1024, 2)
    sizes = (("1 connection, 64 B", 1, 64), ("1 connection, 16 KiB", 1, 16 << 10), ("64 connections, 1 KiB", 64, 1 << 10))
    return [
        *(
            Load(f"round trip, {name}", "round_trips", {"connections": connections, "size": size, "seconds": seconds}, _total)
            for name, connections, size in sizes
        ),
        *(
            Load(f"MiB, {way}", order, {"bytes": many * _MIB}, lambda found: found["bytes"] / _MIB)
            for way, order in (("client to server", "upload"), ("server to client", "download"))
        ),
        Load("connect + request, same peer", "exchanges", {"seconds": seconds}, _count),
    ]


def new_peers(quick: bool) -> Load:
    """Behind all else: see `contenders.fresh`."""
    details = {"seconds": 1 if quick else 2, "sources": SOURCES}
    return Load("connect + request, a new peer each time", "exchanges", details, _count)


def _total(found: Sample) -> float:
    return found["total"]


def _count(found: Sample) -> float:
    return found["count"]


def part_of(library: str, whose: str = WEFT) -> str:
    """Where a sample was taken, in few words. Others have their TLS in the binary, and it has no symbols."""
    if library.startswith("[k") or library.startswith("[guest"):
        return "kernel"
    if whose != WEFT:
        return "user space"
    return "OpenSSL" if re.match(r"lib(crypto|ssl)\b", library) else INTERPRETER


def read_shares(report: str, whose: str = WEFT) -> dict[str, float]:
    """Shares of the CPU time by part, of `perf report --sort dso`."""
    shares: dict[str, float] = {}
    for line in report.splitlines():
        found = _SHARE.match(line)
        if found:
            part = part_of(found[2], whose)
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


def budgets(found: Sequence[Contender], workers: Sequence[int], loads: Sequence[Load]) -> list[Budget]:
    """Measure all under every load, `workers` for weft. Raises: bench.stage.LoadError."""
    return [_budget(one, workers if one.name == WEFT else one.pids(), load) for load in loads for one in found]


def _budget(one: Contender, pids: Sequence[int], load: Load) -> Budget:
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
        budget = _times(one, pids, load, Path(folder, "perf.data"))
        if one.name == WEFT and shutil.which("strace"):
            _count_calls(budget, one, pids, load, Path(folder, "trace"))
    return budget


def _carry_out(one: Contender, load: Load) -> float:
    """Units that were carried out, from the first connection on."""
    one.client.order(load.order, host=one.host, port=one.port, **load.details)
    if load.order == "round_trips":
        one.client.answer()  # it is warm
    return load.unit_of(one.client.answer())


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


def _times(one: Contender, pids: Sequence[int], load: Load, file: Path) -> Budget:
    record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-p", ",".join(map(str, pids)), "-o", str(file)]
    has_perf = shutil.which("perf") is not None
    with _watching(record) if has_perf else nullcontext():
        _await(file.exists if has_perf else lambda: True)
        before = accounts.cpu_s(pids)
        units = _carry_out(one, load)
    budget = Budget(load.name, one.name, (accounts.cpu_s(pids) - before) * 1e6 / units)
    if has_perf:
        report = ["perf", "report", "-q", "--stdio", "--sort", "dso", "-i", str(file)]
        said = subprocess.run(report, capture_output=True, text=True, timeout=60).stdout
        budget.parts_us = {part: share * budget.cpu_us for part, share in read_shares(said, one.name).items()}
    return budget


def _await(is_so: Callable[[], bool]) -> None:
    """Wait for a tool to be at work; one that never is finds nothing."""
    deadline = time.monotonic() + _SETTLE_S
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)


def _all_traced(pids: Sequence[int]) -> bool:
    return not any("TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text() for pid in pids)


def _count_calls(budget: Budget, one: Contender, pids: Sequence[int], load: Load, file: Path) -> None:
    attached = [word for pid in pids for word in ("-p", str(pid))]
    with _watching(["strace", "-f", "-qq", "-s", "0", "-o", str(file), *attached]):
        _await(lambda: _all_traced(pids))
        units = _carry_out(one, load)
    calls, received, sent = read_calls(file.read_text(errors="replace"))
    budget.calls = {name: count / units for name, count in calls.most_common() if count / units >= 0.01}
    budget.received_bytes, budget.sent_bytes = received / units, sent / units
