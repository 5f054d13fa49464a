"""The CONNECT requests of HBONE: who wants what on whose behalf, as header fields.

Order on the wire: :method, :authority, baggage, forwarded, traceparent. What repeats from stream to stream comes first and
goes through the HPACK table; what never repeats follows as literals. Source: facts of Istio's ztunnel, section 4.2.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from mesh.workload import Address
from ztunnel.baggage import MAX_BYTES
from ztunnel.fields import Fields, Repeating, literal

HBONE_PORT = 15008
RESERVED_PORTS = frozenset({15001, 15006, 15008})
MAX_PORT = 65535
_ALLOWED = r"[A-Za-z0-9!$&'()*+,;=._~:@%-]*+"
"""Possessive: who is refused costs no more than who is not, however long his authority is."""
_AUTHORITY = re.compile(rf"{_ALLOWED}(?:\[{_ALLOWED}\])?{_ALLOWED}")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_PSEUDO = {b":method", b":authority", b":scheme", b":path", b":protocol"}
_FORWARDED_NETWORK = b"x-forwarded-network"
_USUAL = {b"baggage", b"forwarded", b"traceparent", _FORWARDED_NETWORK}
_HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
"""Of HTTP/1.1; RFC 9113, section 8.2.2."""
_CONNECT = (b":method", b"CONNECT")
_OK = (b":status", b"200")
_STATUSES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
_breaks_line = re.compile(rb"[\0\n\r]").search
_LONGEST_NAME = 253
"""Of hosts and networks, in characters. What nobody can look up is not kept: each of thousands of tunnels may say 64 KiB."""
_SHORT_BYTES = 1024
"""Of an authority and a baggage that are remembered."""


class Malformed(ValueError):
    """Not a request at all: the stream is reset with PROTOCOL_ERROR."""


class BadRequest(ValueError):
    """A request, but none that a proxy can serve: status 400."""


class Authority(NamedTuple):
    """The target of a CONNECT."""

    host: Address | str
    port: int

    def __str__(self) -> str:
        host = str(self.host)  # in braces an address takes twice as long
        return f"[{host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{host}:{self.port}"


class ConnectRequest(NamedTuple):
    """A CONNECT as the server reads it."""

    authority: Authority
    forwarded_host: str
    """The service that the client meant; empty when it did not say."""
    baggage: bytes = b""
    """What the client says of itself: several fields are joined."""
    network: str | None = None
    """The network that it comes from through a gateway (`x-forwarded-network`); None when it does not speak of one."""


@lru_cache(512)
def parse_authority(text: str) -> Authority:
    """Read `ip:port`, `[v6]:port` or `hostname:port`; odd hosts that a URI allows are names that nobody has.

    Raises: Malformed for what no URI allows; BadRequest without a port, or with one beyond 65535.
    """
    if not _is_authority(text):
        raise Malformed(f"authority {text[:64]!r}")
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > MAX_PORT:
        raise BadRequest(f"authority {text[:64]!r}: no port from 0 to {MAX_PORT}")
    try:
        return Authority(IPv6Address(host[1:-1]) if host[:1] == "[" and "%" not in host else IPv4Address(host), int(port))
    except ValueError:
        return Authority(host, int(port))


def _is_authority(text: str) -> bool:
    """RFC 3986, section 3.2, as loosely as Istio's ztunnel reads it."""
    if not 0 < len(text) <= 512 or not _AUTHORITY.fullmatch(text) or text[-1] == "@":
        return False
    place = text[max(text.rfind("@"), text.rfind("]")) + 1 :]
    return "%" not in place and place.count(":") <= 1


def read_request(fields: Fields) -> ConnectRequest:
    """Read the fields of a new stream. Raises: Malformed, BadRequest."""
    if len(fields) == 5 and fields[0] == _CONNECT:  # as `repeating_fields` and `single_fields` make them
        method, authority, baggage, (forwarded, whose), (trace, number) = fields
        if (authority[0], baggage[0], forwarded, trace) == (b":authority", b"baggage", b"forwarded", b"traceparent"):
            short = len(authority[1]) + len(baggage[1]) <= _SHORT_BYTES
            if short and not _breaks_line(whose) and not _breaks_line(number):
                request = _read_again((method, authority, baggage))
                host = forwarded_host(whose)
                return request._replace(forwarded_host=host) if host else request
    return _read(fields)


def _read(fields: Sequence[tuple[bytes, bytes]]) -> ConnectRequest:
    pseudo: dict[bytes, bytes] = {}
    forwarded = baggage = b""
    network: str | None = None
    regular = False
    for name, value in fields:
        if name.startswith(b":"):
            if regular or name in pseudo or name not in _PSEUDO:
                raise Malformed(f"pseudo field {name[:32]!r}")
            pseudo[name] = value
        else:
            regular = True
            if (name not in _USUAL and not _may_say(name, value)) or _breaks_line(value):
                raise Malformed(f"field {name[:32]!r}")
            if name == b"baggage":
                baggage = baggage + b"," + value if baggage else value
            elif name == b"forwarded":
                forwarded = value
            elif name == _FORWARDED_NETWORK:
                network = value[:_LONGEST_NAME].decode("ascii", "replace")
    authority = _target(pseudo)
    said = baggage if len(baggage) <= MAX_BYTES else b""  # longer ones are not looked at
    return ConnectRequest(authority, forwarded_host(forwarded) if forwarded else "", said, network)


