"""DNS messages: read as another library writes them, written as it reads them, and never an exception whatever comes."""

import struct
from ipaddress import ip_address
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.dns_message import (
    AAAA,
    BADVERS,
    FORMERR,
    NOERROR,
    NOTIMP,
    SERVFAIL,
    A,
    DNSError,
    after_name,
    encode_name,
    read_name,
)
from ztunnel.dns_query import Query, answer, read_query, refuse, relay
from ztunnel.dns_response import Wishes, addresses_in, ask, question_for, read_response

pytestmark = pytest.mark.unit

V4 = [ip_address(f"10.{high}.{low}.1") for high in range(2) for low in range(128)]
_label = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
_names = st.lists(_label, min_size=1, max_size=8).map(".".join)


def asked(name: str = "web.shop.svc.cluster.local", kind: str = "A", **options: Any) -> Query:
    query = read_query(dns.message.make_query(name, kind, **options).to_wire())
    assert query is not None and query.question is not None
    return query


def test_a_question_is_read() -> None:
    message = dns.message.make_query("Web.Shop.", "AAAA", use_edns=0, payload=1400, want_dnssec=True, id=77)
    message.flags |= dns.flags.CD
    query = read_query(message.to_wire())
    assert query is not None and query.question is not None and query.edns is not None
    assert (query.id, query.question.name, query.question.type, query.refusal) == (77, "web.shop", AAAA, NOERROR)
    assert query.edns.payload_bytes == 1400 and query.wishes == Wishes(True, True, True) and query.udp_limit == 1400
    assert asked(use_edns=0, payload=100).udp_limit == 512 and asked(use_edns=False).udp_limit == 512
    assert asked(use_edns=0).wishes == Wishes(True, False, False) and asked(use_edns=False).wishes == Wishes(
        False, False, False
    )


@pytest.mark.parametrize("name", ["a\\.b.example", "sp\\032ace", "\\000", "."])
def test_names_that_no_mesh_has_are_empty(name: str) -> None:
    assert asked(name).question.name == ""  # type: ignore[union-attr]


def test_what_is_no_question_is_refused_by_its_code() -> None:
    update = dns.message.make_query("a.", "A")
    update.set_opcode(dns.opcode.NOTIFY)
    two = bytearray(dns.message.make_query("a.", "A", use_edns=False).to_wire())
    two[5] = 2
    old = dns.message.make_query("a.", "A", use_edns=1)
    loop = struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + b"\xc0\x0c" + struct.pack("!HH", 1, 1)
    for wire, code in [
        (update.to_wire(), NOTIMP),
        (bytes(two), FORMERR),
        (old.to_wire(), BADVERS),
        (loop, FORMERR),
        (struct.pack("!6H", 0, 0x100, 1, 0, 0, 0) + b"\1a\xc0\0" + struct.pack("!HH", 1, 1), FORMERR),
        (dns.message.make_query("a.", "A").to_wire()[:-5], FORMERR),
    ]:
        query = read_query(wire)
        assert query is not None and query.refusal == code
        refused = dns.message.from_wire(refuse(query, query.refusal))
        assert refused.rcode() == code and refused.id == query.id and not refused.answer
        assert not refused.flags & (dns.flags.RA | dns.flags.AA) and bool(refused.question) == (code in (NOTIMP, BADVERS))
    assert read_query(b"\0" * 11) is None
    response = dns.message.make_response(dns.message.make_query("a.", "A"))
    assert read_query(response.to_wire()) is None, "who answers answers may do so for ever"


def test_a_question_of_another_kind_need_not_be_readable() -> None:
    query = read_query(struct.pack("!6H", 5, 0x2800, 1, 0, 0, 0) + b"\x40")
    assert query is not None and (query.id, query.question, query.refusal) == (5, None, NOTIMP)
    assert len(refuse(query, query.refusal)) == 12


