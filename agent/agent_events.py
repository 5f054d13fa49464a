"""What the agent did, as Hubble's agent events."""

import time

from google.protobuf.timestamp_pb2 import Timestamp

from agent.flow_log import EventLog
from agent.pod import Pod
from mesh.flows import identity_number
from mesh.identity import Identity
from mesh.proto import flow_pb2, observer_pb2

CAPACITY = 1023


class AgentEvents(EventLog):
    """The last of them."""

    def __init__(self, node: str) -> None:
        super().__init__(CAPACITY)
        self._node = node
        self._revision = 0

    def started(self) -> None:
        """The agent runs."""
        now = _now()
        self._add(flow_pb2.AgentEvent(type=flow_pb2.AGENT_STARTED, agent_start=flow_pb2.TimeNotification(time=now)))

    def pod_changed(self, pod: Pod, entered: bool, identity: Identity) -> None:
        """A pod is in the mesh, or out of it; flows know it by the same number."""
        request = pod.request
        self._add(
            flow_pb2.AgentEvent(
                type=flow_pb2.ENDPOINT_CREATED if entered else flow_pb2.ENDPOINT_DELETED,
                endpoint_update=flow_pb2.EndpointUpdateNotification(
                    id=identity_number(identity),
                    labels=pod.flow_labels,
                    pod_name=request.name,
                    namespace=request.namespace,
                ),
            )
        )

    def policies_changed(self, updated: list[str], deleted: list[str], rules: int) -> None:
        """Policies were taken in, by key; `rules` is how many are in force now."""
        for kind, keys in ((flow_pb2.POLICY_UPDATED, updated), (flow_pb2.POLICY_DELETED, deleted)):
            if keys:
                self._revision += 1
                labels = [f"weft:policy={key}" for key in keys[:100]]
                update = flow_pb2.PolicyUpdateNotification(labels=labels, revision=self._revision, rule_count=rules)
                self._add(flow_pb2.AgentEvent(type=kind, policy_update=update))

    def _add(self, event: flow_pb2.AgentEvent) -> None:
        self.append(observer_pb2.GetAgentEventsResponse(agent_event=event, node_name=self._node, time=_now()))


def _now() -> Timestamp:
    now = Timestamp()
    now.FromNanoseconds(time.time_ns())
    return now
