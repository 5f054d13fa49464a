"""Connection events as lines of JSON: what a proxy tells its agent, cheaper than flows and read by nobody else.

One line is one object, `{"time_ns": ..., "phase": "opened", ...}`, with `ConnectionEvent`'s names; what has its default is left
out, and names that are not known are skipped, so that a proxy and an agent of different versions understand each other. A line
`{"lost": 7}` says that so many events found no room.

Names come in any order. Ours are first those that differ from one connection to the next (the head of the line) and then those
that connections of the same ends share (its tail). So a writer keeps tails, and a reader knows most of them already.
"""

import json
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from functools import lru_cache, partial
from ipaddress import ip_address
from typing import Any, get_args

from mesh.flows import ConnectionEvent, Direction, EndpointKind, FlowEndpoint, Phase
from mesh.identity import Identity
from mesh.workload import Address

_address = lru_cache(4096)(ip_address)
_address_of = lru_cache(4096)(lambda text: ip_address(text.decode()))
_text = lru_cache(4096)(str)
_MAX_TAILS = 1024
_PHASES: dict[bytes, Phase] = {b"opened": "opened", b"closed": "closed"}
_TEXTS = ("namespace", "pod", "workload_name", "workload_kind", "cluster")
_EVENT_DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(ConnectionEvent) if one.default is not MISSING}
_SHARED_NAMES = [name for name in _EVENT_DEFAULTS if name not in ("bytes_sent", "bytes_received", "duration_ns", "untold")]
_ONE_OF: dict[str, tuple[str, ...]] = {"phase": get_args(Phase), "direction": get_args(Direction)}
_KINDS: tuple[str, ...] = get_args(EndpointKind)
_HEAD_NAMES = ("bytes_sent", "bytes_received", "duration_ns", "untold", "lost")
_COUNT_PATTERN = rb"(0|[1-9]\d{0,17})"
_ORDINARY = re.compile(
    rb'\{"time_ns":([1-8]\d{0,18}),"phase":"(opened|closed)",'
    rb'(?:"bytes_sent":%(n)b,"bytes_received":%(n)b,"duration_ns":%(n)b,)?("untold":true,)?'
    rb'"source":\{"port":(0|[1-9]\d{0,4}),"address":"([0-9a-f.:]{2,45})",' % {b"n": _COUNT_PATTERN}
)
"""The head of a line about a connection that fares well."""
_encode = json.JSONEncoder(separators=(",", ":")).encode
_json = lru_cache(256)(_encode)


def write_event(event: ConnectionEvent) -> bytes:
    """One event as a line."""
    counts = (event.bytes_sent, event.bytes_received, event.duration_ns)
    source = event.source
    return write_head(event.time_ns, event.phase, source.address, source.port, counts, event.untold) + write_tail(event)


def write_head(
    time_ns: int, phase: Phase, address: Address, port: int, counts: tuple[int, int, int] = (0, 0, 0), untold: bool = False
) -> bytes:
    """The beginning of a line, with the source's address and port; `counts`: bytes sent, bytes received, nanoseconds."""
    moved = f'"bytes_sent":{counts[0]},"bytes_received":{counts[1]},"duration_ns":{counts[2]},' if any(counts) else ""
    opening = '"untold":true,' if untold else ""
    return (
        f'{{"time_ns":{time_ns},"phase":"{phase}",{moved}{opening}"source":{{"port":{port},"address":"{_text(address)}",'
    ).encode()


def write_tail(event: ConnectionEvent) -> bytes:
    """The end of a line: what events of other connections between the same ends share with this one."""
    end = event.destination
    shared = {name: value for name in _SHARED_NAMES if (value := getattr(event, name)) != _EVENT_DEFAULTS[name]}
    return (
        f'{_write_who(event.source)[1:]},"direction":"{event.direction}","node":{_json(event.node)},'
        f'"destination":{{"port":{end.port},"address":"{_text(end.address)}",{_write_who(end)[1:]}'
        + (f",{_encode(shared)[1:]}\n" if shared else "}\n")
    ).encode()


def write_lost(count: int) -> bytes:
    """How many events a reader did not get, as a line."""
    return b'{"lost":%d}\n' % count


class EventLine:
    """An event of a connection that fares well, read as far as it must be to be counted."""

    __slots__ = ("_address", "_counts", "_port", "phase", "shared", "time_ns", "untold")

    def __init__(
        self,
        time_ns: int,
        phase: Phase,
        counts: tuple[int, int, int],
        untold: bool,
        port: int,
        address: Address,
        shared: "Shared",
    ) -> None:
        self.time_ns = time_ns
        self.phase = phase
        self.untold = untold
        self.shared = shared
        self._counts, self._port, self._address = counts, port, address

    @property
    def duration_ns(self) -> int:
        """How long the connection was open until then."""
        return self._counts[2]

    def whole(self) -> ConnectionEvent:
        """The event with all that the line says."""
        likeness = self.shared.likeness
        sent, received, duration_ns = self._counts
        return replace(
            likeness,
            time_ns=self.time_ns,
            phase=self.phase,
            source=replace(likeness.source, address=self._address, port=self._port),
            bytes_sent=sent,
            bytes_received=received,
            duration_ns=duration_ns,
            untold=self.untold,
        )


