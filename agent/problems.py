"""What is wrong with a node, in sentences that name the mend. Those that begin with `warning: ` are worth a look."""

import re
from collections.abc import Iterator

from mesh.proto.agent_pb2 import EnrolledPod, StatusResponse

_TAKEN = re.compile(r"Bind\(\S*:(\d+), Os \{ code: 98,")
NOT_STEERED = (
    "its inbound program is not attached: plain text reaches it past the proxy and every policy: the agent attaches it within "
    "seconds, or says why it cannot"
)
FULL_SHARE = 0.8
"""Maps and ports that are used beyond this are worth a warning."""


def problems(status: StatusResponse, local_ports: int, last_end: str = "") -> Iterator[str]:
    """Everything that a status shows to be wrong.

    `local_ports` is how many connections a pod can have captured, `last_end` why the last proxy's connection ended.
    """
    if not status.proxy.connected:
        why = f" (the last one: {last_end})" if last_end else ""
        yield f"no proxy is connected{why}: connections of enrolled pods are refused: start weft-ztunnel on this node"
    elif not status.proxy.ready:
        yield f"the proxy (process {status.proxy.pid}) has not acknowledged all pods yet"
    if status.control.address and not status.control.connected:
        why = f" ({status.control.error})" if status.control.error else ""
        yield f"control {status.control.address} is away{why}: what is known of the mesh stays in force"
    for pod in status.pods:
        yield from _of_pod(pod, local_ports)
    for fill in status.maps:
        if fill.capacity and fill.used >= FULL_SHARE * fill.capacity:
            share = 100 * fill.used // fill.capacity
            of_all = f"{share} % full ({fill.used} of {fill.capacity})"
            yield f"warning: map {fill.name} is {of_all}: once it is full, connections are refused"
    for program in status.programs:
        if not program.attached:
            yield f"program {program.name} is not attached to {program.hook}: restart the agent"


def _of_pod(pod: EnrolledPod, local_ports: int) -> Iterator[str]:
    name = f"pod {pod.namespace}/{pod.name}"
    if pod.state != "enrolled":
        yield f"{name} is {pod.state}: {pod.reason}"
    for trouble in pod.troubles:
        yield f"{name}: {trouble}"
    for family, used in (("IPv4", pod.captured_v4), ("IPv6", pod.captured_v6)):
        if used >= FULL_SHARE * local_ports:
            yield (
                f"warning: {name} has {used} captured {family} connections of about {local_ports} "
                "that its local ports allow: have it reuse connections, or run more replicas"
            )


def with_mend(reason: str) -> str:
    """Why a proxy does not take a pod, which ZDS says in words of its own, and what to do about it where that is known."""
    taken = _TAKEN.search(reason)
    if taken:
        return (
            f"{reason}: a process of the pod holds port {taken[1]}, which is the proxy's: have it listen elsewhere; until then "
            "the pod is refused, not carried in plain text, and tried again every 5 s"
        )
    if "cannot enter the network namespace" in reason:
        return f"{reason}: its namespace is broken: delete the pod, so that it is made anew"
    return reason
