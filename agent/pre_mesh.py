"""Connections that are older than their pod's enrolment, or came while its inbound program was detached.

No proxy carries them and no hook saw them open. They are left alone and shown as `pre-mesh` flows, except where a pod's
policies, in force or to come, do not allow plain text: there the inbound ones are closed.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from agent.enrolment import Enrolment
from agent.kernel_flows import local_end
from agent.mesh_view import MeshView
from agent.pod import Pod
from bpf.sock_destroy import Connection
from mesh.exclusions import Exclusions
from mesh.flows import ConnectionEvent, FlowEndpoint, policy_object
from mesh.workload import Address, Workload

_log = logging.getLogger(__name__)
_SETTLE_S = 0.05
"""Updates of the mesh come in groups; each group is answered once."""
_RECHECK_S = 30.0


class PreMesh:
    """Looks at the remembered connections whenever a pod enters or the mesh changes."""

    def __init__(
        self,
        node: str,
        cluster: str,
        enrolment: Enrolment,
        view: MeshView,
        exclusions: Exclusions,
        own_addresses: Callable[[], frozenset[Address]],
        on_event: Callable[[ConnectionEvent], None],
    ) -> None:
        """`exclusions`: of every pod of the node, beside each pod's own; `own_addresses`: the node's own, whose processes are
        exempt from policy."""
        self._node = node
        self._cluster = cluster
        self._enrolment = enrolment
        self._view = view
        self._exclusions = exclusions
        self._own_addresses = own_addresses
        self._on_event = on_event
        self._shown: dict[str, set[int]] = {}
        self._news = asyncio.Event()

    def changed(self) -> None:
        """A pod entered, or the mesh is another one: look again."""
        self._news.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_RECHECK_S):
                    await self._news.wait()
            except TimeoutError:
                pass  # connections that ended are forgotten
            await asyncio.sleep(_SETTLE_S)
            self._news.clear()
            pods = self._enrolment.pods()
            self._shown = {uid: shown for uid, shown in self._shown.items() if uid in pods}
            for pod in pods.values():
                if self._enrolment.is_captured(pod.uid):
                    try:
                        await self._look(pod)
                    except OSError as error:
                        _log.warning("pod %s: connections older than its enrolment: %s", pod, error)

    async def _look(self, pod: Pod) -> None:
        netns_fd = self._enrolment.netns_of(pod.uid)
        if netns_fd is None:
            return
        hands = self._enrolment.hands
        living, listening = await self._enrolment.blocking(hands.older_connections, pod.uid, netns_fd)
        own = self._own_addresses() if living else frozenset()  # a question to the kernel, and not one for each connection
        doomed: list[Connection] = []
        for one in living:
            inbound = one.local_port in listening
            event = self._judge(pod, one, inbound, own)
            if event is None:
                continue
            if event.phase == "denied":
                doomed.append(one)
            elif one.cookie in self._shown.setdefault(pod.uid, set()):
                continue
            self._shown.setdefault(pod.uid, set()).add(one.cookie)
            self._on_event(event)
        if doomed and self._enrolment.netns_of(pod.uid) == netns_fd:
            closed = await self._enrolment.blocking(hands.close_connections, netns_fd, doomed)
            _log.info("pod %s: closed %d connections that no proxy carries and its policies do not allow", pod, closed)

    def _judge(self, pod: Pod, one: Connection, inbound: bool, own: frozenset[Address]) -> ConnectionEvent | None:
        """What becomes of a connection; None while control has not told enough of the pod to say."""
        request = pod.request
        who = (request.namespace, request.name, request.service_account)
        workload = self._view.inventory.workload_of_pod(*who, self._node, self._cluster)
        here = (
            FlowEndpoint.of(workload, one.local, one.local_port, pod.flow_labels)
            if workload
            else local_end(pod, one.local, one.local_port)
        )
        there = self._far_end(one, own)
        kept = ConnectionEvent(
            time_ns=time.time_ns(),
            node=self._node,
            phase="kept",
            direction="inbound" if inbound else "outbound",
            source=there if inbound else here,
            destination=here if inbound else there,
            pre_mesh=True,
        )
        excluded = request.exclusions.lets_in(one.local_port) or self._exclusions.lets_in(one.local_port)
        if not inbound or there.kind == "host" or excluded:
            return kept
        return self._judge_inbound(kept, workload, one) if workload else None

    def _judge_inbound(self, kept: ConnectionEvent, workload: Workload, one: Connection) -> ConnectionEvent | None:
        verdict = self._view.evaluate_plain(workload, one.remote, one.local, one.local_port)
        if verdict is None:
            return None
        if verdict.allowed:
            return kept
        key = verdict.policy or ""
        return replace(kept, phase="denied", policy=key, policy_object=policy_object(key, workload), reason=verdict.reason)

    def _far_end(self, one: Connection, own: frozenset[Address]) -> FlowEndpoint:
        if one.remote in own:
            return FlowEndpoint.host(one.remote, one.remote_port)
        return FlowEndpoint.of(self._view.workload_at(one.remote), one.remote, one.remote_port)
