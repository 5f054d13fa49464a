"""The CONNECT requests of HBONE: who wants what on whose behalf, as header fields.

Order on the wire: :method, :authority, baggage, forwarded, traceparent. What repeats from stream to stream comes first and
goes through the HPACK table; what never repeats follows as literals. Source: facts of Istio's ztunnel, section 4.2.
"""

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from mesh.workload import Address
from ztunnel.fields import Fields, literal

HBONE_PORT = 15008
RESERVED_PORTS = frozenset({15001, 15006, 15008})
MAX_PORT = 65535
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~*-]+)(?::([0-9]*))?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_PSEUDO = {b":method", b":authority", b":scheme", b":path", b":protocol"}
_FORWARDED_NETWORK = b"x-forwarded-network"
_USUAL = {b"baggage", b"forwarded", b"traceparent", _FORWARDED_NETWORK}


class Malformed(ValueError):
    """Not a request at all: the stream is reset with PROTOCOL_ERROR."""


class BadRequest(ValueError):
    """A request, but none that a proxy can serve: status 400."""


class Authority(NamedTuple):
    """The target of a CONNECT."""

    host: Address | str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{self.host}:{self.port}"


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
    """Read `ip:port`, `[v6]:port` or `hostname:port`.

    Raises: Malformed for what no URI allows; BadRequest without a port, or with one beyond 65535.
    """
    match = _AUTHORITY.fullmatch(text) if len(text) <= 512 else None
    if match is None:
        raise Malformed(f"authority {text[:64]!r}")
    host, port = match.groups()
    if not port or len(port) > 5 or int(port) > MAX_PORT:
        raise BadRequest(f"authority {text[:64]!r}: no port from 0 to {MAX_PORT}")
    bare = host[1:-1] if host.startswith("[") else host
    try:
        return Authority(ip_address(bare), int(port))
    except ValueError:
        if bare is not host:
            raise Malformed(f"authority {text[:64]!r}") from None
        return Authority(host, int(port))


def read_request(fields: Fields) -> ConnectRequest:
    """Read the fields of a new stream. Raises: Malformed, BadRequest."""
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
            if (name not in _USUAL and not _NAME.fullmatch(name)) or b"\n" in value or b"\r" in value or b"\0" in value:
                raise Malformed(f"field {name[:32]!r}")
            if name == b"baggage":
                baggage = baggage + b"," + value if baggage else value
            elif name == b"forwarded":
                forwarded = value
            elif name == _FORWARDED_NETWORK:
                network = value.decode("ascii", "replace")
    method = pseudo.get(b":method")
    if not method:
        raise Malformed("no method")
    if method != b"CONNECT":
        raise BadRequest(f"method {method[:16]!r}")
    if len(pseudo) != 2 or not pseudo.get(b":authority"):
        raise Malformed("CONNECT has :method and :authority and no other pseudo field")
    try:
        authority = parse_authority(pseudo[b":authority"].decode("ascii"))
    except UnicodeDecodeError:
        raise Malformed("authority is not ASCII") from None
    return ConnectRequest(authority, forwarded_host(forwarded) if forwarded else "", baggage, network)


def forwarded_host(value: bytes) -> str:
    """The `host` parameter of a `forwarded` field, without quotes; empty when there is none or it is not ASCII."""
    for part in value.split(b","):
        for pair in part.split(b";"):
            name, _, text = pair.partition(b"=")
            if name.strip().lower() == b"host" and text.isascii():
                return text.decode().strip().strip('"')
    return ""


def repeating_fields(authority: Authority, baggage: bytes) -> Fields:
    """The fields of a request that are the same for every stream to the same target."""
    return [(b":method", b"CONNECT"), (b":authority", str(authority).encode()), (b"baggage", baggage)]


def single_fields(source: tuple[Address, int], hostname: str, trace: bytes, network: str | None = None) -> bytes:
    """The fields of one request alone, encoded; `trace` is 24 random bytes, `network` ours where a gateway passes it on."""
    address, port = source
    forwarded = f'for="{Authority(address, port)}"' + (f";host={hostname}" if hostname else "")
    digits = trace.hex()
    once = literal(b"forwarded", forwarded.encode()) + literal(b"traceparent", f"00-{digits[:32]}-{digits[32:]}-00".encode())
    return once if network is None else once + literal(_FORWARDED_NETWORK, network.encode())


def response_fields(status: int, baggage: bytes = b"") -> Fields:
    """The fields of a response."""
    fields = [(b":status", str(status).encode())]
    return [*fields, (b"baggage", baggage)] if baggage else fields


def read_status(fields: Fields) -> int:
    """The status of a response; 0 when it has none that is a number."""
    for name, value in fields:
        if name == b":status" and len(value) == 3 and value.isdigit():
            return int(value)
    return 0
