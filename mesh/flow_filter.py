"""Which flows a client asked for: Hubble's FlowFilter as predicates.

A filter's fields are AND-ed, the values of one field OR-ed; a flow passes when no whitelist is given or one of its filters
matches, and no blacklist filter does. What cannot be evaluated here is refused: to ignore a condition would show flows that
its author meant to leave out. Addresses compare as addresses, not as texts, which is the one deviation from the original.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from google.protobuf import unknown_fields
from google.protobuf.message import Message

from mesh.label_selector import by_key, parse_selector
from mesh.proto import flow_pb2

Predicate = Callable[[Any], bool]
"""On a flow.Flow, or on a part of one."""
MAX_PATTERN = 1024
MAX_VALUES = 1000
"""Of all filters of a request together: each of them is looked at for each of 4095 flows."""
L7_EVENT = 129
_DOMAIN_RUNE = re.compile(r"[a-z0-9.*-]")
_STATUS = re.compile(r"[1-5][0-9]{2}|[1-5][0-9]?\+")
_PROTOCOLS = {
    "tcp": ("l4", "TCP"),
    "udp": ("l4", "UDP"),
    "sctp": ("l4", "SCTP"),
    "icmpv4": ("l4", "ICMPv4"),
    "icmpv6": ("l4", "ICMPv6"),
    "vrrp": ("l4", "VRRP"),
    "igmp": ("l4", "IGMP"),
    "dns": ("l7", "dns"),
    "http": ("l7", "http"),
    "kafka": ("l7", "kafka"),
}


def select(whitelist: Iterable[flow_pb2.FlowFilter], blacklist: Iterable[flow_pb2.FlowFilter]) -> Predicate:
    """A predicate on flows for a request's two lists.

    Raises: ValueError that names what is wrong, or not supported, in the first bad filter.
    """
    whitelist, blacklist = list(whitelist), list(blacklist)
    values = sum(map(_count_values, (*whitelist, *blacklist)))
    if values > MAX_VALUES:
        raise ValueError(f"filters of {values} values: at most {MAX_VALUES}; ask in parts")
    wanted = [compile_filter(one) for one in whitelist]
    unwanted = [compile_filter(one) for one in blacklist]
    return lambda flow: (not wanted or any(one(flow) for one in wanted)) and not any(one(flow) for one in unwanted)


def compile_filter(wanted: flow_pb2.FlowFilter) -> Predicate:
    """A predicate for one filter; the empty filter matches every flow.

    Raises: ValueError as `select`.
    """
    if len(unknown_fields.UnknownFieldSet(wanted)):
        raise ValueError("filter not supported: it has a field that this version does not know")
    if any(name.startswith("http_") for name in _fields(wanted)):
        _check_http(wanted)
    predicates = []
    for descriptor, values in wanted.ListFields():
        build = _BUILDERS.get(descriptor.name)
        if build is None:
            raise ValueError(f"filter not supported: {descriptor.name}")
        predicates.append(build(values))
    return lambda flow: all(predicate(flow) for predicate in predicates)


def _count_values(wanted: flow_pb2.FlowFilter) -> int:
    """How many there are to look at; of a label selector each requirement, of an empty filter the filter."""
    lists = [values for _, values in wanted.ListFields() if isinstance(values, Sequence)]
    commas = sum(value.count(",") for values in lists for value in values if isinstance(value, str))
    return max(1, commas + sum(map(len, lists)))


def _fields(message: Message) -> list[str]:
    return [descriptor.name for descriptor, _ in message.ListFields()]


def _check_http(wanted: flow_pb2.FlowFilter) -> None:
    types = [one.type for one in wanted.event_type]
    if types and L7_EVENT not in types:
        raise ValueError("filtering by http attributes requires the event type filter to match 'l7' events")


# --- builders: values of one field -> predicate on a flow


def _one_of(path: str) -> Callable[[Sequence[Any]], Predicate]:
    """The attribute at a dotted path is one of the values."""
    names = path.split(".")

    def read(flow: Any) -> Any:
        for name in names:
            flow = getattr(flow, name)
        return flow

    def build(values: Sequence[Any]) -> Predicate:
        wanted = frozenset(values)
        return lambda flow: read(flow) in wanted

    return build


def _identity(end: str) -> Callable[[Sequence[int]], Predicate]:
    def build(values: Sequence[int]) -> Predicate:
        wanted = frozenset(values)
        return lambda flow: flow.HasField(end) and getattr(flow, end).identity in wanted

    return build


def _any_of(
    compile_one: Callable[[Any], Predicate], read: Callable[[Any], Any] = lambda flow: flow
) -> Callable[[Sequence[Any]], Predicate]:
    """One of the compiled values matches what `read` takes from the flow."""

    def build(values: Sequence[Any]) -> Predicate:
        compiled = [compile_one(value) for value in values]

        def matches(flow: Any) -> bool:
            part = read(flow)
            return any(one(part) for one in compiled)

        return matches

    return build


def _address(text: str) -> Predicate:
    try:
        if "/" in text:
            network = ip_network(text, strict=False)
            return lambda address: address is not None and address in network
        wanted = ip_address(text)
    except ValueError as error:
        raise ValueError(f"invalid IP filter {text!r}: {error}") from error
    return lambda address: address == wanted


def _parsed(text: str) -> Any:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _named(text: str) -> tuple[str, str]:
    """`namespace/prefix`; without a slash the namespace is `default`."""
    if not text:
        raise ValueError("invalid filter, name must not be empty")
    parts = text.split("/")
    return (parts[0], parts[1]) if len(parts) > 1 else ("default", text)


def _pod(text: str) -> Predicate:
    namespace, prefix = _named(text)

    def matches(end: Any) -> bool:
        known = bool(end.namespace or end.pod_name)
        return known and (not namespace or end.namespace == namespace) and end.pod_name.startswith(prefix)

    return matches


def _service(text: str) -> Predicate:
    namespace, prefix = _named(text)

    def matches(service: Any) -> bool:
        known = bool(service.namespace or service.name)
        return known and (not namespace or service.namespace == namespace) and service.name.startswith(prefix)

    return matches


def _glob(text: str) -> re.Pattern[str]:
    pattern = text.lower().removesuffix(".")
    if not pattern:
        raise ValueError("empty pattern")
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"pattern of {len(pattern)} characters: at most {MAX_PATTERN}")
    for rune in pattern:
        if not _DOMAIN_RUNE.fullmatch(rune):
            raise ValueError(f"{rune!r}: invalid rune in pattern")
    # Runs of stars are one star: adjacent repeats would try exponentially many ways.
    return re.compile("[-.0-9a-z]*".join(re.escape(part) for part in re.split(r"\*+", pattern)))


def _names(text: str) -> Predicate:
    pattern = _glob(text)
    return lambda names: any(pattern.fullmatch(name.lower().removesuffix(".")) for name in names)


def _node(text: str) -> Predicate:
    cluster, slash, node = text.partition("/")
    if slash and not cluster:
        raise ValueError(f"node name pattern {text!r}: the cluster before the slash is missing")
    clusters = _glob(cluster if slash else "*")
    nodes = _glob((node or "*") if slash else text)

    def matches(name: str) -> bool:
        owner, found, own = name.partition("/")
        owner, own = (owner, own) if found else ("default", name)
        return bool(clusters.fullmatch(owner) and nodes.fullmatch(own))

    return matches


def _port(end: str) -> Callable[[Sequence[str]], Predicate]:
    attribute = f"{end}_port"

    def build(values: Sequence[str]) -> Predicate:
        for value in values:
            if not (value.isascii() and value.isdigit() and len(value) <= 5 and int(value) <= 65535):
                raise ValueError(f"invalid {end} port filter: invalid port {value!r}: expected a number from 0 to 65535")
        ports = {int(value) for value in values}

        def matches(flow: Any) -> bool:
            protocol = flow.l4.WhichOneof("protocol")
            return protocol in ("TCP", "UDP", "SCTP") and getattr(getattr(flow.l4, protocol), attribute) in ports

        return matches

    return build


def _protocol(text: str) -> Predicate:
    name = text.lower()
    if name == "icmp":
        return lambda flow: flow.l4.WhichOneof("protocol") in ("ICMPv4", "ICMPv6")
    if name not in _PROTOCOLS:
        raise ValueError(f"invalid protocol filter: unknown protocol: {text!r}")
    layer, arm = _PROTOCOLS[name]
    oneof = "protocol" if layer == "l4" else "record"
    return lambda flow: getattr(flow, layer).WhichOneof(oneof) == arm


def _workload(wanted: Any) -> Predicate:
    return lambda end: any(
        (not wanted.name or one.name == wanted.name) and (not wanted.kind or one.kind == wanted.kind) for one in end.workloads
    )


def _tcp_flags(wanted: Any) -> Predicate:
    names = [name for name in _fields(wanted) if getattr(wanted, name)]
    return lambda flow: (
        flow.l4.WhichOneof("protocol") == "TCP"
        and flow.l4.TCP.HasField("flags")
        and all(getattr(flow.l4.TCP.flags, name) for name in names)
    )


def _event_type(wanted: Any) -> Predicate:
    return lambda flow: (
        flow.HasField("event_type")
        and wanted.type in (0, flow.event_type.type)
        and (not wanted.match_sub_type or flow.event_type.sub_type == wanted.sub_type)
    )


def _reply(wanted: bool) -> Predicate:
    def matches(flow: Any) -> bool:
        if flow.HasField("is_reply"):
            return bool(flow.is_reply.value) == wanted
        return flow.verdict == flow_pb2.DROPPED and not wanted  # nothing answers to what was dropped

    return matches


def _interface(wanted: Any) -> Predicate:
    return lambda flow: (
        flow.HasField("interface") and wanted.index in (0, flow.interface.index) and wanted.name in ("", flow.interface.name)
    )


def _drop_reason(wanted: int) -> Predicate:
    return lambda flow: flow.verdict == flow_pb2.DROPPED and flow.drop_reason_desc == wanted


def _regex(what: str) -> Callable[[str], Predicate]:
    def compile_one(text: str) -> Predicate:
        try:
            if len(text) > MAX_PATTERN:
                raise re.error(f"{len(text)} characters: at most {MAX_PATTERN}")
            pattern = re.compile(text)
        except re.error as error:
            raise ValueError(f"invalid {what} filter: {text[:100]!r}: {error}") from error
        return lambda value: value is not None and pattern.search(value) is not None

    return compile_one


def _http(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda flow: read(flow.l7.http) if flow.l7.WhichOneof("record") == "http" else None


def _path(http: Any) -> str | None:
    try:
        return str(urlsplit(http.url).path)
    except ValueError:
        return None


def _status(text: str) -> Predicate:
    if not _STATUS.fullmatch(text):
        raise ValueError(f"invalid http status code filter: {text!r}: expected a code such as 404 or a prefix such as 4+")
    if text.endswith("+"):
        return lambda code: code is not None and str(code).startswith(text[:-1])
    return lambda code: code == int(text)


def _method(text: str) -> Predicate:
    return lambda method: method is not None and method.lower() == text.lower()


def _header(wanted: Any) -> Predicate:
    return lambda headers: any(one.key == wanted.key and one.value == wanted.value for one in headers or ())


_BUILDERS: dict[str, Callable[[Any], Predicate]] = {
    "uuid": _one_of("uuid"),
    "verdict": _one_of("verdict"),
    "traffic_direction": _one_of("traffic_direction"),
    "ip_version": _one_of("IP.ipVersion"),
    "encrypted": _one_of("IP.encrypted"),
    "trace_id": _one_of("trace_context.parent.trace_id"),
    "ip_trace_id": _one_of("ip_trace_id.trace_id"),
    "source_identity": _identity("source"),
    "destination_identity": _identity("destination"),
    "source_cluster_name": _one_of("source.cluster_name"),
    "destination_cluster_name": _one_of("destination.cluster_name"),
    "source_ip": _any_of(_address, lambda flow: _parsed(flow.IP.source)),
    "destination_ip": _any_of(_address, lambda flow: _parsed(flow.IP.destination)),
    "source_ip_xlated": _any_of(_address, lambda flow: _parsed(flow.IP.source_xlated)),
    "source_pod": _any_of(_pod, lambda flow: flow.source),
    "destination_pod": _any_of(_pod, lambda flow: flow.destination),
    "source_service": _any_of(_service, lambda flow: flow.source_service),
    "destination_service": _any_of(_service, lambda flow: flow.destination_service),
    "source_fqdn": _any_of(_names, lambda flow: flow.source_names),
    "destination_fqdn": _any_of(_names, lambda flow: flow.destination_names),
    "source_label": _any_of(parse_selector, lambda flow: by_key(flow.source.labels)),
    "destination_label": _any_of(parse_selector, lambda flow: by_key(flow.destination.labels)),
    "node_labels": _any_of(parse_selector, lambda flow: by_key(flow.node_labels)),
    "node_name": _any_of(_node, lambda flow: flow.node_name),
    "source_workload": _any_of(_workload, lambda flow: flow.source),
    "destination_workload": _any_of(_workload, lambda flow: flow.destination),
    "source_port": _port("source"),
    "destination_port": _port("destination"),
    "protocol": _any_of(_protocol),
    "tcp_flags": _any_of(_tcp_flags),
    "event_type": _any_of(_event_type),
    "reply": _any_of(_reply),
    "interface": _any_of(_interface),
    "drop_reason_desc": _any_of(_drop_reason),
    "dns_query": _any_of(
        _regex("DNS query"), lambda flow: flow.l7.dns.query if flow.l7.WhichOneof("record") == "dns" else None
    ),
    "http_url": _any_of(_regex("http url"), _http(lambda http: http.url)),
    "http_path": _any_of(_regex("http path"), _http(_path)),
    "http_status_code": _any_of(_status, _http(lambda http: http.code)),
    "http_method": _any_of(_method, _http(lambda http: http.method)),
    "http_header": _any_of(_header, _http(lambda http: http.headers)),
}
