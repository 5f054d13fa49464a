"""What a SOCKS5 client says before its bytes, without I/O: a greeting, then one CONNECT to an address or a name.

Only as much as tests need: no authentication, no other command. Source: RFC 1928; facts of Istio's ztunnel, section 5.4.
"""

import re
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from mesh.workload import Address

_VERSION, _CONNECT, _NO_AUTHENTICATION, _NONE_ACCEPTABLE = 5, 1, 0, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_NAME_OF_HOST = re.compile(r"(?=.{1,253}\.?\Z)(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


class Reply(IntEnum):
    """What the server says in the end."""

    SUCCEEDED = 0
    FAILED = 1
    HOST_UNREACHABLE = 4
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8

    def said(self) -> bytes:
        """On the wire, with no address of ours: there is none that the client could use."""
        return bytes((_VERSION, self, 0, _IPV4)) + bytes(6)


class Refusal(Exception):
    """The client is not served; `said` is what it hears, if anything."""

    def __init__(self, reason: str, said: bytes = b"") -> None:
        super().__init__(reason)
        self.said = said


class Negotiation:
    """One client's words; `target` is there once it has said where to."""

    def __init__(self) -> None:
        self.target: tuple[Address | str, int] | None = None
        self._said = bytearray()
        self._greeted = False

    @property
    def wanted(self) -> int:
        """How many bytes to read next, so that none of what follows the request is read: at least 1 until there is a target."""
        return 0 if self.target is not None else self._needed() - len(self._said)

    def receive(self, data: bytes) -> bytes:
        """Take at most `wanted` bytes in; returns what to answer. Raises: Refusal."""
        self._said += data
        if self._said[0] != _VERSION:
            raise Refusal(f"SOCKS version {self._said[0]}: only version 5 is served")
        if len(self._said) < self._needed():
            return b""
        said, self._said = bytes(self._said), bytearray()
        if self._greeted:
            self.target = _read_request(said)
            return b""
        self._greeted = True
        if _NO_AUTHENTICATION not in said[2:]:
            raise Refusal("the client wants to authenticate itself", bytes((_VERSION, _NONE_ACCEPTABLE)))
        return bytes((_VERSION, _NO_AUTHENTICATION))

    def _needed(self) -> int:
        """The length of what is being said, as far as it is known."""
        said = self._said
        if not self._greeted:
            return 2 if len(said) < 2 else 2 + said[1]
        if len(said) < 5:  # the shortest of requests has 7
            return 5
        return 6 + {_IPV4: 4, _IPV6: 16}.get(said[3], 1 + said[4])


def _read_request(said: bytes) -> tuple[Address | str, int]:
    _, command, _, kind = said[:4]
    if command != _CONNECT:
        raise Refusal(f"SOCKS command {command}: only CONNECT is served", Reply.COMMAND_NOT_SUPPORTED.said())
    where, port = said[4:-2], int.from_bytes(said[-2:], "big")
    if not port:
        raise Refusal("SOCKS: port 0", Reply.FAILED.said())
    if kind == _IPV4:
        return IPv4Address(where), port
    if kind == _IPV6:
        address = IPv6Address(where)
        return address.ipv4_mapped or address, port
    if kind != _NAME:
        raise Refusal(f"SOCKS address type {kind}: not known", Reply.ADDRESS_TYPE_NOT_SUPPORTED.said())
    name = where[1:].decode("latin-1")
    if not name.isascii() or not _NAME_OF_HOST.fullmatch(name):
        raise Refusal(f"SOCKS: {name[:64]!r} is no name of a host", Reply.HOST_UNREACHABLE.said())
    return name.rstrip(".").lower(), port
