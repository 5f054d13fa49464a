"""`python -m bench`: weft beside bare TCP and pairs of real Envoys and ztunnels, paired round by round, on a lab of its own."""

import argparse
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from bench import envoy_pair, report
from bench.image import Image
from bench.line_up import line_up, workers_of
from bench.report import Results
from bench.run import FAILURES, Run, lay_out
from bench.stage import stage

# A lab of its own: one that is up already is left alone (but disturbs the figures).
_OWN = {"WEFT_PREFIX": "weft-bench", "WEFT_RUN_DIR": "/run/weft-bench", "WEFT_STATE_DIR": "/var/lib/weft-bench"}

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    often = "how often every contender is measured (default 4, about 14 minutes; 1 with --quick)"
    parser.add_argument("--rounds", type=int, help=often)
    parser.add_argument("--quick", action="store_true", help="short loads, to see that it works; no figures to quote")
    layouts = "CPUs: as the kernel likes; all on the last; clients on the first and all else on the last"
    parser.add_argument("--layout", choices=["free", "one", "split"], default="free", help=layouts)
    parser.add_argument("--image", type=Path, metavar="ROOT", help="run weft's processes from a node image's root file system")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for bench.md and bench.json")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    flags = parser.parse_args()
    flags.rounds = flags.rounds or (1 if flags.quick else 4)
    return flags


def _stop(number: int, _frame: object) -> None:
    """End, with the lab and all proxies, whatever is pressed or sent while that takes its time."""
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + number)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _run(flags: argparse.Namespace, image: Image | None) -> tuple[dict[str, object], Results]:
    results = Results()
    with stage(_say, flags.keep) as made, ExitStack() as proxies:
        workers = len(workers_of(made)) or 1
        where = report.surroundings(workers, flags.rounds, flags.layout, flags.quick, image)
        found = line_up(made, proxies, workers, where["openssl"])
        lay_out(made, flags.layout, [pid for one in found for pid in one.pids()])
        Run(made, found, proxies, results, flags.rounds, flags.quick, image, _say).measure()
    return where, results


def main() -> int:
    """Run the bench. Exit codes: 0 measured, 1 something was not (the result says what)."""
    flags = _flags()
    for number in _SIGNALS:
        signal.signal(number, _stop)
    for name, value in _OWN.items():
        os.environ.setdefault(name, value)
    try:
        envoy_pair.envoy_binary()
        image = Image.of(flags.image) if flags.image else None
        if image is not None:
            os.environ["WEFT_LAB_IMAGE"] = str(image.root)
        where, results = _run(flags, image)
    except FAILURES as error:
        _say(f"failed: {error}")
        return 1
    text, data = report.write(flags.out, where, results)
    print(text.read_text())
    _say(f"written to {text} and {data}")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
