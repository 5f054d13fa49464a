"""DNS messages (RFC 1035) without I/O: what questions and answers are made of. `dns_query` and `dns_response` make them.

Names are read forwards only where they are skipped; where a compressed one is followed, every pointer must point further
back than the one before, so that no message can make us read in circles. What cannot be read raises DNSError, nothing else.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16
A, CNAME, AAAA, OPT = 1, 5, 28, 41
IN = 1
HEADER_BYTES = 12
MIN_UDP_BYTES = 512
MAX_UDP_BYTES = 65535 - 20 - 8
"""A datagram of IPv4 carries no more, beside its headers."""
MAX_BYTES = 65535
QR, OPCODE, AA, TC, RD, RA, CD = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
"""Of the header's flags."""
DO = 0x8000
"""Of EDNS' flags: DNSSEC records are wanted."""
HEADER = struct.Struct("!6H")
"""Id, flags, numbers of questions, answers, authority and additional records."""
FIXED = struct.Struct("!HHIH")
"""Between a record's name and its data: type, class, TTL, length."""
_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR", 43: "DS"}
_TYPES |= {48: "DNSKEY", 52: "TLSA", 64: "SVCB", 65: "HTTPS", 255: "ANY", 257: "CAA"}
_MAX_NAME_BYTES = 255
_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_*")


class DNSError(Exception):
    """Not a message that we can read."""


class Question(NamedTuple):
    """What is asked."""

    wire: bytes
    """The whole question as it came: name without compression, type, class."""
    type: int
    klass: int

    @property
    def name(self) -> str:
        """Lower case, without the last dot; empty for the root, and for names that no mesh has (odd bytes in labels)."""
        return _text(read_name(self.wire, 0)[0])

    @property
    def type_name(self) -> str:
        """`A`; `other` for types that are rare, so that a metric's label has few values."""
        return _TYPES.get(self.type, "other")


class Record(NamedTuple):
    """One resource record of a message, by position."""

    start: int
    type: int
    klass: int
    ttl: int
    data: int
    """Where its data begins."""
    end: int


def encode_name(name: str) -> bytes:
    """A dotted name as on the wire. Raises: DNSError when it is none."""
    wire = bytearray()
    for label in name.rstrip(".").split(".") if name.rstrip(".") else ():
        try:
            raw = label.encode("ascii")
        except UnicodeEncodeError:
            raise DNSError(f"{name!r} is not ASCII") from None
        if not 0 < len(raw) < 64:
            raise DNSError(f"{name!r} has a label of {len(raw)} bytes")
        wire += bytes((len(raw),)) + raw
    wire += b"\0"
    if len(wire) > _MAX_NAME_BYTES:
        raise DNSError(f"a name of {len(wire)} bytes")
    return bytes(wire)


def read_name(message: bytes, at: int) -> tuple[list[bytes], int]:
    """The labels of a name that may be compressed, in lower case, and where the name ends. Raises: DNSError."""
    labels: list[bytes] = []
    length, limit, end = 1, at + 1, -1
    while True:
        size = _byte(message, at)
        if size >= 0xC0:
            target = (size & 0x3F) << 8 | _byte(message, at + 1)
            end = at + 2 if end < 0 else end
            if target >= limit - 1:
                raise DNSError("a compressed name that does not point back")
            at, limit = target, target + 1
        elif size >= 0x40:
            raise DNSError("a label of unknown kind")
        elif size:
            length += size + 1
            if length > _MAX_NAME_BYTES or at + 1 + size > len(message):
                raise DNSError("a name that is too long")
            labels.append(message[at + 1 : at + 1 + size].lower())
            at += 1 + size
        else:
            return labels, at + 1 if end < 0 else end


def after_name(message: bytes, at: int) -> int:
    """Where a name ends; pointers are not followed, so that a whole message is read in one go forwards."""
    while True:
        size = _byte(message, at)
        if size >= 0xC0:
            return at + 2
        if size >= 0x40:
            raise DNSError("a label of unknown kind")
        at += size + 1
        if not size:
            return at


def _byte(message: bytes, at: int) -> int:
    if at >= len(message):
        raise DNSError("cut short")
    return message[at]


def _text(labels: Sequence[bytes]) -> str:
    if not all(_SAFE.issuperset(label) for label in labels):
        return ""
    return b".".join(labels).decode("ascii")


def read_question(message: bytes) -> Question:
    """The question that follows the header; never compressed. Raises: DNSError."""
    labels, end = read_name(message, HEADER_BYTES)
    if end - HEADER_BYTES != sum(len(label) + 1 for label in labels) + 1 or end + 4 > len(message):
        raise DNSError("a question that is compressed or cut short")
    return Question(message[HEADER_BYTES : end + 4], *struct.unpack_from("!HH", message, end))


def read_records(message: bytes, at: int, count: int) -> Iterator[Record]:
    """The `count` records from a place on. Raises: DNSError."""
    for _ in range(count):
        start = at
        at = after_name(message, at)
        if at + FIXED.size > len(message):
            raise DNSError("a record that is cut short")
        kind, klass, ttl, length = FIXED.unpack_from(message, at)
        data = at + FIXED.size
        at = data + length
        if at > len(message):
            raise DNSError("a record that is cut short")
        yield Record(start, kind, klass, ttl if ttl < 1 << 31 else 0, data, at)  # RFC 2181, section 8
