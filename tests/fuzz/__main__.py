"""`make fuzz`: every target under a coverage-guided fuzzer (atheris), each for a bounded time. Exit code 1: it found something.

usage: python -m tests.fuzz [--seconds N] [--jobs N] [TARGET...]

What is interesting is kept in build/fuzz/corpus/TARGET and is where the next run begins; what was found goes into
build/fuzz/findings/TARGET-KIND-HASH, and `python -m tests.fuzz --replay FILE TARGET` feeds it again. Kinds: crash (an exception
that the parser may not raise, or a broken promise), timeout (5 s for one input), oom (1 GiB). Edges: branches of weft's and
hpack's code that inputs reached.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BUILD = ROOT / "build" / "fuzz"
_SLOW_S, _MEMORY_MIB = 5, 1024
_GRACE_S = 240.0
"""To start, which takes 45 s on a busy machine, and to work off the corpus."""


def _flags(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="feed one input to one target, without the fuzzer")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _plant(name: str) -> Path:
    """The corpus of a target, with its seeds in it."""
    from tests.fuzz.targets import TARGETS

    folder = _BUILD / "corpus" / name
    folder.mkdir(parents=True, exist_ok=True)
    for seed in TARGETS[name].seeds:
        (folder / sha256(seed).hexdigest()[:16]).write_bytes(seed)
    return folder


def _run(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["ztunnel", "mesh", "wire", "agent", "control", "hpack"]):
        from tests.fuzz.targets import TARGETS
    target, findings = TARGETS[name], _BUILD / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={target.max_bytes}",
        f"-timeout={_SLOW_S}",
        f"-rss_limit_mb={_MEMORY_MIB}",
        f"-artifact_prefix={findings}/{name}-",
        "-keep_seed=1",  # what OpenSSL alone tells apart is no coverage: such seeds would be forgotten
        str(_plant(name)),
    ]
    atheris.Setup([sys.argv[0], *options], target.feed)
    atheris.Fuzz()


def _one(name: str, seconds: int) -> tuple[str, str]:
    """Fuzz one target in a process of its own: its name, and what it found; empty when that is nothing."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz", "--run", "--seconds", str(seconds), name]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=seconds + _GRACE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return name, f"did not end {_GRACE_S:.0f} s after its time"
    output = done.stdout + done.stderr
    last = re.search(r"^#(\d+)\s+DONE\s+(?:cov: (\d+) )?.*exec/s: (\d+)", output, re.MULTILINE)
    runs, edges, pace = last.groups("0") if last else ("0", "0", "0")
    took = f"{time.monotonic() - began:.0f} s ({pace} a second)"
    print(f"fuzz: {name}: {runs} inputs in {took}, {edges} edges", file=sys.stderr, flush=True)
    if done.returncode == 0 and int(runs) > 0:
        return name, ""
    return name, f"exit code {done.returncode}\n{output[-6000:]}"


def _fuzz(names: list[str], seconds: int, jobs: int) -> Iterator[tuple[str, str]]:
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda name: _one(name, seconds), names)


def main(arguments: list[str]) -> int:
    """Run it. Exit codes: 0 nothing found, 1 found something, 2 cannot run."""
    flags = _flags(arguments)
    if flags.run:
        _run(flags.targets[0], flags.seconds)
    from tests.fuzz.targets import TARGETS

    names = flags.targets or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        print(f"fuzz: no target {', '.join(unknown)}: choose from {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    if flags.list:
        print("\n".join(names))
        return 0
    if flags.replay:
        TARGETS[names[0]].feed(flags.replay.read_bytes())
        print(f"fuzz: {names[0]} takes {flags.replay}")
        return 0
    if find_spec("atheris") is None:
        print(
            "fuzz: atheris is not installed: it has wheels for CPython 3.11 to 3.13 on x86-64 alone. `make test` feeds every"
            " target with hypothesis instead, on any machine.",
            file=sys.stderr,
        )
        return 2
    found = {name: what for name, what in _fuzz(names, flags.seconds, flags.jobs) if what}
    for name, what in found.items():
        print(f"fuzz: {name} FOUND SOMETHING: {what}")
    print(f"fuzz: {len(names)} targets, {flags.seconds} s each: {len(found)} found something; inputs in {_BUILD / 'findings'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
