"""DNS messages (RFC 1035, EDNS: RFC 6891) without I/O: as much as a forwarder and an authority for addresses must understand.

Names are read forwards only where they are skipped; where a compressed one is followed, every pointer must point further
back than the one before, so that no message can make us read in circles. What cannot be read raises DNSError, nothing else.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mesh.workload import Address

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16
A, CNAME, AAAA, OPT = 1, 5, 28, 41
IN = 1
HEADER_BYTES = 12
MIN_UDP_BYTES = 512
MAX_BYTES = 65535
_QR, _AA, _TC, _RD, _RA, _CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
_DO = 0x8000
_OPCODE = 0x7800
_MAX_NAME_BYTES = 255
_MAX_RECORDS = 4096
"""In one message; 64 KiB hold no more answers than that which are worth reading."""
_MAX_QUERY_RECORDS = 16
_MAX_READ = 256
"""Answers whose names are compared."""
_header = struct.Struct("!6H")
_fixed = struct.Struct("!HHIH")
_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 35: "NAPTR", 43: "DS"}
_TYPES |= {48: "DNSKEY", 52: "TLSA", 64: "SVCB", 65: "HTTPS", 255: "ANY", 257: "CAA"}
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
        return _text(_labels(self.wire, 0)[0])

    @property
    def type_name(self) -> str:
        """`A`; `other` for types that are rare, so that a metric's label has few values."""
        return _TYPES.get(self.type, "other")


class Wishes(NamedTuple):
    """How a client wants a server to be asked."""

    edns: bool = True
    dnssec_ok: bool = False
    checking_disabled: bool = False


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
        return max(MIN_UDP_BYTES, self.edns.payload_bytes) if self.edns else MIN_UDP_BYTES

    @property
    def wishes(self) -> Wishes:
        """What a server is told of this client."""
        return Wishes(self.edns is not None, self.edns is not None and self.edns.dnssec_ok, bool(self.flags & _CD))


class Record(NamedTuple):
    """One resource record of a message, by position."""

    start: int
    type: int
    klass: int
    ttl: int
    data: int
    """Where its data begins."""
    end: int


class Response(NamedTuple):
    """A server's answer: the message, and where its parts lie."""

    message: bytes
    flags: int
    answers: tuple[Record, ...]
    rest: tuple[Record, ...]
    """Authority and additional records, the OPT record among them."""

    @property
    def code(self) -> int:
        """The response code, without what EDNS adds to it."""
        return self.flags & 15

    @property
    def truncated(self) -> bool:
        """Whether more is to be had over TCP."""
        return bool(self.flags & _TC)


# --- names


def encode_name(name: str) -> bytes:
    """A dotted name as labels. Raises: DNSError when it is none."""
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


def _labels(message: bytes, at: int) -> tuple[list[bytes], int]:
    """The labels of a name that may be compressed, and where the name ends."""
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


def _after_name(message: bytes, at: int) -> int:
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


def _read_question(message: bytes) -> Question:
    labels, end = _labels(message, HEADER_BYTES)
    if end - HEADER_BYTES != sum(len(label) + 1 for label in labels) + 1 or end + 4 > len(message):
        raise DNSError("a question that is compressed or cut short")
    return Question(message[HEADER_BYTES : end + 4], *struct.unpack_from("!HH", message, end))


def _read_records(message: bytes, at: int, count: int) -> Iterator[Record]:
    for _ in range(count):
        start = at
        at = _after_name(message, at)
        if at + _fixed.size > len(message):
            raise DNSError("a record that is cut short")
        kind, klass, ttl, length = _fixed.unpack_from(message, at)
        data = at + _fixed.size
        at = data + length
        if at > len(message):
            raise DNSError("a record that is cut short")
        yield Record(start, kind, klass, ttl if ttl < 1 << 31 else 0, data, at)  # RFC 2181, section 8


# --- what clients ask


def read_query(message: bytes) -> Query | None:
    """Understand a client's message; None when it does not even hold what an answer must repeat."""
    if len(message) < HEADER_BYTES:
        return None
    number, flags, questions, answers, authorities, extras = _header.unpack_from(message)
    if flags & _QR:
        return Query(number, flags, None, refusal=FORMERR)
    if flags & _OPCODE:
        return Query(number, flags, None, refusal=NOTIMP)
    if questions != 1 or answers + authorities + extras > _MAX_QUERY_RECORDS:
        return Query(number, flags, None, refusal=FORMERR)
    try:
        question = _read_question(message)
        options = [
            EDNS(record.klass, record.ttl >> 16 & 255, bool(record.ttl & _DO))
            for record in _read_records(message, HEADER_BYTES + len(question.wire), answers + authorities + extras)
            if record.type == OPT
        ]
    except DNSError:
        return Query(number, flags, None, refusal=FORMERR)
    if len(options) > 1:
        return Query(number, flags, question, refusal=FORMERR)
    edns = options[0] if options else None
    return Query(number, flags, question, edns, BADVERS if edns and edns.version else NOERROR)


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
    flags = _QR | query.flags & (_OPCODE | _RD | _CD) | _RA | code & 15
    flags |= (_AA if authoritative else 0) | (_TC if truncated else 0)
    wire = query.question.wire if query.question else b""
    head = _header.pack(query.id, flags, 1 if wire else 0, count, 0, 1 if query.edns else 0)
    return head + wire + body + _echo(query, code)


