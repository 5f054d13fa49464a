"""One flow as text: the compact, dict and table forms that users of the hubble command know. Pure.

Times are UTC. Three things differ on purpose: a refused flow always says who refused it (`DROPPED BY AuthorizationPolicy
demo/web`, or that a default did); a pod is named with its own namespace, not with that of the service that was dialled
(a gateway has another); every control character is escaped, line feeds too: names and texts come from the mesh, and must
not fake a line.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from cli.drop_reasons import drop_text
from cli.output import printable
from mesh.proto import flow_pb2
from mesh.proto.flow_pb2 import Endpoint, Flow, LostEvent, Policy
from mesh.proto.observer_pb2 import GetFlowsResponse

Paint = Callable[[str, str], str]
"""(text, colour) -> text, with or without escape codes."""

_DROP, _CAPTURE, _TRACE, _VERDICT, _SOCK, _L7 = 1, 3, 4, 5, 7, 129
_MATCHES = ("none", "L3-Only", "L3-L4", "L4-Only", "all", "L3-Proto", "Proto-Only")
_RESERVED = ("unknown", "host", "world", "unmanaged", "health", "init", "remote-node", "kube-apiserver", "ingress",
             "world-ipv4", "world-ipv6")  # fmt: skip
_FAMILIES = {"dns": "dns", "http": "http", "kafka": "kafka"}
_DECIDED = {"FORWARDED": "ALLOWED", "REDIRECTED": "ALLOWED", "DROPPED": "DENIED", "ERROR": "DENIED", "AUDIT": "AUDITED"}
_COLOURS = {"FORWARDED": "green", "REDIRECTED": "green", "ALLOWED": "green", "DROPPED": "red", "ERROR": "red", "DENIED": "red"}


def no_paint(text: str, colour: str) -> str:
    """Leave text as it is."""
    return text


def ansi_paint(text: str, colour: str) -> str:
    """Colour text for a terminal."""
    code = {"red": 31, "green": 32, "yellow": 33, "magenta": 35, "cyan": 36}[colour]
    return f"\x1b[{code}m{text}\x1b[0m"


def stamp(response: GetFlowsResponse) -> str:
    """The time column, `Mar  5 08:00:37.012`."""
    if not response.HasField("time"):
        return "N/A"
    time = response.time
    moment = datetime.fromtimestamp(time.seconds, UTC)
    return f"{moment:%b} {moment.day:2} {moment:%H:%M:%S}.{time.nanos // 1_000_000:03}"


def compact(response: GetFlowsResponse, paint: Paint = no_paint, node: bool = False) -> str:
    """The one-line form."""
    head = stamp(response) + (f" [{printable(response.node_name)}]" if node else "")
    if response.HasField("lost_events"):
        lost = response.lost_events
        return f"{head} EVENTS LOST: {_lost_source(lost)} CPU({lost.cpu.value}) {lost.num_events_lost}"
    flow = response.flow
    left, right = _end(flow, "source", paint), _end(flow, "destination", paint)
    arrow = "<>"
    if flow.HasField("is_reply"):
        arrow = "<-" if flow.is_reply.value else "->"
        if flow.is_reply.value:
            left, right = right, left
    return f"{head}: {left} {arrow} {right} {kind(flow)} {verdict(flow, paint)} ({summary(flow)})"


def columns(response: GetFlowsResponse, paint: Paint = no_paint) -> dict[str, str]:
    """The cells of the table and dict forms, by heading."""
    if response.HasField("lost_events"):
        lost = response.lost_events
        cells = (_lost_source(lost), "", "EVENTS LOST", f"CPU({lost.cpu.value})", str(lost.num_events_lost))
    else:
        flow = response.flow
        ends = (_host(flow, "source", paint), _host(flow, "destination", paint))
        cells = (*ends, kind(flow), verdict(flow, paint), summary(flow))
    return {
        "TIMESTAMP": stamp(response),
        "NODE": printable(response.node_name),
        **dict(zip(("SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"), cells, strict=True)),
    }


def kind(flow: Flow) -> str:
    """The type column: where the flow was seen, or why it was dropped."""
    event, number = flow.event_type.type, flow.event_type.sub_type
    if event == _L7 or flow.HasField("l7"):
        return _layer7_kind(flow)
    if event == _DROP:
        return drop_text(number)
    if event == _VERDICT:
        match = _MATCHES[flow.policy_match_type] if flow.policy_match_type < len(_MATCHES) else "unknown"
        return f"policy-verdict:{match} {_name(flow_pb2.TrafficDirection, flow.traffic_direction)}"
    if event == _TRACE:
        return _observation_point(number)
    if event == _SOCK:
        name = _name(flow_pb2.SocketTranslationPoint, flow.sock_xlate_point).removeprefix("SOCK_XLATE_POINT_")
        return (
            name.lower()
            .replace("_", "-")
            .replace("direction-", "")
            .replace("pre-", "pre-xlate-")
            .replace("post-", "post-xlate-")
        )
    if event == _CAPTURE:
        return _name(flow_pb2.DebugCapturePoint, flow.debug_capture_point)
    return "UNKNOWN"


def verdict(flow: Flow, paint: Paint = no_paint) -> str:
    """The verdict column, with the policies that decided."""
    name = _name(flow_pb2.Verdict, flow.verdict)
    if flow.event_type.type == _VERDICT:
        name = _DECIDED.get(name, name)
    colour = _COLOURS.get(name, "yellow")
    decided = decided_by(flow) if flow.event_type.type == _VERDICT or name in ("DROPPED", "ERROR") else ""
    return paint(name + (f" BY {decided}" if decided else ""), colour)


def decided_by(flow: Flow) -> str:
    """Who allowed or denied: the policies by kind and name, else that a default did; empty when unknown."""
    denied = [*flow.ingress_denied_by, *flow.egress_denied_by]
    policies = denied or [*flow.ingress_allowed_by, *flow.egress_allowed_by]
    if policies:
        return ", ".join(_policy_name(policy) for policy in policies)
    if flow.policy_log:
        return printable("; ".join(flow.policy_log))
    return "default" if flow.drop_reason_desc == flow_pb2.POLICY_DENIED else ""


def summary(flow: Flow) -> str:
    """The summary column."""
    auth = f"; Auth: {_name(flow_pb2.AuthType, flow.auth_type)}" if flow.auth_type else ""
    return printable(flow.Summary) + auth


def _policy_name(policy: Policy) -> str:
    place = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
    return printable(f"{policy.kind} {place}".strip())


def _host(flow: Flow, side: Literal["source", "destination"], paint: Paint) -> str:
    """Name and port of one end: pod, else service, else DNS names, else address, else MAC."""
    endpoint: Endpoint = getattr(flow, side)
    service = getattr(flow, f"{side}_service")
    names = getattr(flow, f"{side}_names")
    address = getattr(flow.IP, side)
    if endpoint.pod_name:
        host = _placed(endpoint.namespace or service.namespace, endpoint.pod_name)
    elif service.name:
        host = _placed(service.namespace or endpoint.namespace, service.name)
    else:
        host = ",".join(names) or address or getattr(flow.ethernet, side)
    port = _port(flow, side)
    if port and host == address and ":" in host:
        host = f"[{host}]"
    host = printable(host)
    return paint(f"{host}:", "cyan") + paint(str(port), "yellow") if port else paint(host, "cyan")


def _placed(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if namespace else name


def _end(flow: Flow, side: Literal["source", "destination"], paint: Paint) -> str:
    """One end with its identity, as the compact form shows it."""
    identity = getattr(flow, side).identity
    name = _RESERVED[identity] if identity < len(_RESERVED) else f"ID:{identity}"
    return f"{_host(flow, side, paint)} {paint(f'({name})', 'magenta')}"


def _port(flow: Flow, side: str) -> int:
    protocol = flow.l4.WhichOneof("protocol")
    return int(getattr(getattr(flow.l4, protocol), f"{side}_port", 0)) if protocol else 0


def _layer7_kind(flow: Flow) -> str:
    record = flow.l7.WhichOneof("record")
    stage = _name(flow_pb2.L7FlowType, flow.l7.type).lower()
    if record is None:
        return f"l7-{stage}"
    return f"{_FAMILIES.get(record, record)}-{stage}" + (" proxy" if record == "dns" else "")


def _observation_point(number: int) -> str:
    # The event's number is the enum's, except that 0 means to-endpoint there.
    try:
        name = str(flow_pb2.TraceObservationPoint.Name(number or flow_pb2.TO_ENDPOINT))
    except ValueError:
        return str(number)
    return name.lower().replace("_", "-")


def _lost_source(lost: LostEvent) -> str:
    return _name(flow_pb2.LostEventSource, lost.source)


def _name(enum: object, number: int) -> str:
    try:
        return str(enum.Name(number))  # type: ignore[attr-defined]
    except ValueError:
        return str(number)
