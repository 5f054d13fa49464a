"""`python -m agent`: the node agent's process."""

from wire import endings

if __name__ == "__main__":
    endings.remember()

import asyncio
import logging
import sys
from collections.abc import Iterator, Sequence

from agent.enrolment import EnrolmentFailed
from agent.node_agent import NodeAgent, lock, open_redirect, remove_pins
from agent.settings import Settings, parse
from wire.descriptors import take_all
from wire.exhaustion import say_when_none_is_left


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; 0 when that was all, 1 with a sentence on stderr when it could not."""
    settings = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    return_code = 0
    take_all()
    try:
        lock(settings)
        asyncio.run(_run(settings))
    except* (OSError, RuntimeError, EnrolmentFailed) as errors:
        for error in _leaves(errors):
            mend = ": run as root, with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN" if isinstance(error, PermissionError) else ""
            print(f"weft-agent of node {settings.node}: {error}{mend}", file=sys.stderr)
        return_code = 1
    return return_code


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _run(settings: Settings) -> None:
    running = asyncio.ensure_future(_uninstall(settings) if settings.uninstall else _serve(settings))
    say_when_none_is_left()
    endings.listen(lambda _: running.cancel())
    try:
        await running
    except asyncio.CancelledError as ended:
        if settings.uninstall:
            raise RuntimeError("told to end before all pods were out of the mesh: run it again") from ended
        logging.getLogger("agent").info("stops; pods stay in the mesh, the next agent takes over")


async def _serve(settings: Settings) -> None:
    redirect = await asyncio.to_thread(open_redirect, settings)
    await NodeAgent(settings, redirect).run()


async def _uninstall(settings: Settings) -> None:
    redirect = await asyncio.to_thread(open_redirect, settings)
    agent = NodeAgent(settings, redirect)
    await agent.enrolment.adopt()
    await agent.enrolment.remove_all()
    redirect.close()
    remove_pins(settings.bpffs)


if __name__ == "__main__":
    sys.exit(main())
