"""What a node's proxy says of itself, `/config_dump` and `/connections`, in the form that the commands rely on.

The proxy need not be weft's, nor of this version: what has another form is left out and named, the rest is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cli.dial import proxy_document, proxy_json
from cli.failure import Incomplete, warn
from wire.places import NodePlaces

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that is no container of shapes."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class _Keyed:
    """A map by any key of one shape; where `or_list`, a list of them too: proxies have shown the mesh in both ways."""

    inner: Any
    or_list: bool = False


Shape = dict[str, Any] | list[Any] | _Keyed | _Value
"""An object whose keys, where they are there, have these shapes; a list of one shape; a map; a value."""

_TEXT = _Value("text", lambda value: isinstance(value, str))
_COUNT = _Value("a count", lambda value: type(value) is int and 0 <= value < 1 << 64)
_SERIAL = _Value("a serial number", lambda value: isinstance(value, str) and len(value) <= 64)
_RULES = _Value("a list", lambda value: isinstance(value, list))
_PORTS = _Value(
    "ports with their targets",
    lambda value: isinstance(value, dict) and all(key.isascii() and key.isdigit() and len(key) <= 5 for key in value),
)
_DIRECTION = _Value("inbound or outbound", lambda value: value in ("inbound", "outbound"))
_WAYPOINT: Shape = {}
_LEAF: Shape = {"serialNumber": _SERIAL, "validFrom": _TEXT, "expirationTime": _TEXT}
_CONNECTION: dict[str, Shape] = {
    **dict.fromkeys(("src", "actualDst", "sourceWorkload", "destinationWorkload", "destinationService", "hop"), _TEXT),
    **dict.fromkeys(("openedUnixNs", "bytesSent", "bytesReceived"), _COUNT),
}
_CONNECTIONS: Shape = [_CONNECTION | {"direction": _DIRECTION}]
_DUMP: Shape = {
    "workloads": _Keyed({"waypoint": _WAYPOINT}, or_list=True),
    "services": _Keyed(
        {"waypoint": _WAYPOINT, "vips": [_TEXT], "ports": _PORTS, "endpoints": _Keyed({}, or_list=True)}, or_list=True
    ),
    "policies": _Keyed({"rules": _RULES}, or_list=True),
    "certificates": [{"identity": _TEXT, "state": _TEXT, "certChain": [_LEAF]}],
    "workloadState": _Keyed({"info": {}, "connections": {"inbound": [_CONNECTION], "outbound": [_CONNECTION]}}),
    "controlPlane": {},
    "version": {},
    "silentWorkers": _COUNT,
}
_MAX_NAMED = 3
_MAX_KEY = 60


async def config_dump(node: NodePlaces) -> JSON:
    """Everything that the node's proxy knows. Raises: Failure when there is no such answer."""
    return _sound(node, "/config_dump", await proxy_json(node, "/config_dump"), _DUMP)  # type: ignore[no-any-return]


async def open_connections(node: NodePlaces) -> list[JSON]:
    """What weft's proxy has open.

    Raises: Failure when there is no such answer, as a foreign proxy gives none; Incomplete when some of its workers are silent.
    """
    document, headers = await proxy_document(node, "/connections", list)
    found: list[JSON] = _sound(node, "/connections", document, _CONNECTIONS)
    silent = headers.get("silent-workers", "")
    if silent:
        reason = f"{silent} of its data workers did not answer: what they carry is missing"
        raise Incomplete(f"proxy of {node.name}", reason, "see why with: weft status", found)
    return found


def _sound(node: NodePlaces, path: str, found: Any, shape: Shape) -> Any:
    odd: list[str] = []
    kept = sound(found, shape, path, odd)
    if odd:
        more = f" and {len(odd) - _MAX_NAMED} more" if odd[_MAX_NAMED:] else ""
        warn(f"proxy of {node.name}: left out what has another form than expected: {', '.join(odd[:_MAX_NAMED])}{more}")
    return kept


def sound(found: Any, shape: Shape, where: str, odd: list[str]) -> Any:
    """A JSON value without its parts of another shape, each of which is added to `odd`; None where it is odd itself.

    Null stands for what is not there, and stays where it may be.
    """
    if isinstance(shape, _Value):
        return found if shape.holds(found) else _odd(where, shape.words, odd)
    if isinstance(shape, _Keyed):
        if isinstance(found, dict):
            by_key = {key: sound(one, shape.inner, f"{where}.{key[:_MAX_KEY]}", odd) for key, one in found.items()}
            return {key: one for key, one in by_key.items() if one is not None}
        if not shape.or_list:
            return _odd(where, "an object", odd)
        shape = [shape.inner]
    if isinstance(shape, list):
        if not isinstance(found, list):
            return _odd(where, "a list", odd)
        kept = [sound(one, shape[0], f"{where}[{number}]", odd) for number, one in enumerate(found)]
        return [one for one in kept if one is not None]
    if not isinstance(found, dict):
        return _odd(where, "an object", odd)
    known = {key: sound(found[key], one, f"{where}.{key}", odd) for key, one in shape.items() if found.get(key) is not None}
    return {key: known.get(key, one) for key, one in found.items() if known.get(key, one) is not None or one is None}


def _odd(where: str, words: str, odd: list[str]) -> None:
    odd.append(f"{where} is not {words}")