def test_two_opt_records_are_one_too_many() -> None:
    wire = bytearray(dns.message.make_query("a.", "A", use_edns=0).to_wire())
    wire[11] = 2
    query = read_query(bytes(wire + wire[-11:]))
    assert query is not None and query.question is not None and (query.refusal, query.edns) == (FORMERR, None)


@pytest.mark.parametrize("kind", [0x40, 0x7F, 0x80, 0xBF])
def test_labels_of_unknown_kinds_are_read_by_nobody(kind: int) -> None:
    for read in (read_name, after_name):
        with pytest.raises(DNSError, match="unknown kind"):
            read(bytes((kind,)) + bytes(200), 0)


def test_a_compressed_name_is_read_wherever_it_points() -> None:
    far = bytes(0x2101) + b"\3Web\0" + b"\1a\xe1\x01" + b"\1b\xe1\x06" + b"tail"
    assert read_name(far, 0x2101) == ([b"web"], 0x2106)
    assert read_name(far, 0x2106) == ([b"a", b"web"], 0x210A)
    assert read_name(far, 0x210A) == ([b"b", b"a", b"web"], 0x210E) and after_name(far, 0x210A) == 0x210E
    assert read_name(b"\0\xc0\0", 1) == ([], 3) and read_name(b"\0", 0) == ([], 1)
    for loop, at in ((b"\xc0\0", 0), (b"\1a\xc0\0", 0), (b"\1a\xc0\2", 0), (b"\xc0\2\0", 0), (b"\0\0\xc0\2\xc0\2", 4)):
        with pytest.raises(DNSError, match="does not point back"):
            read_name(loop, at)


def test_the_longest_name_is_read_and_no_longer_one() -> None:
    for labels, size in ((127, 1), (5, 50)):
        longest = bytes((size,)) + b"x" * size
        wire = longest * (labels - 1) + (longest if size == 1 else b"\x31" + b"x" * 49) + b"\0"
        assert len(wire) <= 255 and len(read_name(wire, 0)[0]) == labels
    for wire in (b"\1x" * 128 + b"\0", (b"\x32" + b"x" * 50) * 5 + b"\0", b"\5four"):
        with pytest.raises(DNSError, match="too long"):
            read_name(wire, 0)


def test_a_question_that_is_cut_short_is_refused_wherever_it_is() -> None:
    whole = dns.message.make_query("a.b.", "A", use_edns=False).to_wire()
    for end in range(12, len(whole)):
        query = read_query(whole[:end])
        assert query is not None and query.refusal == FORMERR
    assert asked("a.b.", use_edns=False).refusal == NOERROR


def test_types_are_counted_by_their_names() -> None:
    known = {kind: question_for("a", kind).type_name for kind in range(65_536)}
    named = {kind: name for kind, name in known.items() if name != "other"}
    assert len(named) == 17 and named == {kind: dns.rdatatype.to_text(dns.rdatatype.RdataType.make(kind)) for kind in named}


@pytest.mark.parametrize("name", ["a." * 127 + "a", "x" * 64, "a..b", "\u00e4.example"])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with pytest.raises(DNSError):
        question_for(name, A)
    assert len(question_for("a." * 126 + "a", A).wire) == 255 + 4


@pytest.mark.parametrize("asked_as", ["web.shop.", "Web.SHOP."])
def test_an_answer_keeps_the_question_and_gives_lower_case_names(asked_as: str) -> None:
    query = asked(asked_as, use_edns=0, payload=1232)
    got = dns.message.from_wire(answer(query, "web.shop", "", [ip_address("10.0.0.1"), ip_address("fd00::1")], 30, 512))
    assert got.question[0].name.to_text() == asked_as and got.id == query.id
    assert [one.to_text() for one in got.answer] == ["web.shop. 30 IN A 10.0.0.1", "web.shop. 30 IN AAAA fd00::1"]
    assert all(one.name.to_text() == "web.shop." for one in got.answer)
    assert got.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA and got.payload == 1232


