"""weft-lab: a kubelet in miniature for one machine. `weft lab up` starts it; it may also be run by hand."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys

from lab.api import Api
from lab.claim import claim, held
from lab.daemon import Daemon
from lab.layout import Layout
from wire.exhaustion import say_when_none_is_left
from wire.http_server import HttpServer

_MAX_BODY_BYTES = 64 << 20
"""As much as control takes: manifests come in one piece."""
_PATIENCE_S = 2.0
"""For a former one to end."""


async def serve(layout: Layout, mesh: bool) -> None:
    """Run the daemon and its API until a signal ends it.

    Raises: ValueError for a ledger that is none; RuntimeError, OSError when the kernel refuses the lab's own network.
    """
    say_when_none_is_left()
    daemon = Daemon(layout, mesh)
    server = HttpServer(Api(daemon).routes(), max_body_bytes=_MAX_BODY_BYTES)
    task = asyncio.create_task(daemon.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    await server.listen_unix(layout.socket)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        await server.close()
        layout.socket.unlink(missing_ok=True)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m lab", description="weft-lab: nodes and pods on this machine.")
    parser.add_argument("--no-mesh", action="store_true", help="the same topology without agents and proxies")
    flags = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("weft-lab: run as root: it makes network namespaces and cgroups")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        layout = Layout.from_environment()
        with held(f"{layout.places.prefix}:daemon", _PATIENCE_S) as alone:
            if not alone:
                sys.exit("weft-lab: another process of this lab's serves it already")
            layout = claim(layout)
            asyncio.run(serve(layout, not flags.no_mesh))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"weft-lab: {error}")


if __name__ == "__main__":
    main()