def _echo(query: Query, code: int = NOERROR) -> bytes:
    """Our OPT record, where the client sent one."""
    if query.edns is None:
        return b""
    flags = (code >> 4) << 24 | (_DO if query.edns.dnssec_ok else 0)
    return b"\0" + _fixed.pack(OPT, max(MIN_UDP_BYTES, query.edns.payload_bytes), flags, 0)


# --- what servers are asked, and answer


def ask(number: int, question: Question, payload_bytes: int, wishes: Wishes) -> bytes:
    """A question to a recursive server, which may answer with `payload_bytes` where EDNS is wished for."""
    flags = _RD | (_CD if wishes.checking_disabled else 0)
    head = _header.pack(number, flags, 1, 0, 0, 1 if wishes.edns else 0)
    if not wishes.edns:
        return head + question.wire
    return head + question.wire + b"\0" + _fixed.pack(OPT, payload_bytes, _DO if wishes.dnssec_ok else 0, 0)


def question_for(name: str, kind: int) -> Question:
    """A question of our own. Raises: DNSError when the name is none."""
    return Question(encode_name(name) + struct.pack("!HH", kind, IN), kind, IN)


def read_response(message: bytes, number: int, question: Question) -> Response:
    """A server's answer to just this question. Raises: DNSError when it is another's, or cannot be read."""
    if len(message) < HEADER_BYTES:
        raise DNSError("cut short")
    got, flags, questions, answers, authorities, extras = _header.unpack_from(message)
    if got != number or not flags & _QR or flags & _OPCODE:
        raise DNSError("not the answer to this question")
    start = HEADER_BYTES
    if questions == 1:
        start += len(question.wire)
        if message[HEADER_BYTES:start].lower() != question.wire.lower():
            raise DNSError("an answer to another question")
    elif questions or not flags & 15:  # a server that could not read a question may leave it out
        raise DNSError("an answer without its question")
    if answers + authorities + extras > _MAX_RECORDS:
        raise DNSError("too many records")
    records = tuple(_read_records(message, start, answers + authorities + extras))
    return Response(message, flags, records[:answers], records[answers:])


def relay(query: Query, response: Response, limit: int) -> bytes:
    """A server's answer as this client may have it: under its id, not authoritative, with EDNS as it asked, within `limit`."""
    flags = response.flags & ~(_AA | _RD) | query.flags & _RD | _RA
    message = response.message
    _, _, questions, answers, authorities, extras = _header.unpack_from(message)
    options = [record for record in response.rest if record.type == OPT]
    high = options[0].ttl >> 24 << 4 if options else 0
    if options:  # its OPT is between it and us; where it is not last, all that is additional goes
        cut = 1 if options == [response.rest[-1]] else extras
        message, extras = message[: response.rest[len(response.rest) - cut].start if cut else None], extras - cut
    echo = _echo(query, high)
    if len(message) + len(echo) > limit or response.truncated:
        return _shorten(query, response, flags, limit)
    head = _header.pack(query.id, flags, questions, answers, authorities, extras + (1 if echo else 0))
    return head + message[HEADER_BYTES:] + echo


def _shorten(query: Query, response: Response, flags: int, limit: int) -> bytes:
    """As many answers as have room, and word of the rest."""
    echo = _echo(query)
    room = limit - len(echo)
    kept = [record for record in response.answers if record.end <= room]
    wire = _header.unpack_from(response.message)[2]
    end = kept[-1].end if kept else HEADER_BYTES + (len(query.question.wire) if query.question and wire else 0)
    head = _header.pack(query.id, flags | _TC, wire, len(kept), 0, 1 if echo else 0)
    return head + response.message[HEADER_BYTES:end] + echo


def addresses_in(response: Response, question: Question) -> tuple[list[bytes], int]:
    """The packed addresses that a response gives for its question, through its aliases, and for how long (seconds)."""
    message = response.message
    wanted, ttl_s = _labels(question.wire, 0)[0], 0x7FFFFFFF
    answers = [record for record in response.answers[:_MAX_READ] if record.klass == IN]
    owners = [(tuple(_labels(message, record.start)[0]), record) for record in answers]
    aliases = {owner: record for owner, record in owners if record.type == CNAME}
    name = tuple(wanted)
    for _ in range(16):
        alias = aliases.get(name)
        if alias is None:
            break
        ttl_s = min(ttl_s, alias.ttl)
        name = tuple(_labels(message, alias.data)[0])
    size = 4 if question.type == A else 16
    found = [
        record
        for owner, record in owners
        if owner == name and record.type == question.type and record.end - record.data == size
    ]
    return [message[record.data : record.end] for record in found], min([ttl_s, *(record.ttl for record in found)])
