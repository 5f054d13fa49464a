"""Flows: what happened to a connection, as a value, and its form for Hubble's clients.

A proxy or the kernel says what it saw with a `ConnectionEvent`; `connection_flow` turns that into a `flow.Flow`. A refusal
names the object its author wrote, with the converted policy's name beside it, or says which default refused.
"""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal
from uuid import UUID

from mesh.identity import Identity
from mesh.proto import flow_pb2
from mesh.version import VERSION
from mesh.workload import Address, Workload

EMITTER = "Weft"

Phase = Literal["opened", "closed", "denied", "unauthenticated", "refused", "failed", "kept"]
"""denied: by policy or a default; unauthenticated: the peer proved no acceptable identity; refused: by the kernel, before any
proxy saw it; failed: broke for another reason; kept: older than the pod's enrolment, left as it is."""
Direction = Literal["inbound", "outbound"]
EndpointKind = Literal["workload", "host", "world"]

DROP, TRACE, POLICY_VERDICT = 1, 4, 5
_RESERVED = {"host": 1, "world": 2}
_FIRST_IDENTITY = 256
_STATIC_STRICT = "istio_converted_static_strict"
_CONVERTED_PREFIX = "converted_peer_authentication_"
_KINDS = {"deployment": "Deployment", "cronjob": "CronJob", "pod": "Pod", "job": "Job"}


@dataclass(frozen=True, slots=True)
class FlowEndpoint:
    """One end of a connection, as far as it is known."""

    kind: EndpointKind
    address: Address
    port: int
    namespace: str = ""
    pod: str = ""
    identity: Identity | None = None
    """Of the workload, whether or not it was proved on this connection (`ConnectionEvent.encrypted` says that)."""
    labels: tuple[str, ...] = ()
    """`source:key=value`."""
    workload_name: str = ""
    workload_kind: str = ""
    cluster: str = ""

    @classmethod
    def of(
        cls,
        workload: Workload | None,
        address: Address,
        port: int,
        labels: tuple[str, ...] = (),
        identity: Identity | None = None,
    ) -> "FlowEndpoint":
        """A workload's end; `world` where no workload has the address.

        `identity`: what the peer proved, where it did; else the workload's own is shown. A peer that proved an identity
        without being a known workload keeps that identity's namespace.
        """
        if workload is None:
            return cls(
                "world", address, port, identity.namespace if identity else "", identity=identity, labels=("reserved:world",)
            )
        application = workload.canonical_name or workload.workload_name or workload.name
        return cls(
            "workload",
            address,
            port,
            workload.namespace,
            workload.name,
            identity or workload.identity,
            _labels(application, workload.namespace, workload.service_account, labels),
            workload.workload_name or workload.name,
            _KINDS.get(workload.workload_type.lower(), workload.workload_type),
            workload.cluster_id,
        )

    @classmethod
    def host(cls, address: Address, port: int) -> "FlowEndpoint":
        """A process of the node itself, such as the kubelet with its probes."""
        return cls("host", address, port, labels=("reserved:host",))


@lru_cache(4096)
def _labels(application: str, namespace: str, service_account: str, given: tuple[str, ...]) -> tuple[str, ...]:
    own = (
        f"k8s:app={application}",
        f"k8s:io.kubernetes.pod.namespace={namespace}",
        f"k8s:io.cilium.k8s.policy.serviceaccount={service_account}",
    )
    named = {label.partition("=")[0] for label in given}
    return tuple(sorted((*given, *(label for label in own if label.partition("=")[0] not in named))))


@dataclass(frozen=True, slots=True)
class ConnectionEvent:
    """Something that happened to one connection. Sizes in bytes, from the local workload's viewpoint."""

    time_ns: int
    """Unix time."""
    node: str
    phase: Phase
    direction: Direction
    source: FlowEndpoint
    destination: FlowEndpoint
    service: str = ""
    """Key of the service that was dialled, `namespace/hostname`."""
    policy: str = ""
    """Key of the policy that decided, `namespace/name`; empty where a default did."""
    policy_object: str = ""
    """The user's object behind the policy, e.g. `PeerAuthentication demo/default`."""
    asked_objects: tuple[str, ...] = ()
    """Of a default's denial: the users' objects that could have allowed it and did not."""
    reason: str = ""
    """Of denied, unauthenticated, refused and failed, in plain words; of others a remark."""
    through: str = ""
    """Of a connection that does not go straight: by which waypoint or gateway, and for what, in plain words."""
    drop_reason: int = 0
    """Of refused: one of Hubble's drop reasons."""
    encrypted: bool = False
    """Mutual TLS on this connection: both identities were proved."""
    pre_mesh: bool = False
    """Older than the pod's enrolment: never went through the proxy."""
    bytes_sent: int = 0
    bytes_received: int = 0
    duration_ns: int = 0
    untold: bool = False
    """Of closed, denied and failed: nobody was told that it opened; see `moments`."""

    def moments(self) -> "tuple[ConnectionEvent, ...]":
        """This event, and before it the opening that it stands for too: short connections are told once."""
        if not self.untold:
            return (self,)
        opening = ConnectionEvent(
            self.time_ns - self.duration_ns,
            self.node,
            "opened",
            self.direction,
            self.source,
            self.destination,
            self.service,
            self.policy,
            self.policy_object,
            self.asked_objects,
            through=self.through,
            encrypted=self.encrypted,
            pre_mesh=self.pre_mesh,
        )
        return opening, self


