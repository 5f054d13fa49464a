"""What the kernel programs report, as flows: refusals before any proxy, and the node's own processes let past it."""

from collections.abc import Mapping

from agent.mesh_view import MeshView
from agent.pod import Pod
from agent.pod_index import PodIndex
from bpf.events import Event
from bpf.layout import Reason
from mesh.flows import ConnectionEvent, Direction, FlowEndpoint
from mesh.proto import flow_pb2
from mesh.workload import Address, Workload

REFUSALS: Mapping[Reason, tuple[str, int]] = {
    Reason.NO_LISTENER: ("the node's proxy does not listen for this pod: is it running?", flow_pb2.SOCKET_LOOKUP_FAILED),
    Reason.NO_POD: ("the address is not known to be this pod's", flow_pb2.NO_MATCHING_LOCAL_CONTAINER_FOUND),
    Reason.DIRECT: ("nobody may dial the proxy's own ports 15001 and 15006", flow_pb2.INVALID_PACKET_DROPPED),
    Reason.NO_ORIGIN: ("accepted without an original destination", flow_pb2.UNKNOWN_CONNECTION_TRACKING_STATE),
    Reason.FULL: (
        "no room for another original destination: too many connections wait for the proxy",
        flow_pb2.CT_MAP_INSERTION_FAILED,
    ),
    Reason.BYPASS_FULL: ("no room for another connection from the proxy to the pod", flow_pb2.CT_MAP_INSERTION_FAILED),
    Reason.ESCAPE: ("it would have left in plain text past the proxy", flow_pb2.UNENCRYPTED_TRAFFIC),
    Reason.NO_ADDRESS: ("the pod has no address of this family", flow_pb2.UNSUPPORTED_L3_PROTOCOL),
    Reason.NO_STORAGE: ("the kernel had no memory to remember its destination", flow_pb2.CT_MAP_INSERTION_FAILED),
    Reason.NO_MARK: ("the proxy's socket could not be marked for delivery", flow_pb2.FIB_LOOKUP_FAILED),
    Reason.NO_STEER: ("the kernel did not hand it to the proxy's listener", flow_pb2.SOCKET_ASSIGN_FAILED),
}

REMARKS: Mapping[Reason, str] = {
    Reason.HOST: "a process of the node itself, past the proxy",
    Reason.EXCLUDED: "excluded from capture by the pod's annotations or the node's settings, past the proxy",
}


class KernelFlows:
    """Names what the kernel reports by cookies and addresses."""

    def __init__(self, node: str, view: MeshView) -> None:
        self._node = node
        self._view = view

    def event(self, seen: Event, pods: PodIndex) -> ConnectionEvent | None:
        """The kernel's report in the mesh's words; None for a report about nothing known."""
        if seen.destination is None:
            return None
        pod = pods.by_cookie.get(seen.netns_cookie)
        own = set(pod.request.addresses) if pod else set()
        outbound = seen.destination not in own and (seen.source is None or seen.source in own)
        direction: Direction = "outbound" if outbound and seen.reason is not Reason.HOST else "inbound"
        source = seen.source or next((one for one in own if one.version == seen.destination.version), None)
        source = source or type(seen.destination)(0)
        host = seen.reason is Reason.HOST
        reason, drop_reason = REFUSALS.get(seen.reason) or (REMARKS.get(seen.reason, ""), 0)
        service = self._view.inventory.service_by_vip(
            self._view.network, seen.destination, pod.request.namespace if pod else ""
        )
        return ConnectionEvent(
            time_ns=seen.time_ns,
            node=self._node,
            phase="refused" if seen.refused else "opened",
            direction=direction,
            source=FlowEndpoint.host(source, seen.source_port) if host else self._end(source, seen.source_port, pods),
            destination=self._end(seen.destination, seen.destination_port, pods),
            service=service.key if service else "",
            reason=reason,
            drop_reason=drop_reason,
        )

    def _end(self, address: Address, port: int, pods: PodIndex) -> FlowEndpoint:
        pod = pods.by_address.get(address)
        workload = self._view.workload_at(address)
        if pod is not None and not _is(workload, pod):
            return local_end(pod, address, port)
        return FlowEndpoint.of(workload, address, port, pod.flow_labels if pod else ())


def local_end(pod: Pod, address: Address, port: int) -> FlowEndpoint:
    """A pod of this node that control has not told of yet."""
    request = pod.request
    namespace = f"k8s:io.kubernetes.pod.namespace={request.namespace}"
    labels = tuple(sorted({*pod.flow_labels, namespace}))
    return FlowEndpoint("workload", address, port, request.namespace, request.name, labels=labels)


def _is(workload: Workload | None, pod: Pod) -> bool:
    return workload is not None and (workload.namespace, workload.name) == (pod.request.namespace, pod.request.name)
