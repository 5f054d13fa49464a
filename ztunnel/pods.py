"""The pods that this node's proxy serves: their listeners, and the workers' consent."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

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
        self._pods: dict[str, tuple[PodInfo, PodSockets]] = {}
        self._draining = False
        self._own: tuple[PodInfo, PodSockets] | None = None
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
        if known is None and self._own is not None and self._own[0].uid == uid:
            known = self._own
        return known[0] if known else None

    def infos(self) -> list[PodInfo]:
        """All pods that are served for the agent."""
        return [info for info, _ in self._pods.values()]

    def accounts(self) -> set[tuple[str, str]]:
        """Namespace and service account of all that are served, the proxy's own pod included."""
        return {(pod.namespace, pod.service_account) for pod, _ in self._all()}

    def uids(self, identity: Identity) -> set[str]:
        """Kubernetes' uids of the pods that are served and have an identity."""
        account = identity.namespace, identity.service_account
        pods = (pod for pod, _ in self._pods.values() if (pod.namespace, pod.service_account) == account)
        return {pod.uid for pod in pods if pod.uid != DEDICATED_UID}

    def dns_troubles(self) -> dict[str, str]:
        """What is wrong with the DNS of pods that are served, by uid."""
        return {uid: sockets.dns_trouble for uid, (_, sockets) in self._pods.items() if sockets.dns_trouble}

    def serves(self, uid: str, netns: tuple[int, int]) -> bool:
        """Whether a pod is served in just this namespace."""
        return uid in self._pods and netns_id(self._pods[uid][1].netns_fd) == netns

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
        self._pods[pod.uid] = (pod, sockets)
        self._on_change()
        # Workers that have not begun are told of all pods when they do.
        waits = self._workers.have_begun or not self.ahead_of_workers
        if waits and (refusal := await self._tell_of(pod, sockets)):
            await self.stop(pod.uid)  # whoever was told must forget
            raise StartError(refusal)
        self.started += 1
        _log.info("serving pod %s/%s", pod.namespace, pod.name)

    async def _tell_of(self, pod: PodInfo, sockets: PodSockets) -> str:
        """Have every worker serve a pod; why not, or nothing."""
        try:
            return await self._workers.add_pod(self._add_pod(pod), pod.uid, sockets.fds())
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
        pod, sockets = self._pods[uid]
        try:
            opened, trouble = open_rest_of_dns(sockets, self._home_fd, self._openings)
        except OSError:
            return  # the namespace has gone, and the agent will say so
        self._pods[uid] = (pod, replace(sockets, dns=[*sockets.dns, *opened], dns_trouble=trouble))
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
        self._own = (pod, sockets)
        self._on_change()
        refusal = await self._tell_of(pod, sockets)
        if refusal:
            _log.error("the proxy's own pod is not served by every worker: %s", refusal)

    async def stop(self, uid: str) -> None:
        """Stop serving a pod at once, its connections included."""
        known = self._pods.pop(uid, None)
        if known is None:
            return
        pod, sockets = known
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
        for _, sockets in self._all():
            sockets.stop_listening()

    def close(self) -> None:
        """Close everything."""
        for _, sockets in self._all():
            sockets.close()
        self._pods.clear()
        self._own = None

    def _all(self) -> list[tuple[PodInfo, PodSockets]]:
        own = [self._own] if self._own is not None else []
        return [*own, *self._pods.values()]

    def statements(self) -> list[Statement]:
        """All pods with their descriptors, for a worker that starts."""
        return [(self._add_pod(pod), sockets.fds()) for pod, sockets in self._all()]

    def _add_pod(self, pod: PodInfo) -> AddPod:
        own = self._own is not None and pod is self._own[0]
        ports = (HBONE,) if own else self._openings.ports
        return AddPod(pod.uid, pod.namespace, pod.name, pod.service_account, own, ports)
