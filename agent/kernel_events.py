"""Reads what the kernel programs report, and counts what they could not."""

import asyncio
import time
from collections.abc import Callable

from agent.flow_log import FlowLog
from agent.kernel_flows import KernelFlows
from agent.pod_index import PodIndex
from agent.status import kernel_losses
from bpf.redirect import Redirect
from mesh.proto import flow_pb2

LOSS_INTERVAL_S = 1.0


class KernelEvents:
    """Turns events into flows for as long as it runs."""

    def __init__(self, redirect: Redirect, flows: FlowLog, names: KernelFlows, pods: Callable[[], PodIndex]) -> None:
        self._redirect = redirect
        self._flows = flows
        self._names = names
        self._pods = pods

    async def run(self) -> None:
        """Read until cancelled."""
        events = self._redirect.open_events()
        loop = asyncio.get_running_loop()

        def read() -> None:
            pods = self._pods()
            for seen in events.read():
                event = self._names.event(seen, pods)
                if event is not None:
                    self._flows.add(event, pods, time.time())

        loop.add_reader(events.fileno(), read)
        try:
            await self._count_losses()
        finally:
            loop.remove_reader(events.fileno())
            events.close()

    async def _count_losses(self) -> None:
        known = kernel_losses(self._redirect.counters())
        while True:
            await asyncio.sleep(LOSS_INTERVAL_S)
            now = kernel_losses(self._redirect.counters())
            if now > known:
                self._flows.add_lost(flow_pb2.PERF_EVENT_RING_BUFFER, now - known)
            known = now
