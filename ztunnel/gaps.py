"""Warns of what this proxy and the control plane do not agree on.

Policies that a pod's workload lists and nobody has sent cannot be enforced. A network under another name than this proxy's: its
pods' names are not answered, and peers take it for one beyond a gateway.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from mesh.workload import Workload
from ztunnel.mesh_view import MeshView
from ztunnel.zds_session import PodInfo

DELAY_S = 1.0
"""A policy may come a moment after the workload that lists it."""
_SHOWN = 5
_log = logging.getLogger(__name__)


class Gaps:
    """Looks again a moment after each change, and says every new gap once."""

    def __init__(
        self, view: MeshView, pods: Callable[[], Iterable[PodInfo]], network: str, node: str = "", cluster: str = ""
    ) -> None:
        self._view = view
        self._pods = pods
        self._network = network
        self._node = node
        self._cluster = cluster
        self._due: asyncio.TimerHandle | None = None
        self._told: dict[str, str] = {}

    def look_soon(self) -> None:
        """Something changed."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(DELAY_S, self.look)

    def look(self) -> None:
        """Say what is new."""
        self._due = None
        found: dict[str, str] = {}
        for pod in self._pods():
            who = (pod.namespace, pod.name, pod.service_account)
            workload = self._view.inventory.workload_of_pod(*who, self._node, self._cluster)
            if workload is not None:
                found |= self._policies(pod, workload) | self._networks(pod, workload)
        for gap, words in found.items():
            if words != self._told.get(gap):
                _log.warning("%s", words)
        self._told = found

    def _policies(self, pod: PodInfo, workload: Workload) -> dict[str, str]:
        missing = self._view.policies.missing(workload)
        if not missing:
            return {}
        names = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        reason = f"policies that it lists were not sent by the control plane and are not enforced: {names}"
        return {f"policies of {pod.uid}": f"pod {pod.namespace}/{pod.name}: {reason}"}

    def _networks(self, pod: PodInfo, workload: Workload) -> dict[str, str]:
        """One gap for all pods of a network."""
        if workload.network == self._network:
            return {}
        name = workload.network
        mend = f"set NETWORK={name}, or mend the label topology.istio.io/network"
        return {f"network {name}": f"pods of this node are on network {name!r}, this proxy on {self._network!r}: {mend}"}
