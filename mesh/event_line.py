"""Connection events as lines of JSON: what a proxy tells its agent, cheaper than flows and read by nobody else.

One line is one object, `{"time_ns": ..., "phase": "opened", ...}`, with `ConnectionEvent`'s names; what has its default is left
out, and names that are not known are skipped, so that a proxy and an agent of different versions understand each other. A line
`{"lost": 7}` says that so many events found no room.
"""

import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, get_args

from mesh.flows import ConnectionEvent, Direction, EndpointKind, FlowEndpoint, Phase
from mesh.identity import Identity
from mesh.workload import Address

_address = lru_cache(4096)(ip_address)
_text = lru_cache(4096)(str)
_TEXTS = ("namespace", "pod", "workload_name", "workload_kind", "cluster")
_EVENT_DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(ConnectionEvent) if one.default is not MISSING}
_ONE_OF: dict[str, tuple[str, ...]] = {"phase": get_args(Phase), "direction": get_args(Direction)}
_KINDS: tuple[str, ...] = get_args(EndpointKind)
_encode = json.JSONEncoder(separators=(",", ":")).encode
_json = lru_cache(256)(_encode)


def write_event(event: ConnectionEvent) -> bytes:
    """One event as a line."""
    head = (
        f'{{"time_ns":{event.time_ns},"node":{_json(event.node)},"phase":"{event.phase}","direction":"{event.direction}",'
        f'"source":{_write_end(event.source)},"destination":{_write_end(event.destination)}'
    )
    rest = {name: value for name, default in _EVENT_DEFAULTS.items() if (value := getattr(event, name)) != default}
    return (f"{head},{_encode(rest)[1:]}\n" if rest else head + "}\n").encode()


def write_lost(count: int) -> bytes:
    """How many events a reader did not get, as a line."""
    return b'{"lost":%d}\n' % count


def read_line(line: bytes) -> ConnectionEvent | int:
    """An event, or how many were lost. Raises: ValueError for anything else."""
    try:
        document = json.loads(line)
    except RecursionError as error:
        raise ValueError("not an event: nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("not an event: not an object")
    if "lost" in document:
        return _count(document["lost"], "lost")
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


def _write_end(end: FlowEndpoint) -> str:
    who = _write_who(end.kind, tuple([getattr(end, name) for name in _TEXTS]), end.labels, end.identity)
    return f'{who[:-1]},"address":"{_text(end.address)}","port":{end.port}}}'


@lru_cache(4096)
def _write_who(kind: EndpointKind, texts: tuple[str, ...], labels: tuple[str, ...], identity: Identity | None) -> str:
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
    return FlowEndpoint(kind, address, _count(document["port"], "port"), identity=identity, labels=labels, **texts)


def _choice(document: dict[str, Any], name: str) -> Any:
    if document[name] not in _ONE_OF[name]:
        raise ValueError(f"not an event: {name} {document[name]!r}")
    return document[name]


def _string(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"not an event: {name} is {value!r}")


def _strings(values: Any, name: str) -> tuple[str, ...]:
    return tuple([_string(one, name) for one in values])


def _flag(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"not an event: {name} is {value!r}")


def _count(value: Any, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    raise ValueError(f"not an event: {name} is {value!r}")


_OF_TYPE: dict[type, Callable[[Any, str], Any]] = {str: _string, int: _count, bool: _flag, tuple: _strings}
_READERS = {name: _OF_TYPE[type(default)] for name, default in _EVENT_DEFAULTS.items()}