@pytest.mark.parametrize("asked_as", ["web.shop.cluster.local.", "web.SHOP.cluster.local."])
def test_an_alias_comes_before_its_addresses(asked_as: str) -> None:
    wire = answer(asked(asked_as), "web.shop.cluster.local", "web.shop", V4[:2], 30, 512)
    got = dns.message.from_wire(wire)
    assert [one.to_text() for one in got.answer] == [
        "web.shop.cluster.local. 30 IN CNAME web.shop.",
        "web.shop. 30 IN A 10.0.0.1\nweb.shop. 30 IN A 10.0.1.1",
    ]


def test_large_response() -> None:
    """256 addresses go whole over TCP; 74 have room in 1232 bytes, and the rest is announced."""
    query = asked("large.com", use_edns=0, payload=1232)
    whole = dns.message.from_wire(answer(query, "large.com", "", V4, 30, 65535))
    assert len(whole.answer[0]) == 256 and not whole.flags & dns.flags.TC
    wire = answer(query, "large.com", "", V4, 30, query.udp_limit)
    cut = dns.message.from_wire(wire)
    assert len(cut.answer[0]) == 74 and cut.flags & dns.flags.TC and len(wire) <= 1232


def test_how_many_records_a_question_may_bring() -> None:
    question = question_for("a", A)
    for count, refusal in ((16, NOERROR), (17, FORMERR)):
        for place in range(3):
            counts = [count if one == place else 0 for one in range(3)]
            wire = struct.pack("!6H", 1, 0x100, 1, *counts) + question.wire + record("b", A, bytes(4)) * count
            query = read_query(wire)
            assert query is not None and query.refusal == refusal
    opt = b"\0" + struct.pack("!HHIH", 41, 1400, 0x8000, 0)
    query = read_query(struct.pack("!6H", 1, 0x100, 1, 1, 1, 1) + question.wire + record("b", A, bytes(4)) * 2 + opt)
    assert query is not None and query.edns == (1400, 0, True)
    query = read_query(
        struct.pack("!6H", 1, 0x100, 1, 0, 0, 1) + question.wire + b"\0" + struct.pack("!HHIH", 41, 1400, 1 << 16, 0)
    )
    assert query is not None and (query.refusal, query.edns and query.edns.version) == (BADVERS, 1)


def test_no_answer_is_longer_than_a_datagram_can_be() -> None:
    """Whatever the client says that it takes: the kernel would refuse it, and the client wait in vain."""
    assert asked("large.com", use_edns=0, payload=65535).udp_limit == 65507


def test_a_long_alias_that_has_no_room_is_announced() -> None:
    name = ".".join(["x" * 60] * 4)
    query = asked(name.upper(), use_edns=False)
    got = dns.message.from_wire(answer(query, name, name[61:], V4, 30, 512))
    assert got.flags & dns.flags.TC and not got.answer


def upstream(query: Query, *records: str, code: int = NOERROR, edns: bool = True) -> bytes:
    """What a recursive server would say."""
    assert query.question is not None
    message = dns.message.from_wire(ask(4711, query.question, 1232, Wishes(edns=edns)))
    response = dns.message.make_response(message, recursion_available=True)
    response.flags |= dns.flags.AA
    response.set_rcode(code)  # type: ignore[arg-type]
    response.answer = [dns.rrset.from_text(*record.split(maxsplit=4)) for record in records]  # type: ignore[arg-type]
    return response.to_wire(max_size=65535)


@pytest.mark.parametrize("edns", [True, False])
@pytest.mark.parametrize("client_edns", [True, False])
def test_a_servers_answer_reaches_the_client_under_its_own_id(edns: bool, client_edns: bool) -> None:
    query = asked("www.example", use_edns=0 if client_edns else False, payload=4096, id=9)
    assert query.question is not None
    records = ("www.example. 7 IN CNAME x.example.", "x.example. 7 IN A 192.0.2.1")
    response = read_response(upstream(query, *records, edns=edns), 4711, query.question)
    got = dns.message.from_wire(relay(query, response, 512))
    assert [one.to_text() for one in got.answer] == list(records)
    assert got.id == 9 and got.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert got.edns == (0 if client_edns else -1)
    assert [packed for packed in addresses_in(response, query.question)[0]] == [ip_address("192.0.2.1").packed]