def identity_number(identity: Identity) -> int:
    """A stable number for an identity, for clients that key on numbers: 32 bits, above the reserved ones."""
    digest = int.from_bytes(blake2b(str(identity).encode(), digest_size=8).digest(), "big")
    return _FIRST_IDENTITY + digest % (2**32 - _FIRST_IDENTITY)


def policy_object(key: str, destination: Workload | None) -> str:
    """The user's object behind a policy key: the workload's own record of it, else what the key's name tells."""
    if not key:
        return ""
    if destination and key in destination.policy_sources:
        return destination.policy_sources[key]
    namespace, _, name = key.partition("/")
    if name == _STATIC_STRICT:
        return "a STRICT PeerAuthentication"
    if name.startswith(_CONVERTED_PREFIX):
        return f"PeerAuthentication {namespace}/{name.removeprefix(_CONVERTED_PREFIX)}"
    return f"AuthorizationPolicy {key}"


def is_peer_authentication(event: ConnectionEvent) -> bool:
    """Whether a PeerAuthentication decided, not an AuthorizationPolicy."""
    name = event.policy.partition("/")[2]
    return "PeerAuthentication" in event.policy_object or name == _STATIC_STRICT or name.startswith(_CONVERTED_PREFIX)


def connection_flow(event: ConnectionEvent) -> flow_pb2.Flow:
    """The event as Hubble's clients know it. The uuid follows from the event, so that one event is one flow wherever made."""
    flow = flow_pb2.Flow(
        uuid=_uuid(event),
        emitter=flow_pb2.Emitter(name=EMITTER, version=VERSION),
        node_name=event.node,
        Type=flow_pb2.L3_L4,
        traffic_direction=flow_pb2.INGRESS if event.direction == "inbound" else flow_pb2.EGRESS,
        trace_reason=flow_pb2.ESTABLISHED if event.phase in ("closed", "kept") else flow_pb2.NEW,
        auth_type=flow_pb2.SPIRE if event.encrypted else flow_pb2.DISABLED,
        IP=flow_pb2.IP(
            source=str(event.source.address),
            destination=str(event.destination.address),
            ipVersion=flow_pb2.IPv4 if event.destination.address.version == 4 else flow_pb2.IPv6,
            encrypted=event.encrypted,
        ),
        l4=flow_pb2.Layer4(
            TCP=flow_pb2.TCP(source_port=event.source.port, destination_port=event.destination.port, flags=_flags(event.phase))
        ),
        source=_endpoint(event.source),
        destination=_endpoint(event.destination),
        Summary=_summary(event),
    )
    flow.time.FromNanoseconds(event.time_ns)
    flow.is_reply.value = False
    if event.service:
        namespace, _, hostname = event.service.partition("/")
        flow.destination_service.name = hostname.partition(".")[0]
        flow.destination_service.namespace = namespace
        flow.destination_names.append(hostname)
    _set_verdict(flow, event)
    return flow


def verdict_of(phase: Phase) -> Literal["FORWARDED", "DROPPED", "ERROR"]:
    """The name of Hubble's verdict."""
    if phase in ("denied", "unauthenticated", "refused"):
        return "DROPPED"
    return "ERROR" if phase == "failed" else "FORWARDED"


def _set_verdict(flow: flow_pb2.Flow, event: ConnectionEvent) -> None:
    inbound = event.direction == "inbound"
    flow.verdict = verdict_of(event.phase)
    if event.phase in ("denied", "unauthenticated"):
        flow.drop_reason_desc = _drop_reason(event)
        flow.drop_reason = flow.drop_reason_desc
        flow.event_type.type = POLICY_VERDICT
        deciders = flow.ingress_denied_by if inbound else flow.egress_denied_by
    elif event.phase == "refused":
        flow.drop_reason = flow.event_type.sub_type = event.drop_reason
        flow.drop_reason_desc = event.drop_reason
        flow.event_type.type = DROP
        return
    else:
        flow.event_type.type = TRACE
        point = _observation_point(event)
        flow.trace_observation_point = point
        flow.event_type.sub_type = 0 if point == flow_pb2.TO_ENDPOINT else point
        deciders = flow.ingress_allowed_by if inbound else flow.egress_allowed_by
    if event.policy and event.phase != "failed":
        deciders.append(_policy(event))
        flow.policy_match_type = 2  # identity and port


