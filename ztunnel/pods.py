"""The pods that this node's proxy serves: their listeners, and the workers' consent."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from mesh.identity import Identity
from wire.netns import netns_id
from ztunnel.channel import HBONE, AddDNS, AddPod, RemovePod
from ztunnel.pod_sockets import BindError, Openings, PodSockets, open_own_sockets, open_pod_sockets, open_rest_of_dns
from ztunnel.workers import Statement, Workers
from ztunnel.zds_session import RETRY_S, PodInfo, StartError

OWN_UID = "own"
"""Stands for the proxy's own pod where others have Kubernetes' uid."""
DEDICATED_UID = "dedicated"
"""Stands for the one pod of a proxy that has no agent."""
_log = logging.getLogger(__name__)


class _Served(NamedTuple):
    info: PodInfo
    sockets: PodSockets
    number: int
    """Of the attempt to serve it: a worker that answers too late has not answered the next one."""


class Pods:
    """Carries out the agent's orders (`ztunnel.zds.PodHost`). A pod that fails to start leaves nothing open."""

    def __init__(
        self,
        workers: Workers,
        home_fd: int,
        openings: Openings,
        on_change: Callable[[], None],
        on_complete: Callable[[], None],
    ) -> None:
        """`on_change` hears when a pod came or went, `on_complete` when the agent has named all pods."""
        self._workers = workers
        self._home_fd = home_fd
        self._openings = openings
        self._on_change = on_change
        self._on_complete = on_complete
        self._pods: dict[str, _Served] = {}
        self._attempts = itertools.count(1)
        self._draining = False
        self._own: _Served | None = None
        """The proxy's own pod, of which the agent need not know."""
        self.ahead_of_workers = False
        """Pods need not wait for workers that have not begun: what connects does."""
        self.started = 0
        self.stopped = 0

    def running(self) -> Iterable[str]:
        """The uids that are served."""
        return list(self._pods)

    def pod(self, uid: str) -> PodInfo | None:
        """A pod that is served."""
        known = self._pods.get(uid)
        if known is None and self._own is not None and self._own.info.uid == uid:
            known = self._own
        return known.info if known else None

    def infos(self) -> list[PodInfo]:
        """All pods that are served for the agent."""
        return [one.info for one in self._pods.values()]

    def accounts(self) -> set[tuple[str, str]]:
        """Namespace and service account of all that are served, the proxy's own pod included."""
        return {(one.info.namespace, one.info.service_account) for one in self._all()}

    def uids(self, identity: Identity) -> set[str]:
        """Kubernetes' uids of the pods that are served and have an identity."""
        account = identity.namespace, identity.service_account
        pods = (pod for pod in self.infos() if (pod.namespace, pod.service_account) == account)
        return {pod.uid for pod in pods if pod.uid != DEDICATED_UID}

    def dns_troubles(self) -> dict[str, str]:
        """What is wrong with the DNS of pods that are served, by uid."""
        return {uid: one.sockets.dns_trouble for uid, one in self._pods.items() if one.sockets.dns_trouble}

    def serves(self, uid: str, netns: tuple[int, int]) -> bool:
        """Whether a pod is served in just this namespace."""
        return uid in self._pods and netns_id(self._pods[uid].sockets.netns_fd) == netns

    async def start(self, pod: PodInfo, netns_fd: int) -> None:
        """Open a pod's listeners and have every worker serve them; the caller keeps the descriptor. Raises: StartError."""
        if self._draining:
            raise StartError("this proxy is draining: its successor will serve the pod")
        try:
            sockets = open_pod_sockets(netns_fd, self._home_fd, self._openings)
        except (BindError, OSError) as error:
            raise StartError(str(error)) from error
        if sockets.dns_trouble:
            _log.error(
                "pod %s/%s is served without DNS on %s: free the port in the pod, or set ISTIO_META_DNS_PROXY_ADDR",
                *(pod.namespace, pod.name, sockets.dns_trouble),
            )
        served = self._pods[pod.uid] = _Served(pod, sockets, next(self._attempts))
        self._on_change()
        # Workers that have not begun are told of all pods when they do.
        waits = self._workers.have_begun or not self.ahead_of_workers
        if waits and (refusal := await self._tell_of(served)):
            await self.stop(pod.uid)  # whoever was told must forget
            raise StartError(refusal)
        self.started += 1
        _log.info("serving pod %s/%s", pod.namespace, pod.name)

    async def _tell_of(self, served: _Served) -> str:
        """Have every worker serve a pod; why not, or nothing."""
        try:
            return await self._workers.add_pod(self._add_pod(served), served.sockets.fds())
        except OSError as error:  # no descriptors are left to hand on
            return str(error)

    async def keep_dns(self) -> None:
        """Try again to serve the DNS of pods where it could not be served, until cancelled."""
        while True:
            await asyncio.sleep(RETRY_S)
            self.retry_dns()

    def retry_dns(self) -> None:
        """Try once."""
        for uid in self.dns_troubles():
            if not self._draining:
                self._retry_dns(uid)

    def _retry_dns(self, uid: str) -> None:
        pod, sockets, _ = served = self._pods[uid]
        try:
            opened, trouble = open_rest_of_dns(sockets, self._home_fd, self._openings)
        except OSError:
            return  # the namespace has gone, and the agent will say so
        self._pods[uid] = served._replace(sockets=replace(sockets, dns=[*sockets.dns, *opened], dns_trouble=trouble))
        if not opened:
            return
        try:
            self._workers.broadcast(AddDNS(uid), [sock.fileno() for sock in opened])
        except OSError as error:
            where = pod.namespace, pod.name, error
            _log.error("pod %s/%s: its DNS is not served by every worker: %s: raise the limit (RLIMIT_NOFILE)", *where)
        else:
            _log.info("pod %s/%s: DNS is served%s", pod.namespace, pod.name, f", but not on {trouble}" if trouble else "")

    async def start_own(self, pod: PodInfo) -> None:
        """Serve mutual TLS to the proxy's own ports, such as its metrics. Who cannot is served all else."""
        try:
            sockets = open_own_sockets(self._home_fd, self._openings)
        except (BindError, OSError) as error:
            _log.error("the proxy's own pod is not served: %s: free the port, or unset SERVICE_ACCOUNT", error)
            return
        self._own = _Served(pod, sockets, next(self._attempts))
        self._on_change()
        refusal = await self._tell_of(self._own)
        if refusal:
            _log.error("the proxy's own pod is not served by every worker: %s", refusal)

    async def stop(self, uid: str) -> None:
        """Stop serving a pod at once, its connections included."""
        known = self._pods.pop(uid, None)
        if known is None:
            return
        pod, sockets, _ = known
        self._workers.broadcast(RemovePod(uid))
        sockets.close()
        self.stopped += 1
        self._on_change()
        _log.info("no longer serving pod %s/%s", pod.namespace, pod.name)

    def complete(self) -> None:
        """The agent has named all pods of the node."""
        self._on_complete()

    def drain(self) -> None:
        """Take no new pods, and no new connections for any; the workers close their share of the listeners themselves."""
        self._draining = True
        for one in self._all():
            one.sockets.stop_listening()

    def close(self) -> None:
        """Close everything."""
        for one in self._all():
            one.sockets.close()
        self._pods.clear()
        self._own = None

    def _all(self) -> list[_Served]:
        own = [self._own] if self._own is not None else []
        return [*own, *self._pods.values()]

    def statements(self) -> list[Statement]:
        """All pods with their descriptors, for a worker that starts."""
        return [(self._add_pod(one), one.sockets.fds()) for one in self._all()]

    def _add_pod(self, served: _Served) -> AddPod:
        own, pod = served is self._own, served.info
        ports = (HBONE,) if own else self._openings.ports
        return AddPod(pod.uid, pod.namespace, pod.name, pod.service_account, own, ports, served.number)
