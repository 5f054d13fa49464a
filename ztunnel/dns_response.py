"""What nameservers are asked, and what they answer."""

import struct
from typing import NamedTuple

from ztunnel.dns_message import (
    CD,
    CNAME,
    DO,
    FIXED,
    HEADER,
    HEADER_BYTES,
    IN,
    OPCODE,
    OPT,
    QR,
    RD,
    TC,
    A,
    DNSError,
    Question,
    Record,
    encode_name,
    read_name,
    read_records,
)

_MAX_RECORDS = 4096
"""In one message: 64 KiB hold no more answers than that which are worth reading."""
_MAX_READ = 256
"""Answers whose names are compared."""


class Wishes(NamedTuple):
    """How a client wants a server to be asked."""

    edns: bool = True
    dnssec_ok: bool = False
    checking_disabled: bool = False


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
        return bool(self.flags & TC)


def ask(number: int, question: Question, payload_bytes: int, wishes: Wishes) -> bytes:
    """A question to a recursive server, which may answer with `payload_bytes` where EDNS is wished for."""
    flags = RD | (CD if wishes.checking_disabled else 0)
    head = HEADER.pack(number, flags, 1, 0, 0, 1 if wishes.edns else 0)
    if not wishes.edns:
        return head + question.wire
    return head + question.wire + b"\0" + FIXED.pack(OPT, payload_bytes, DO if wishes.dnssec_ok else 0, 0)


def question_for(name: str, kind: int) -> Question:
    """A question of our own. Raises: DNSError when the name is none."""
    return Question(encode_name(name) + struct.pack("!HH", kind, IN), kind, IN)


def read_response(message: bytes, number: int, question: Question) -> Response:
    """A server's answer to just this question. Raises: DNSError when it is another's, or cannot be read."""
    if len(message) < HEADER_BYTES:
        raise DNSError("cut short")
    got, flags, questions, answers, authorities, extras = HEADER.unpack_from(message)
    if got != number or not flags & QR or flags & OPCODE:
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
    records = tuple(read_records(message, start, answers + authorities + extras))
    return Response(message, flags, records[:answers], records[answers:])


def addresses_in(response: Response, question: Question) -> tuple[list[bytes], int]:
    """The packed addresses that a response gives for its question, through its aliases, and for how long (seconds)."""
    message = response.message
    wanted, ttl_s = read_name(question.wire, 0)[0], 0x7FFFFFFF
    answers = [record for record in response.answers[:_MAX_READ] if record.klass == IN]
    owners = [(tuple(read_name(message, record.start)[0]), record) for record in answers]
    aliases = {owner: record for owner, record in owners if record.type == CNAME}
    name = tuple(wanted)
    for _ in range(16):
        alias = aliases.get(name)
        if alias is None:
            break
        ttl_s = min(ttl_s, alias.ttl)
        name = tuple(read_name(message, alias.data)[0])
    size = 4 if question.type == A else 16
    found = [
        record
        for owner, record in owners
        if owner == name and record.type == question.type and record.end - record.data == size
    ]
    return [message[record.data : record.end] for record in found], min([ttl_s, *(record.ttl for record in found)])