def _observation_point(event: ConnectionEvent) -> "flow_pb2.TraceObservationPoint":
    if event.direction == "inbound":
        return flow_pb2.TO_ENDPOINT
    return flow_pb2.TO_NETWORK if event.encrypted else flow_pb2.TO_STACK


def _drop_reason(event: ConnectionEvent) -> "flow_pb2.DropReason":
    if event.phase == "unauthenticated":
        return flow_pb2.AUTH_REQUIRED
    if not event.encrypted and is_peer_authentication(event):
        return flow_pb2.UNENCRYPTED_TRAFFIC
    return flow_pb2.POLICY_DENY if event.policy else flow_pb2.POLICY_DENIED


def _policy(event: ConnectionEvent) -> flow_pb2.Policy:
    """The user's object where it is known by name, else the converted policy's."""
    kind, _, key = event.policy_object.partition(" ")
    if "/" not in key or " " in key:
        kind, key = ("PeerAuthentication" if is_peer_authentication(event) else "AuthorizationPolicy"), event.policy
    namespace, _, name = key.partition("/")
    return flow_pb2.Policy(name=name, namespace=namespace, kind=kind, labels=[f"weft:policy={event.policy}"])


def _summary(event: ConnectionEvent) -> str:
    return _what_happened(event) + (f", {event.through}" if event.through else "")


def _what_happened(event: ConnectionEvent) -> str:
    if event.phase == "denied":
        return _denial(event)
    if event.phase == "unauthenticated":
        return f"refused, no acceptable identity: {event.reason}"
    if event.phase in ("failed", "refused"):
        return f"{event.phase}: {event.reason or 'for an unknown reason'}"
    if event.phase == "kept":
        return f"pre-mesh: {event.reason or 'older than the enrolment of its pod, left in plain text'}"
    how = "pre-mesh" if event.pre_mesh else "mutual TLS" if event.encrypted else "plain text"
    remark = f" ({event.reason})" if event.reason else ""
    if event.phase == "opened":
        by = f", allowed by {_named(event)}" if event.policy else ""
        return f"opened, {how}{by}{remark}"
    milliseconds = event.duration_ns // 1_000_000
    return f"closed, {how}: {event.bytes_sent} bytes sent, {event.bytes_received} received, {milliseconds} ms{remark}"


def _denial(event: ConnectionEvent) -> str:
    closed = "pre-mesh connection closed, " if event.pre_mesh else ""
    if event.policy:
        why = " to plain text" if not event.encrypted and is_peer_authentication(event) else ""
        return f"{closed}denied{why} by {_named(event)}"
    if event.asked_objects:
        return f"{closed}denied by default: not allowed by {', '.join(event.asked_objects)}"
    return f"{closed}denied by default: {event.reason or 'no policy allows it'}"


def _named(event: ConnectionEvent) -> str:
    kind_and_name = event.policy_object or f"AuthorizationPolicy {event.policy}"
    return kind_and_name if kind_and_name.endswith(f" {event.policy}") else f"{kind_and_name} (policy {event.policy})"


def _flags(phase: Phase) -> flow_pb2.TCPFlags:
    if phase == "closed":
        return flow_pb2.TCPFlags(FIN=True, ACK=True)
    return flow_pb2.TCPFlags(ACK=True) if phase == "kept" else flow_pb2.TCPFlags(SYN=True)


def _endpoint(end: FlowEndpoint) -> flow_pb2.Endpoint:
    endpoint = flow_pb2.Endpoint(
        identity=identity_number(end.identity) if end.identity else _RESERVED.get(end.kind, 0),
        namespace=end.namespace,
        pod_name=end.pod,
        labels=end.labels,
        cluster_name=end.cluster,
    )
    if end.workload_name:
        endpoint.workloads.add(name=end.workload_name, kind=end.workload_kind)
    return endpoint


def _uuid(event: ConnectionEvent) -> str:
    ends = (event.source.address, event.source.port, event.destination.address, event.destination.port)
    text = f"{event.time_ns} {event.node} {event.direction} {event.phase} {ends}"
    return str(UUID(bytes=blake2b(text.encode(), digest_size=16).digest(), version=5))