def test_codes_are_passed_on_also_those_that_edns_extends() -> None:
    query = asked("www.example", use_edns=0)
    assert query.question is not None
    for code in (NOERROR, SERVFAIL, 3, 16, 23):
        response = read_response(upstream(query, code=code), 4711, query.question)
        assert dns.message.from_wire(relay(query, response, 512)).rcode() == code


def test_a_long_answer_is_cut_at_a_record_and_says_so() -> None:
    query = asked("www.example", use_edns=False)
    assert query.question is not None
    records = [f"www.example. 7 IN A 192.0.2.{number}" for number in range(1, 100)]
    response = read_response(upstream(query, *records), 4711, query.question)
    wire = relay(query, response, 512)
    got = dns.message.from_wire(wire)
    assert got.flags & dns.flags.TC and len(wire) <= 512 and 25 < len(got.answer[0]) < 40
    assert len(dns.message.from_wire(relay(query, response, 65535)).answer[0]) == 99


def test_an_opt_record_in_an_odd_place_takes_the_additional_ones_with_it() -> None:
    query = asked("www.example", use_edns=0)
    assert query.question is not None
    plain = bytearray(upstream(query, "www.example. 7 IN A 192.0.2.1", edns=False))
    opt = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
    extra = b"\0" + struct.pack("!HHIH", A, 1, 5, 4) + b"\1\2\3\4"
    plain[11] = 2
    got = dns.message.from_wire(relay(query, read_response(bytes(plain) + opt + extra, 4711, query.question), 512))
    assert got.edns == 0 and not got.additional and len(got.answer) == 1


@pytest.mark.parametrize("client_edns", [True, False])
def test_an_opt_record_among_the_authorities_is_none_of_the_servers_options(client_edns: bool) -> None:
    query = asked("www.example", use_edns=0 if client_edns else False)
    assert query.question is not None
    wire = (
        bytearray(upstream(query, "www.example. 7 IN A 192.0.2.1", edns=False)) + b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
    )
    wire[9] = 1
    relayed = relay(query, read_response(bytes(wire), 4711, query.question), 512)
    assert struct.unpack_from("!4H", relayed, 4) == (1, 1, 1, int(client_edns))


@given(_names, st.sampled_from([A, AAAA]))
def test_what_we_ask_is_what_others_read(name: str, kind: int) -> None:
    try:
        question = question_for(name, kind)
    except DNSError:
        assert len(name) > 250
        return
    message = dns.message.from_wire(ask(5, question, 1232, Wishes()))
    assert (message.flags, message.edns, message.ednsflags) == (dns.flags.RD, 0, 0)
    assert message.question[0].name == dns.name.from_text(name) and message.question[0].rdtype == kind
    assert question.name == name and encode_name(name + ".") == encode_name(name)


def _mutations() -> st.SearchStrategy[bytes]:
    """Good messages with some bytes changed, cut, or repeated: these get further in than noise does."""
    query = dns.message.make_query("web.shop.svc.cluster.local", "A", use_edns=0, id=1)
    response = dns.message.make_response(query)
    response.answer = [
        dns.rrset.from_text("web.shop.svc.cluster.local.", 5, "IN", "CNAME", "x.shop."),
        dns.rrset.from_text("x.shop.", 5, "IN", "A", "1.2.3.4", "1.2.3.5"),
    ]

    def change(wire: bytes, edits: list[tuple[int, int]], end: int) -> bytes:
        changed = bytearray(wire)
        for place, value in edits:
            changed[place % len(changed)] = value
        return bytes(changed[:end])

    edits = st.lists(st.tuples(st.integers(0, 120), st.one_of(st.integers(0, 255), st.just(0xC0))), max_size=6)
    return st.builds(change, st.sampled_from([query.to_wire(), response.to_wire()]), edits, st.integers(0, 200))


