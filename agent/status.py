"""The agent's own diagnostics: gathered once, then served by gRPC and as metrics."""

from dataclasses import dataclass
from typing import Any

from grpc.aio import ServicerContext

from agent.enrolment import Enrolment
from agent.mesh_view import MeshView
from agent.problems import NOT_STEERED, problems, with_mend
from agent.zds import ZdsServer
from bpf.layout import Reason
from bpf.redirect import Redirect
from mesh.exclusions import Exclusions
from mesh.proto import agent_pb2, agent_pb2_grpc
from mesh.version import VERSION
from wire.xds import XdsStatus

_HOOKS = {
    "create": "cgroup/sock_create",
    "connect4": "cgroup/connect4",
    "connect6": "cgroup/connect6",
    "peer4": "cgroup/getpeername4",
    "peer6": "cgroup/getpeername6",
    "sendmsg4": "cgroup/sendmsg4",
    "sendmsg6": "cgroup/sendmsg6",
    "recvmsg4": "cgroup/recvmsg4",
    "recvmsg6": "cgroup/recvmsg6",
    "getsockopt": "cgroup/getsockopt",
    "sockops": "cgroup/sock_ops",
    "lookup": "sk_lookup",
}
DEFAULT_LOCAL_PORTS = 28232
"""Linux's own range, 32768 to 60999."""


@dataclass(slots=True)
class Diagnostics:
    """What there is to look at."""

    node: str
    control_address: str
    started_unix_s: int
    enrolment: Enrolment
    redirect: Redirect
    zds: ZdsServer
    view: MeshView
    exclusions: Exclusions
    control: XdsStatus | None
    local_ports: int = DEFAULT_LOCAL_PORTS

    async def gather(self) -> agent_pb2.StatusResponse:
        """The state of this moment."""
        enrolled = await self.enrolment.blocking(self.redirect.enrolled)
        bare = {one.pod.uid for one in enrolled if one.pod.capture and not one.steered}
        status = await self.enrolment.blocking(self._kernel, any(one.steered for one in enrolled))
        status.node, status.version, status.started_unix_s = self.node, VERSION, self.started_unix_s
        usage = {one.netns_cookie: one for one in await self.enrolment.blocking(self.redirect.usage)}
        for uid, pod in sorted(self.enrolment.pods().items(), key=lambda item: str(item[1])):
            reason = self.enrolment.pending_reason(uid)
            record = self.enrolment.hands.record(uid)
            used = usage.get(pod.cookie)
            status.pods.add(
                uid=uid,
                namespace=pod.request.namespace,
                name=pod.request.name,
                service_account=pod.request.service_account,
                addresses=[str(address) for address in pod.request.addresses],
                state="pending" if reason and self.enrolment.is_captured(uid) else "failed" if reason else "enrolled",
                reason=with_mend(reason),
                enrolled_unix_s=record.enrolled_unix_s if record else 0,
                netns_cookie=pod.cookie,
                captured_v4=used.live4 if used else 0,
                captured_v6=used.live6 if used else 0,
                excluded=pod.request.exclusions.sentences(),
                troubles=(*pod.request.troubles, *([NOT_STEERED] if uid in bare else ())),
            )
        status.excluded.extend(self.exclusions.sentences())
        self._others(status)
        status.problems.extend(problems(status, self.local_ports, self.zds.last_end))
        status.problems.extend(self.enrolment.unreadable.values())
        status.problems.extend(
            f"pod {uid} is captured and no record tells of it: enrol it anew, or withdraw it"
            for uid in sorted(self.enrolment.strays)
        )
        return status

    def _kernel(self, pods: bool) -> agent_pb2.StatusResponse:
        status = agent_pb2.StatusResponse(counters=self.redirect.counters())
        for fill in self.redirect.fill():
            status.maps.add(name=fill.name, used=fill.used, capacity=fill.capacity)
        for program in self.redirect.programs():
            # The inbound program is attached per pod: without pods it has nowhere to be.
            attached = program.attached > 0 or (program.name == "lookup" and not pods)
            status.programs.add(name=program.name, hook=_HOOKS.get(program.name, ""), id=program.id, attached=attached)
        return status

    def _others(self, status: agent_pb2.StatusResponse) -> None:
        peer = self.zds.newest
        if peer is not None:
            status.proxy.connected, status.proxy.ready = True, self.zds.synced
            status.proxy.pid, status.proxy.cgroup_id = peer.pid, peer.cgroup_id
            status.proxy.connected_unix_s = self.zds.connected_unix_s
        status.control.address = self.control_address
        status.control.resources = self.view.size()
        if self.control is not None:
            status.control.connected, status.control.error = self.control.connected, self.control.last_error


class AgentService(agent_pb2_grpc.AgentServicer):  # type: ignore[misc]  # generated, untyped
    """weft.agent.Agent."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        self._diagnostics = diagnostics

    async def Status(self, request: agent_pb2.StatusRequest, context: ServicerContext) -> Any:
        """Everything at once."""
        return await self._diagnostics.gather()


def kernel_losses(counters: dict[str, int]) -> int:
    """How many kernel events were lost so far, for want of room or over their limit."""
    return counters[Reason.EVENTS_LOST.name.lower()] + counters[Reason.EVENTS_LIMITED.name.lower()]
