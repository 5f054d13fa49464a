"""What clients ask, and what they are answered (RFC 1035, EDNS: RFC 6891): by us with authority, or with a server's words."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mesh.workload import Address
from ztunnel.dns_message import (
    AA,
    AAAA,
    BADVERS,
    CD,
    CNAME,
    DO,
    FIXED,
    FORMERR,
    HEADER,
    HEADER_BYTES,
    IN,
    MAX_UDP_BYTES,
    MIN_UDP_BYTES,
    NOERROR,
    NOTIMP,
    OPCODE,
    OPT,
    QR,
    RA,
    RD,
    TC,
    A,
    DNSError,
    Question,
    encode_name,
    read_question,
    read_records,
)
from ztunnel.dns_response import Response, Wishes

_MAX_RECORDS = 16
"""Beside the question."""


class EDNS(NamedTuple):
    """A client's or a server's OPT record."""

    payload_bytes: int
    version: int
    dnssec_ok: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A message that asks, or `refusal`: the code with which it must be answered instead."""

    id: int
    flags: int
    question: Question | None
    edns: EDNS | None = None
    refusal: int = NOERROR

    @property
    def udp_limit(self) -> int:
        """Bytes of the longest datagram that the client takes."""
        return min(max(MIN_UDP_BYTES, self.edns.payload_bytes), MAX_UDP_BYTES) if self.edns else MIN_UDP_BYTES

    @property
    def wishes(self) -> Wishes:
        """What a server is told of this client."""
        return Wishes(self.edns is not None, self.edns is not None and self.edns.dnssec_ok, bool(self.flags & CD))


def read_query(message: bytes) -> Query | None:
    """Understand a client's message; None for what gets no answer: what is too short for one, and answers."""
    if len(message) < HEADER_BYTES:
        return None
    number, flags, questions, answers, authorities, extras = HEADER.unpack_from(message)
    if flags & QR:  # who answers answers may do so for ever
        return None
    if flags & OPCODE:
        return Query(number, flags, _readable_question(message) if questions == 1 else None, refusal=NOTIMP)
    if questions != 1 or answers + authorities + extras > _MAX_RECORDS:
        return Query(number, flags, None, refusal=FORMERR)
    try:
        question = read_question(message)
        options = [
            EDNS(record.klass, record.ttl >> 16 & 255, bool(record.ttl & DO))
            for record in read_records(message, HEADER_BYTES + len(question.wire), answers + authorities + extras)
            if record.type == OPT
        ]
    except DNSError:
        return Query(number, flags, None, refusal=FORMERR)
    if len(options) > 1:
        return Query(number, flags, question, refusal=FORMERR)
    edns = options[0] if options else None
    return Query(number, flags, question, edns, BADVERS if edns and edns.version else NOERROR)


def _readable_question(message: bytes) -> Question | None:
    try:
        return read_question(message)
    except DNSError:
        return None


def refuse(query: Query, code: int) -> bytes:
    """An answer without records."""
    return _answer(query, code, False, b"", 0, truncated=False)


def answer(query: Query, name: str, alias: str, addresses: Iterable[Address], ttl_s: int, limit: int) -> bytes:
    """An authority's answer of at most `limit` bytes: `name` is `alias` (a CNAME, where there is one), which has addresses.

    `name` is the question's, in lower case. Addresses that find no room are left out, and the answer says so (TC).
    """
    assert query.question is not None
    body = bytearray()
    start = HEADER_BYTES + len(query.question.wire)
    owner = b"\xc0\x0c" if query.question.wire.startswith(wire := encode_name(name)) else wire
    here = start if owner is wire else HEADER_BYTES
    count = 0
    if alias:
        target = encode_name(alias)
        body += owner + struct.pack("!HHIH", CNAME, IN, ttl_s, len(target)) + target
        here = start + len(body) - len(target)
        owner, count = _pointer(here), 1
    room = limit - start - (11 if query.edns else 0)
    if len(body) > room:
        return _answer(query, NOERROR, True, b"", 0, truncated=True)
    truncated = False
    for address in addresses:
        packed = address.packed
        record = owner + struct.pack("!HHIH", A if len(packed) == 4 else AAAA, IN, ttl_s, len(packed)) + packed
        if len(body) + len(record) > room:
            truncated = True
            break
        body += record
        owner = _pointer(here)
        count += 1
    return _answer(query, NOERROR, True, bytes(body), count, truncated)


def _pointer(at: int) -> bytes:
    return struct.pack("!H", 0xC000 | at)


def _answer(query: Query, code: int, authoritative: bool, body: bytes, count: int, truncated: bool) -> bytes:
    flags = QR | query.flags & (OPCODE | RD | CD) | code & 15
    flags |= (AA | RA if authoritative else 0) | (TC if truncated else 0)
    wire = query.question.wire if query.question else b""
    head = HEADER.pack(query.id, flags, 1 if wire else 0, count, 0, 1 if query.edns else 0)
    return head + wire + body + _echo(query, code)


def _echo(query: Query, code: int = NOERROR) -> bytes:
    """Our OPT record, where the client sent one."""
    if query.edns is None:
        return b""
    flags = (code >> 4) << 24 | (DO if query.edns.dnssec_ok else 0)
    return b"\0" + FIXED.pack(OPT, max(MIN_UDP_BYTES, query.edns.payload_bytes), flags, 0)


def relay(query: Query, response: Response, limit: int) -> bytes:
    """A server's answer as this client may have it: under its id, not authoritative, with EDNS as it asked, within `limit`."""
    flags = response.flags & ~(AA | RD) | query.flags & RD | RA
    message = response.message
    _, _, questions, answers, authorities, extras = HEADER.unpack_from(message)
    options = [record for record in response.rest[authorities:] if record.type == OPT]  # elsewhere it means nothing
    high = options[0].ttl >> 24 << 4 if options else 0
    if options:  # its OPT is between it and us; where it is not last, all that is additional goes
        cut = 1 if options == [response.rest[-1]] else extras
        message, extras = message[: response.rest[-cut].start], extras - cut
    echo = _echo(query, high)
    if len(message) + len(echo) > limit or response.truncated:
        return _shorten(query, response, flags, limit)
    head = HEADER.pack(query.id, flags, questions, answers, authorities, extras + (1 if echo else 0))
    return head + message[HEADER_BYTES:] + echo


def _shorten(query: Query, response: Response, flags: int, limit: int) -> bytes:
    """As many answers as have room, and word of the rest."""
    echo = _echo(query)
    room = limit - len(echo)
    kept = [record for record in response.answers if record.end <= room]
    wire = HEADER.unpack_from(response.message)[2]
    end = kept[-1].end if kept else HEADER_BYTES + (len(query.question.wire) if query.question and wire else 0)
    head = HEADER.pack(query.id, flags | TC, wire, len(kept), 0, 1 if echo else 0)
    return head + response.message[HEADER_BYTES:end] + echo