@given(st.one_of(st.binary(max_size=300), _mutations()))
def test_whatever_a_client_sends_there_is_one_answer_or_none(wire: bytes) -> None:
    query = read_query(wire)
    if query is None:
        assert len(wire) < 12 or wire[2] & 0x80
        return
    if query.refusal:
        assert refuse(query, query.refusal)[:2] == wire[:2]
    else:
        assert query.question is not None
        name = query.question.name
        made = answer(query, name, "", V4, 30, query.udp_limit) if name else refuse(query, SERVFAIL)
        assert made[:2] == wire[:2] and len(made) <= query.udp_limit and made[2] & 0x80
        assert dns.message.from_wire(made).question[0].rdtype == query.question.type


@given(st.one_of(st.binary(max_size=300), _mutations()))
def test_whatever_a_server_sends_is_understood_or_refused(wire: bytes) -> None:
    query = asked()
    assert query.question is not None
    try:
        response = read_response(wire, 1, query.question)
        relayed = relay(query, response, 512)
        assert len(relayed) <= 512 and relayed[:2] == query.id.to_bytes(2, "big")
        addresses_in(response, query.question)
    except DNSError:
        pass


def test_only_the_answer_to_what_was_asked_is_one() -> None:
    question, other = question_for("a.example", A), question_for("b.example", A)
    for head, asked_for in [
        ((2, 0x8180, 1, 0, 0, 0), question),  # under another id
        ((1, 0x0180, 1, 0, 0, 0), question),  # a question
        ((1, 0x8980, 1, 0, 0, 0), question),  # of another kind
        ((1, 0x8180, 1, 0, 0, 0), other),
        ((1, 0x8180, 1, 0, 0, 0), question_for("a.example", AAAA)),
        ((1, 0x8180, 2, 0, 0, 0), question),
        ((1, 0x8182, 2, 0, 0, 0), question),
        ((1, 0x8180, 0, 0, 0, 0), question._replace(wire=b"")),
    ]:
        with pytest.raises(DNSError):
            read_response(struct.pack("!6H", *head) + asked_for.wire, 1, question)
    assert read_response(struct.pack("!6H", 1, 0x8181, 0, 0, 0, 0), 1, question).code == FORMERR, "who could not read it"
    upper = struct.pack("!6H", 1, 0x8180, 1, 0, 0, 0) + question_for("A.Example", A).wire
    assert read_response(upper, 1, question).answers == ()


@pytest.mark.parametrize("edns", [True, False])
@pytest.mark.parametrize("dnssec_ok", [True, False])
@pytest.mark.parametrize("checking_disabled", [True, False])
def test_a_server_is_asked_as_the_client_wishes(edns: bool, dnssec_ok: bool, checking_disabled: bool) -> None:
    asked_for = dns.message.from_wire(ask(7, question_for("a.example", A), 1232, Wishes(edns, dnssec_ok, checking_disabled)))
    assert asked_for.id == 7 and asked_for.flags == dns.flags.RD | (dns.flags.CD if checking_disabled else 0)
    assert (asked_for.edns, asked_for.payload) == ((0, 1232) if edns else (-1, 0))
    assert asked_for.ednsflags == (dns.flags.DO if edns and dnssec_ok else 0)


def test_all_records_of_an_answer_are_read_and_no_more_than_a_bound() -> None:
    question = question_for("a.example", A)
    four = [record("a.example", A, bytes((number,) * 4)) for number in range(7)]
    wire = struct.pack("!6H", 1, 0x8180, 1, 4, 2, 1) + question.wire + b"".join(four)
    response = read_response(wire, 1, question)
    assert (len(response.answers), len(response.rest)) == (4, 3) and response.rest[-1].end == len(wire)
    for counts, words in (((2000, 1000, 1096), "cut short"), ((2000, 1000, 1097), "too many records")):
        with pytest.raises(DNSError, match=words):
            read_response(struct.pack("!6H", 1, 0x8180, 1, *counts) + question.wire, 1, question)