def _target(pseudo: dict[bytes, bytes]) -> Authority:
    """Where a request wants to. Raises: Malformed, BadRequest."""
    method = pseudo.get(b":method")
    if not method:
        raise Malformed("no method")
    if method != b"CONNECT":
        if not _is_request(pseudo):
            raise Malformed(f"method {method[:16]!r}, and no scheme, path and authority to go with it")
        raise BadRequest(f"method {method[:16]!r}")
    if len(pseudo) != 1 + (b":authority" in pseudo):
        raise Malformed("CONNECT has :method and :authority and no other pseudo field")
    if b":authority" not in pseudo:
        raise BadRequest("CONNECT without an authority")
    try:
        return parse_authority(pseudo[b":authority"].decode("ascii"))
    except UnicodeDecodeError:
        raise Malformed("authority is not ASCII") from None


def _may_say(name: bytes, value: bytes) -> bool:
    """Whether a request may have such a field."""
    if name in _HOP_BY_HOP or not _NAME.fullmatch(name):
        return False
    return value == b"trailers" if name == b"te" else name != b"content-length" or value.isdigit()


def _is_request(pseudo: dict[bytes, bytes]) -> bool:
    """Whether a method other than CONNECT has what it needs; RFC 9113, section 8.3.1."""
    authority = pseudo.get(b":authority")
    return (
        b":protocol" not in pseudo
        and _SCHEME.fullmatch(pseudo.get(b":scheme", b"")) is not None
        and pseudo.get(b":path", b"")[:1] == b"/"
        and (authority is None or _is_authority(authority.decode("ascii", "replace")))
    )


_read_again = lru_cache(512)(_read)
"""Every stream to the same target repeats its first fields."""


def forwarded_host(value: bytes) -> str:
    """The `host` parameter of a `forwarded` field, without quotes; empty when there is none, or none that is a name."""
    if value.lower().find(b"host") < 0:  # `in` would try whether the word is a number, and write an error message
        return ""
    for part in value.split(b","):
        for pair in part.split(b";"):
            name, _, text = pair.partition(b"=")
            if name.strip().lower() == b"host" and text.isascii():
                host = text.decode().strip().strip('"')
                return host if len(host) <= _LONGEST_NAME else ""
    return ""


@lru_cache(1024)
def repeating_fields(authority: str, baggage: bytes) -> Repeating:
    """The fields of a request that are the same for every stream to the same target."""
    return (_CONNECT, (b":authority", authority.encode()), (b"baggage", baggage))


def single_fields(source: tuple[Address, int], hostname: str, trace: bytes, network: str | None = None) -> bytes:
    """The fields of one request alone, encoded; `trace` is 24 random bytes, `network` ours where a gateway passes it on."""
    address, port = source
    before, behind = _around_port(address, hostname)
    said, digits = b"%b%d%b" % (before, port, behind), trace.hex()
    forwarded = _FORWARDED[len(said)] + said if len(said) < len(_FORWARDED) else literal(b"forwarded", said)
    once = forwarded + _TRACE + f"00-{digits[:32]}-{digits[32:]}-00".encode()
    return once if network is None else once + literal(_FORWARDED_NETWORK, network.encode())


_FORWARDED = [literal(b"forwarded", bytes(length))[: -length or None] for length in range(127)]
_TRACE = literal(b"traceparent", bytes(55))[:-55]
"""All have the same length."""


@lru_cache(1024)
def _around_port(address: Address, hostname: str) -> tuple[bytes, bytes]:
    """What a `forwarded` field says before and behind the port, which alone is a connection's own."""
    before, behind = f'for="{Authority(address, 0)}"'.rsplit("0", 1)
    return before.encode(), (behind + (f";host={hostname}" if hostname else "")).encode()


def response_fields(status: int, baggage: bytes = b"") -> Repeating:
    """The fields of a response."""
    said = (b":status", b"%d" % status)
    return (said, (b"baggage", baggage)) if baggage else (said,)


def read_status(fields: Fields) -> int:
    """The status of a response; 0 when it has none that is a number."""
    if fields and fields[0] == _OK:
        return 200
    for name, value in fields:
        if name == b":status" and len(value) == 3 and value.isdigit():
            return int(value)
    return 0


def status_text(status: int) -> str:
    """A status with its name, where it is one of ours."""
    return f"{status} {_STATUSES[status]}" if status in _STATUSES else str(status)
