"""Entry of the node proxy: `python -m ztunnel --node NAME [--control HOST:PORT] [--workers N]`."""

import gc

from wire import endings

if __name__ == "__main__":
    gc.disable()  # until all is imported: there is nothing to collect meanwhile, and looking for it is a tenth of the start
    endings.remember()

import asyncio
import logging
import os
import resource
import signal
import ssl
import sys
from functools import partial

from wire.descriptors import take_all
from wire.exhaustion import say_when_none_is_left
from ztunnel.config import Config, read_config
from ztunnel.front import Front
from ztunnel.log_lines import log_to_stderr
from ztunnel.openssl_conf import check_pqc
from ztunnel.shortage import MEND
from ztunnel.spelling import misspelt

_log = logging.getLogger("ztunnel")


def main() -> int:
    """Run until told to end: the exit status."""
    log_to_stderr(os.environ.get("LOG_FORMAT") == "json")
    never_dump_core()
    try:
        config = read_config(sys.argv[1:], os.environ, len(os.sched_getaffinity(0)))
        if config.pqc:
            check_pqc(ssl.OPENSSL_VERSION_INFO)
    except ValueError as error:
        _complain(error)
        return 2
    take_all()
    try:
        return asyncio.run(_run(config))
    except asyncio.CancelledError:
        return 0
    except (OSError, ValueError) as error:
        _complain(error)
        return 1
    except MemoryError:
        _complain(MemoryError(f"no memory is left: {MEND}"))
        return 1


async def _run(config: Config) -> int:
    say_when_none_is_left()
    endings.listen(partial(_end, asyncio.current_task()))
    front = Front(config)
    try:
        await front.begin()
        for name, near in misspelt(os.environ):
            _log.warning("%s is no setting and changes nothing: the nearest one is %s", name, near)
        # Only here: what it imports takes longer than to listen for the pods.
        from ztunnel.supervisor import Supervisor

        gc.freeze()  # what was imported stays
        gc.enable()
        supervisor = Supervisor(config, front)
    except BaseException:
        await front.abandon()
        raise
    return await supervisor.run()


def _end(starting: "asyncio.Task[int] | None", number: int) -> None:
    """End in order while the rest is yet to come; a supervisor that runs listens itself."""
    if starting is not None and not starting.cancelling():
        _log.info("%s while it starts: ending", signal.Signals(number).name)
        starting.cancel()


def _complain(error: Exception) -> None:
    """For who started us by hand one line without ornament; who reads JSON gets JSON."""
    if os.environ.get("LOG_FORMAT") == "json":
        _log.error("%s", error)
    else:
        print(f"weft-ztunnel: {error}", file=sys.stderr)


def never_dump_core() -> None:
    """No key gets to a disk in what the kernel writes of a process that crashes: of this one, or of its workers."""
    # 0 would still hand everything to the program that core_pattern names; 1 is refused for that too, core(5) notwithstanding.
    most = 0 if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