def record(owner: str, kind: int, data: bytes, ttl_s: int = 60, klass: int = 1) -> bytes:
    return encode_name(owner) + struct.pack("!HHIH", kind, klass, ttl_s, len(data)) + data


def found_in(question_type: int, *records: bytes) -> tuple[list[bytes], int]:
    question = question_for("a0", question_type)
    wire = struct.pack("!6H", 1, 0x8180, 1, len(records), 0, 0) + question.wire + b"".join(records)
    return addresses_in(read_response(wire, 1, question), question)


def test_addresses_are_those_of_the_name_that_was_asked_for_through_its_aliases() -> None:
    four, six = b"\1\2\3\4", bytes(16)
    assert found_in(A, record("a0", A, four), record("A0", A, b"\5\6\7\x08", 50)) == ([four, b"\5\6\7\x08"], 50)
    assert found_in(AAAA, record("a0", A, four), record("a0", AAAA, six), record("a0", AAAA, six[:15])) == ([six], 60)
    foreign = (record("b", A, four), record("a0", A, four, klass=3), record("a0", A, four * 2), record("a0", 16, four))
    assert found_in(A, *foreign)[0] == []
    aliases = [record(f"a{number}", 5, encode_name(f"a{number + 1}"), 100 - number) for number in range(17)]
    assert found_in(A, *reversed(aliases[:16]), record("a16", A, four)) == ([four], 60)
    assert found_in(A, record("a16", A, four, 90), *aliases[:16]) == ([four], 85), "as short as the shortest"
    assert found_in(A, *aliases, record("a17", A, four))[0] == [], "an alias too many"
    assert found_in(A, record("a0", 5, encode_name("a0")), record("a0", A, four))[0] == [four]
    assert found_in(A, record("a0", A, four, 1 << 31)) == ([four], 0)
    assert found_in(A, record("a0", A, four, (1 << 31) - 1)) == ([four], (1 << 31) - 1)
    many = [record("b", A, four)] * 255
    assert (
        found_in(A, *many, record("a0", A, four))[0] == [four] and found_in(A, *many, many[0], record("a0", A, four))[0] == []
    )


def test_hostile_names_cost_little() -> None:
    """4,000 records whose names all point back through one another are skipped, not followed."""
    question = question_for("a", A)
    chain = b"".join(b"\1a" + struct.pack("!H", 0xC00C) + struct.pack("!HHIH", A, 1, 5, 0) for _ in range(4000))
    wire = struct.pack("!6H", 1, 0x8180, 1, 4000, 0, 0) + question.wire + chain
    response = read_response(wire, 1, question)
    assert len(response.answers) == 4000 and addresses_in(response, question)[0] == []
    with pytest.raises(DNSError):
        read_response(struct.pack("!6H", 1, 0x8180, 1, 5000, 0, 0) + question.wire + chain * 2, 1, question)


@pytest.mark.parametrize(
    ("wire", "answered"),
    [
        (
            "1234210000010000000000000b70726f64756374706167650000010001",
            "1234a10400010000000000000b70726f64756374706167650000010001",
        ),
        (
            "1234290000010000000000000b70726f64756374706167650000010001",
            "1234a90400010000000000000b70726f64756374706167650000010001",
        ),
        ("1234010000020000000000000b70726f64756374706167650000010001", "123481010000000000000000"),
        ("1234010000010000000000000b70726f6475637470616765", "123481010000000000000000"),
        ("123401000001000000000000c00c00010001", "123481010000000000000000"),
        ("123401000001000000000000", "123481010000000000000000"),
        ("1234818000010000000000000b70726f64756374706167650000010001", None),
        ("1234010000010000", None),
    ],
    ids=["notify", "update", "two questions", "cut short", "a loop", "header only", "an answer", "half a header"],
)
def test_refusals_are_istios_bytes(wire: str, answered: str | None) -> None:
    """As recorded from Istio's ztunnel."""
    query = read_query(bytes.fromhex(wire))
    assert (query and refuse(query, query.refusal).hex()) == answered
