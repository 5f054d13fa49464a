"""What a proxy that starts does first, before the rest of it is even imported: its pods' listeners and its workers' processes.

Until a pod's listeners are there the kernel refuses its connections; from then on they wait in a queue. What the rest needs
(gRPC, cryptography, the state on disk) takes longer to import than all of this takes, and the workers' processes import what
they need meanwhile. So nothing here, nor what it imports, may import what is not needed to listen: types that are only
spoken of are imported for the type checker alone (tests/test_tree.py).

Where a predecessor serves still there is no hurry: listeners would take its connections, and nobody could serve them yet.
"""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Protocol

from wire.netns import open_home
from ztunnel.channel import FromWorker
from ztunnel.config import Config
from ztunnel.pod_sockets import Openings, check_privileges
from ztunnel.pods import Pods
from ztunnel.succession import succeed
from ztunnel.workers import Statement, Workers
from ztunnel.zds import ZdsClient

_HEAD_START_S = 0.02
"""How long the workers wait for that: they want the CPUs for themselves, and have nothing to serve before the rest is there."""
_PATIENCE_S = 0.1
"""How long the rest waits for the agent to name the pods: some 50 of them."""


class Rest(Protocol):
    """The rest of the proxy, once it is there."""

    def statements(self, index: int) -> Iterable[Statement]:
        """All that worker N must be told when it starts."""

    def hear(self, worker: int, message: FromWorker) -> None:
        """Worker N said something."""

    def worker_died(self, worker: int) -> None:
        """Worker N's connections are gone."""

    def pods_changed(self) -> None:
        """A pod came or went."""

    def pods_complete(self) -> None:
        """The agent has named all pods."""


class Front:
    """Workers, pods and the agent's orders. Made and begun inside an event loop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rest: Rest | None = None
        self._known = asyncio.Event()
        self._all_named = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._orders: asyncio.Task[None] | None = None
        self.home_fd = open_home()
        self.workers = Workers(
            config.workers,
            self._statements,
            self._hear,
            self._worker_died,
            pqc=config.pqc,
            told=self._known,
            patience_s=config.worker_patience_s,
        )
        self.pods = Pods(
            self.workers,
            self.home_fd,
            Openings(config.packet_mark, config.dns_places, config.ipv6, config.pod_ports, config.port_reuse),
            self._pods_changed,
            self._pods_complete,
        )
        self.zds = ZdsClient(config.zds_socket, self.pods)
        self.predecessor = AsyncExitStack()
        """For as long as its endpoints are ours."""

    async def begin(self) -> None:
        """Start the workers and listen for the pods. Raises: OSError when privileges are missing."""
        check_privileges(self.home_fd, self._config.packet_mark)
        if await succeed(self._config.admin_socket, self.predecessor) or self._config.dedicated_to is not None:
            self._running = asyncio.ensure_future(self.workers.run())
            return
        self.pods.ahead_of_workers = True
        self._orders = asyncio.ensure_future(self.zds.run())
        named = asyncio.ensure_future(self._all_named.wait())
        await asyncio.wait((named, self._orders), timeout=_HEAD_START_S, return_when=asyncio.FIRST_COMPLETED)
        self._running = asyncio.ensure_future(self.workers.run())
        await asyncio.wait((named, self._orders), timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        named.cancel()

    async def abandon(self) -> None:
        """There will be no rest: end everything."""
        tasks = [task for task in (self._running, self._orders) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.pods.close()
        await self.predecessor.aclose()

    async def run_workers(self) -> None:
        """Until cancelled."""
        await (self._running or self.workers.run())

    async def obey(self) -> None:
        """Carry out the agent's orders, until cancelled. Raises: ZdsProtocolError."""
        if self._orders is None:  # a predecessor serves: from our listen() on, new connections are ours to serve
            await self.workers.await_serving()
        await (self._orders or self.zds.run())

    def join(self, rest: Rest) -> None:
        """The rest is there: workers are told what it knows, and it hears what happened meanwhile."""
        self._rest = rest
        rest.pods_changed()
        if self._all_named.is_set():
            rest.pods_complete()
        self._known.set()

    def _statements(self, index: int) -> Iterable[Statement]:
        return self._rest.statements(index) if self._rest is not None else ()

    def _hear(self, worker: int, message: FromWorker) -> None:
        if self._rest is not None:
            self._rest.hear(worker, message)

    def _worker_died(self, worker: int) -> None:
        if self._rest is not None:
            self._rest.worker_died(worker)

    def _pods_changed(self) -> None:
        if self._rest is not None:
            self._rest.pods_changed()

    def _pods_complete(self) -> None:
        self._all_named.set()
        if self._rest is not None:
            self._rest.pods_complete()
