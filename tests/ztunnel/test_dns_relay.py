"""Answers to the byte: what has room in them, what of a nameserver's goes on to the client, and what each says of itself."""

import struct

import dns.flags
import dns.message
import pytest

from tests.ztunnel.test_dns_message import V4, asked, record, upstream
from ztunnel.dns_message import SERVFAIL, A, DNSError, encode_name
from ztunnel.dns_query import answer, read_query, refuse, relay
from ztunnel.dns_response import question_for, read_response

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("edns", [True, False])
@pytest.mark.parametrize("alias", ["web", ""])
def test_an_answer_holds_as_many_addresses_as_have_room(edns: bool, alias: str) -> None:
    query = asked("web.shop", use_edns=0 if edns else False)
    whole = answer(query, "web.shop", alias, V4[:9], 30, 65535)
    extra = len(V4[:9]) + bool(alias)
    for limit in range(100, len(whole) + 2):
        wire = answer(query, "web.shop", alias, V4[:9], 30, limit)
        count = struct.unpack_from("!H", wire, 6)[0]
        missing = max(0, -(-(len(whole) - limit) // 16))
        assert len(wire) <= limit and count == extra - missing and bool(wire[2] & 0x02) == (missing > 0)
        assert len(dns.message.from_wire(wire).answer) == (1 + bool(alias))
    assert alias or whole.count(b"\xc0\x0c") == 9, "names point at the question"
    for missing in (0, 1):
        bare = dns.message.from_wire(answer(query, "web.shop", alias, V4[:9], 30, len(whole) - 16 * 9 - missing))
        assert len(bare.answer) == (bool(alias) and not missing) and bare.flags & dns.flags.TC and bare.flags & dns.flags.AA


@pytest.mark.parametrize("client_edns", [True, False])
def test_a_servers_answer_is_whole_where_it_has_room_to_the_byte(client_edns: bool) -> None:
    query = asked("www.example", use_edns=0 if client_edns else False)
    assert query.question is not None
    records = [f"www.example. 7 IN A 192.0.2.{number}" for number in range(1, 9)]
    response = read_response(upstream(query, *records), 4711, query.question)
    size = len(relay(query, response, 65535))
    for limit in range(size - 40, size + 2):
        wire = relay(query, response, limit)
        missing = max(0, -(-(size - limit) // 16))
        assert len(wire) == size - 16 * missing and len(dns.message.from_wire(wire).answer[0]) == 8 - missing
        assert bool(wire[2] & 0x02) == (missing > 0)


def test_a_servers_refusal_without_the_question_is_passed_on_as_it_is() -> None:
    query = asked("www.example", use_edns=False)
    assert query.question is not None
    for flags in (0x8185, 0x8385):
        response = read_response(struct.pack("!6H", 4711, flags, 0, 0, 0, 0), 4711, query.question)
        relayed = relay(query, response, 512)
        assert relayed == struct.pack("!6H", query.id, flags, 0, 0, 0, 0)


@pytest.mark.parametrize("dnssec", [True, False])
def test_what_a_client_said_of_itself_is_said_back(dnssec: bool) -> None:
    message = dns.message.make_query("www.example", "A", use_edns=0, payload=700, want_dnssec=dnssec)
    message.flags = dns.flags.Flag(0)
    query = read_query(message.to_wire())
    assert query is not None and query.question is not None
    response = read_response(upstream(query, "www.example. 7 IN A 192.0.2.1"), 4711, query.question)
    for wire in (relay(query, response, 512), answer(query, "www.example", "", V4[:1], 30, 512), refuse(query, SERVFAIL)):
        got = dns.message.from_wire(wire)
        assert not got.flags & dns.flags.RD and got.payload == 700 and got.ednsflags == (dns.flags.DO if dnssec else 0)


@pytest.mark.parametrize("opt", [True, False])
def test_what_a_server_adds_to_its_answer_is_passed_on(opt: bool) -> None:
    query = asked("www.example", use_edns=False)
    assert query.question is not None
    here, there = record("www.example", A, bytes(4)), record("ns.example", A, bytes(4))
    added = here + record("example", 2, encode_name("ns.example")) + there
    wire = struct.pack("!6H", 4711, 0x8180, 1, 1, 1, 1 + opt) + query.question.wire + added
    options = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0) if opt else b""
    relayed = relay(query, read_response(wire + options, 4711, query.question), 512)
    assert relayed[2:] == struct.pack("!5H", 0x8180, 1, 1, 1, 1) + wire[12:]


def test_an_answer_without_room_for_any_record_is_the_question_and_says_so() -> None:
    query = asked("www.example", use_edns=False)
    assert query.question is not None
    response = read_response(upstream(query, "www.example. 7 IN TXT " + " ".join(["x" * 250] * 3)), 4711, query.question)
    got = dns.message.from_wire(relay(query, response, 512))
    assert got.flags & dns.flags.TC and not got.answer and got.question[0].name.to_text() == "www.example."
    refused = struct.pack("!6H", 4711, 0x8385, 0, 0, 0, 0)
    assert relay(query, read_response(refused, 4711, query.question), 11) == struct.pack("!6H", query.id, 0x8385, 0, 0, 0, 0)


def test_a_record_that_is_cut_short_is_none() -> None:
    question = question_for("a", A)
    whole = struct.pack("!6H", 1, 0x8180, 1, 1, 0, 0) + question.wire + record("a", A, bytes(4))
    assert len(read_response(whole, 1, question).answers) == 1
    for end in range(12, len(whole)):
        with pytest.raises(DNSError):
            read_response(whole[:end], 1, question)


def test_the_root_and_the_longest_label_are_names() -> None:
    assert encode_name("") == encode_name(".") == b"\0"
    assert encode_name("x" * 63) == b"\x3f" + b"x" * 63 + b"\0"
