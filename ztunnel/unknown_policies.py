"""Warns of policies that a pod's workload lists and the control plane has not sent: they cannot be enforced."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from ztunnel.mesh_view import MeshView
from ztunnel.zds import PodInfo

DELAY_S = 1.0
"""A policy may come a moment after the workload that lists it."""
_SHOWN = 5
_log = logging.getLogger(__name__)


class UnknownPolicies:
    """Looks again a moment after each change, and says every new gap once."""

    def __init__(self, view: MeshView, pods: Callable[[], Iterable[PodInfo]]) -> None:
        self._view = view
        self._pods = pods
        self._due: asyncio.TimerHandle | None = None
        self._told: dict[str, list[str]] = {}

    def look_soon(self) -> None:
        """Something changed."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(DELAY_S, self.look)

    def look(self) -> None:
        """Say what is new."""
        self._due = None
        found: dict[str, list[str]] = {}
        for pod in self._pods():
            workload = self._view.inventory.workload_of_pod(pod.namespace, pod.name, pod.service_account)
            missing = self._view.policies.missing(workload) if workload is not None else []
            if missing:
                found[pod.uid] = missing
                if missing != self._told.get(pod.uid):
                    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
                    names = ", ".join(missing[:_SHOWN]) + more
                    _log.warning(
                        "pod %s/%s: policies that it lists were not sent by the control plane and are not enforced: %s",
                        *(pod.namespace, pod.name, names),
                    )
        self._told = found
