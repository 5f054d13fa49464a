"""Two proxies of one node, for the moments in which one takes over from the other.

Theory of operation. A successor is started beside its predecessor. It asks for the admin endpoints (`POST /succeed` on the
admin socket), which are then its own: whoever asks for readiness hears the successor alone. The agent tells it of all pods; its
listeners bind beside the predecessor's (SO_REUSEPORT), and from the moment they listen the kernel side of the redirect hands
new connections to them. When it is ready, whoever started it ends the predecessor (SIGTERM), which takes what waits in its
accept queues, closes its listeners, lets open connections go on and asks its peers for new tunnels (GOAWAY). Keys are the
kernel keyring's (`ztunnel.key_store`), the mesh is on disk, where the successor alone writes: it waits for nobody.

A successor that ends before its time gives the endpoints back: they are its own for as long as the connection that asked for
them lives. Once the predecessor drains, it wants them no more: they are the successor's, or that one's own successor's.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from wire.http_client import open_stream
from wire.http_messages import HttpError

PATH = "/succeed"
_TIMEOUT_S = 2.0
_DRAINS = b"released, and draining\n"
_log = logging.getLogger(__name__)


async def succeed(admin_socket: Path, stack: AsyncExitStack) -> bool:
    """Have the endpoints of a proxy that is there already, for as long as `stack` lives: whether one takes connections.

    One that does not answer, or knows nothing of successors, is left alone: the endpoints are then taken, or are not.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            status, _, pieces = await stack.enter_async_context(open_stream(admin_socket, "POST", PATH, timeout_s=_TIMEOUT_S))
            if status != 200:
                return False
            serves = await anext(pieces) != _DRAINS
    except TimeoutError:  # its workers may serve all the same
        _log.warning("a proxy of this node is there and does not answer on %s: continue or kill it", admin_socket)
        return True
    except (OSError, HttpError, StopAsyncIteration):
        return False
    _log.info("taking over from the proxy that %s this node", "serves" if serves else "drains on")
    return serves


async def hand_over(
    release: Callable[[], Awaitable[None]], take_back: Callable[[], Awaitable[None]], serves: bool
) -> AsyncGenerator[bytes, None]:
    """The answer to a successor: lasts as long as it does."""
    try:
        await release()
        _log.info("a successor takes over: it has the admin endpoints")
        yield b"released\n" if serves else _DRAINS
        await asyncio.Event().wait()
    finally:
        await take_back()