class Shared:
    """What the tail of a line says. One for the lines of all connections with that tail, so that its reader can remember it."""

    __slots__ = ("likeness",)

    def __init__(self, likeness: ConnectionEvent) -> None:
        self.likeness = likeness
        """An event with that tail, and a head that says nothing."""


def read_event(line: bytes) -> EventLine | ConnectionEvent | int:
    """An event, read no further than it must be, or how many were lost. Raises: ValueError for anything else."""
    head = _ORDINARY.match(line)
    if head is None:
        return read_line(line)
    time_ns, phase, sent, received, duration_ns, untold, port, address = head.groups()
    try:
        shared = _read_tail(line[head.end() :])
        known_address = _address_of(address)
    except (ValueError, TypeError):
        return read_line(line)  # a stranger's line that only looks like one of ours, or is none: the reason is found there
    counts = (int(sent), int(received), int(duration_ns)) if sent is not None else (0, 0, 0)
    return EventLine(int(time_ns), _PHASES[phase], counts, untold is not None, int(port), known_address, shared)


def read_line(line: bytes) -> ConnectionEvent | int:
    """An event, or how many were lost. Raises: ValueError for anything else."""
    document = _object(line)
    if "lost" in document:
        return _count(document["lost"], "lost")
    return _event(document)


def _object(text: bytes, **options: Any) -> dict[str, Any]:
    try:
        document = json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("not an event: nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("not an event: not an object")
    return document


def _event(document: dict[str, Any]) -> ConnectionEvent:
    try:
        return ConnectionEvent(
            _count(document["time_ns"], "time_ns"),
            _string(document["node"], "node"),
            _choice(document, "phase"),
            _choice(document, "direction"),
            _read_end(document["source"]),
            _read_end(document["destination"]),
            **{name: _READERS[name](value, name) for name, value in document.items() if name in _READERS},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event: {error!r}") from error


@lru_cache(_MAX_TAILS)
def _read_tail(tail: bytes) -> Shared:
    document = _object(
        b'{"time_ns":0,"phase":"opened","source":{"port":0,"address":"::",' + tail, object_pairs_hook=_named_once
    )
    if any(name in document for name in _HEAD_NAMES):
        raise ValueError("says what belongs into the head")
    return Shared(_event(document))


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("says something twice")
    return found


def _write_who(end: FlowEndpoint) -> str:
    return _who(end.kind, tuple([getattr(end, name) for name in _TEXTS]), end.labels, end.identity)


@lru_cache(4096)
def _who(kind: EndpointKind, texts: tuple[str, ...], labels: tuple[str, ...], identity: Identity | None) -> str:
    """An end without its address: the same few speak again and again."""
    document: dict[str, object] = {"kind": kind}
    if texts[0]:
        document.update(zip(_TEXTS, texts, strict=True))
    if labels:
        document["labels"] = labels
    if identity:
        document["identity"] = identity
    return _encode(document)


def _read_end(document: dict[str, Any]) -> FlowEndpoint:
    kind = document["kind"]
    if kind not in _KINDS:
        raise ValueError(f"not an event: kind {kind!r}")
    address: Address = _address(_string(document["address"], "address"))
    identity = document.get("identity")
    if identity is not None:
        domain, namespace, account = identity
        identity = Identity(_string(domain, "identity"), _string(namespace, "identity"), _string(account, "identity"))
    texts = {name: _string(document[name], name) for name in _TEXTS if name in document}
    labels = _strings(document.get("labels", ()), "label")
    return FlowEndpoint(kind, address, _count(document["port"], "port", 1 << 32), identity=identity, labels=labels, **texts)


def _choice(document: dict[str, Any], name: str) -> Any:
    if document[name] not in _ONE_OF[name]:
        raise ValueError(f"not an event: {name} {document[name]!r}")
    return document[name]


def _string(value: Any, name: str) -> str:
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # half a surrogate pair is in no flow
        return value
    raise ValueError(f"not an event: {name} is {value!r}")


def _strings(values: Any, name: str) -> tuple[str, ...]:
    return tuple([_string(one, name) for one in values])


def _flag(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"not an event: {name} is {value!r}")


def _count(value: Any, name: str, below: int = 1 << 63) -> int:
    """`below`: what a flow has room for."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below:
        return value
    raise ValueError(f"not an event: {name} is {value!r}")


_OF_TYPE: dict[type, Callable[[Any, str], Any]] = {str: _string, int: _count, bool: _flag, tuple: _strings}
_READERS = {name: _OF_TYPE[type(default)] for name, default in _EVENT_DEFAULTS.items()}
_READERS["drop_reason"] = partial(_count, below=1 << 31)
