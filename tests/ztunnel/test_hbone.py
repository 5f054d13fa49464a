"""CONNECT requests: recorded ones, the ones that are refused, and whatever else may come."""

from ipaddress import ip_address

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.workload import Locality, Workload
from ztunnel import hbone
from ztunnel.baggage import MAX_BYTES, baggage_of, parse_baggage
from ztunnel.fields import FieldReader, Fields, FieldWriter, list_bytes, literal
from ztunnel.frames import END_HEADERS, Code, ProtocolError
from ztunnel.hbone import (
    Authority,
    BadRequest,
    Malformed,
    forwarded_host,
    parse_authority,
    read_request,
    read_status,
    repeating_fields,
    response_fields,
    single_fields,
)

pytestmark = pytest.mark.unit

FIRST = bytes.fromhex(
    "4287bdab4e9c17b7ff418b0817134d2e15dcb8f01e0740858c734c398bcdeaf2172516a125b17a874960cd6c65b2a2a4a8faeaf217a87495158c855e"
    "a1d258074c7f5d5e42f59e45ea1d2580f517e905b3b98855ea1d258083a8f57d20b677310abf72d8831ea82c2f777f408794f6781d92164f9194f641"
    "fc840b89a6970aeddc69b79e7bf940884d83216b1d85a93fa8001664a3784f48d3ac91d6dc2b724a323efc617637640c72b4b36e36fb6fb8d882fb81"
    "765916003f"
)
SECOND = bytes.fromhex(
    "c2c1c07f009194f641fc840b89a6970aeddc69b79f73f97f00a7001675b1cac91a8c4ebc371b7e4742cba26c2f3230c83700159c7a47641b4465c180"
    "2100d6003f"
)
BAGGAGE = b"k8s.cluster.name=Kubernetes,k8s.namespace.name=amb,k8s.pod.name=one,service.name=canon,service.version=rev7"
ONE = Workload("u", "one", "amb", canonical_name="canon", canonical_revision="rev7", workload_name="one")


def connect(authority: bytes, *more: tuple[bytes, bytes]) -> Fields:
    return [(b":method", b"CONNECT"), (b":authority", authority), *more]


def test_recorded_requests_read_as_they_were_meant() -> None:
    reader = FieldReader(64 << 10)
    first = reader.begin(1, END_HEADERS, FIRST)
    second = reader.begin(3, END_HEADERS, SECOND)
    assert first is not None and second is not None
    assert [name for name, _ in first] == [b":method", b":authority", b"baggage", b"forwarded", b"traceparent"]
    assert dict(first)[b"baggage"] == BAGGAGE and dict(second)[b"baggage"] == BAGGAGE
    assert dict(second)[b"forwarded"] == b'for="10.244.1.5:45896"'
    assert read_request(first).authority == Authority(ip_address("10.244.1.6"), 8080)
    assert parse_baggage(BAGGAGE)["k8s.pod.name"] == "one"
    assert len(dict(first)[b"traceparent"]) == 55


def test_our_requests_say_the_same_in_the_same_order() -> None:
    trace = bytes.fromhex("3ea828d473c756e5dfac99b17b7d1bf456595965219617fd")
    writer, reader, theirs = FieldWriter(), FieldReader(64 << 10), FieldReader(64 << 10)
    recorded = theirs.begin(1, END_HEADERS, FIRST)
    for sid in (1, 3):  # the second time through the table
        block = writer.encode(repeating_fields("10.244.1.6:8080", baggage_of(ONE)))
        block += single_fields((ip_address("10.244.1.5"), 45888), "", trace)
        assert reader._read_plain(block) is not None, "no need of the library"
        assert reader.begin(sid, END_HEADERS, block) == recorded
    assert len(block) < 120


def test_parse_forwarded_host() -> None:
    block = single_fields((ip_address("fd00::1"), 1), "a.fz.svc.cluster.local", bytes(24))
    fields = FieldReader(64 << 10).begin(1, END_HEADERS, block)
    assert fields is not None and fields[0] == (b"forwarded", b'for="[fd00::1]:1";host=a.fz.svc.cluster.local')
    assert forwarded_host(fields[0][1]) == "a.fz.svc.cluster.local"
    assert forwarded_host(b'For="x";HOST="quoted.example"') == "quoted.example"
    assert forwarded_host(b"for=x") == forwarded_host("host=\u00e4".encode()) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "::::",
        "a b:80",
        "http://x/",
        "10.0.0.1:80/",
        "a:80?x",
        "a:80#x",
        "[::1:80",
        "::1]:80",
        "[::1][::1]:80",
        "]a[:80",
        "fd00::1:80",
        "x" * 600 + ":1",
        "a:80:80",
        "a%20b:80",
        "a@",
        "@",
        "a\\b:80",
        'a"b:80',
        "a<b:80",
        "a^b:80",
        "a`b:80",
        "a{b:80",
        "10.0.0.1:80\t",
        "\u00e4:80",
    ],
)
def test_what_is_no_authority_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        read_request(connect(text.encode()))


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "web.example", "10.0.0.1:65536", "web:", ":", "web:123456", "a:-1", "a:+1", "[::1]", "*"]
)
def test_what_has_no_port_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest):
        read_request(connect(text.encode()))


@pytest.mark.parametrize(
    "fields",
    [
        connect(b"a:1", (b":scheme", b"https")),
        connect(b"a:1", (b":path", b"/")),
        connect(b"a:1", (b":protocol", b"websocket")),
        connect(b"a:1", (b":authority", b"b:1")),
        connect(b"a:1", (b":status", b"200")),
        connect(b"a:1", (b"x", b"y"), (b":path", b"/")),
        connect(b"a:1", (b"Upper", b"y")),
        connect(b"a:1", (b"x", b"a\r\nb")),
        [(b":method", b"CONNECT"), (b"x", b"y"), (b":authority", b"a:1")],
        [(b":method", b"CONNECT"), (b":scheme", b"https")],
        [(b":method", b"CONNECT"), (b":authority", b"")],
        [],
        connect(b"a:1", (b"connection", b"close")),
        connect(b"a:1", (b"keep-alive", b"1")),
        connect(b"a:1", (b"proxy-connection", b"x")),
        connect(b"a:1", (b"transfer-encoding", b"chunked")),
        connect(b"a:1", (b"upgrade", b"x")),
        connect(b"a:1", (b"te", b"gzip")),
        connect(b"a:1", (b"content-length", b"x")),
        [(b":method", b"GET"), (b":authority", b"a:1")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a:1")],
        [(b":method", b"GET"), (b":scheme", b"1:"), (b":path", b"/")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"x")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"a b")],
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":protocol", b"websocket")],
        [(b":method", b"OPTIONS"), (b":scheme", b"https"), (b":path", b"*")],
        [(b":method", b"connect"), (b":authority", b"a:1")],
    ],
)
def test_what_is_no_connect_is_malformed(fields: Fields) -> None:
    with pytest.raises(Malformed):
        read_request(fields)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("[fd00:1::2]:65535", ip_address("fd00:1::2"), 65535),
        ("10.0.0.1:0", ip_address("10.0.0.1"), 0),
        ("web.example:80", "web.example", 80),
        ("a" * 509 + ":80", "a" * 509, 80),
        ("10.0.0.1:000080", ip_address("10.0.0.1"), 80),
        ("[::ffff:10.0.0.1]:80", ip_address("::ffff:10.0.0.1"), 80),
        ("[10.0.0.1]:80", "[10.0.0.1]", 80),
        ("me@10.0.0.1:80", "me@10.0.0.1", 80),
        ("me:secret@web.example:80", "me:secret@web.example", 80),
        ("me@:80", "me@", 80),
        (":80", "", 80),
        ("[]:80", "[]", 80),
        ("[abc]:80", "[abc]", 80),
        ("[::1]x:80", "[::1]x", 80),
        ("x[::1]:80", "x[::1]", 80),
        ("[fe80::1%25eth0]:80", "[fe80::1%25eth0]", 80),
        ("01.0.0.1:80", "01.0.0.1", 80),
        ("a!$&'()*+,;=._~-b:80", "a!$&'()*+,;=._~-b", 80),
    ],
)
def test_an_authority_is_an_address_or_a_name_and_a_port(text: str, host: object, port: int) -> None:
    assert parse_authority(text) == (host, port)


def test_who_is_refused_for_its_last_character_is_so_at_once() -> None:
    """Tried at every split of it, one of the longest that are looked at would hold the worker up for a millisecond."""
    assert not hbone._AUTHORITY.fullmatch("a" * 1_000_000 + '"')
    assert not hbone._AUTHORITY.fullmatch("a" * 1_000_000 + "[" + "a" * 1_000_000 + '"')


USUAL = connect(b"10.0.0.1:80", (b"baggage", b"a=b"), (b"forwarded", b"for=x;host=h"), (b"traceparent", b"00-0-0-00"))


@pytest.mark.parametrize("place", range(1, 5))
@pytest.mark.parametrize(
    "other",
    [
        (b":scheme", b"https"),
        (b":authority", b"b:1"),
        (b"forwarded", b"host=i"),
        (b"baggage", b"c=d"),
        (b"X", b"y"),
        (b"x", b"y"),
    ],
)
def test_five_fields_of_which_one_is_not_as_usual_are_read_like_any_others(place: int, other: tuple[bytes, bytes]) -> None:
    """Those of each of our own requests are read in a shorter way; with a sixth field they are not."""
    fields = [*USUAL[:place], other, *USUAL[place + 1 :]]
    read: list[object] = []
    for request in (fields, [*fields, (b"sixth", b"field")]):
        try:
            read.append(read_request(request))
        except (Malformed, BadRequest) as error:
            read.append((type(error), str(error)))
    assert read[0] == read[1]


def test_what_others_say_beside_it_is_passed_over_and_what_they_say_of_a_request_is_read() -> None:
    request = read_request(connect(b"10.0.0.1:80", (b"x-custom", b"y"), (b"forwarded", b"for=x;host=h")))
    assert (request.forwarded_host, request.baggage, request.network) == ("h", b"", None)
    for length in (MAX_BYTES, MAX_BYTES + 1):
        said = read_request(connect(b"10.0.0.1:80", (b"baggage", b"x" * length))).baggage
        assert len(said) == (length if length == MAX_BYTES else 0)


@pytest.mark.parametrize(
    "fields",
    [
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"a")],
        [(b":method", b"FOO"), (b":scheme", b"https"), (b":path", b"/")],
        [(b":method", b"CONNECT")],
        [(b":method", b"CONNECT"), (b"host", b"10.0.0.1:80")],
    ],
)
def test_other_methods_and_a_connect_to_nowhere_are_bad_requests(fields: Fields) -> None:
    with pytest.raises(BadRequest):
        read_request(fields)


def test_what_http_allows_beside_a_connect_is_passed_over() -> None:
    more = ((b"te", b"trailers"), (b"content-length", b"0"), (b"host", b"other:1"), (b"x", b"\xff\t"))
    assert read_request(connect(b"10.0.0.1:80", *more)) == read_request(connect(b"10.0.0.1:80"))


def test_of_words_that_nobody_can_look_up_nothing_is_kept() -> None:
    """Each tunnel remembers its last request, and a source may have hundreds: 64 KiB of words each would add up."""
    long = b"x" * 20_000
    said = read_request(
        connect(b"10.0.0.1:80", (b"baggage", long), (b"forwarded", b"host=" + long), (b"x-forwarded-network", long))
    )
    assert (said.baggage, said.forwarded_host, len(said.network or "")) == (b"", "", 253)
    host = "a" * 253
    assert forwarded_host(f"host={host}".encode()) == host


def test_baggage_leaves_out_what_is_empty_and_names_the_kind() -> None:
    workload = Workload(
        "u", "n", "ns", workload_type="deployment", workload_name="d", cluster_id="", locality=Locality("r", "z")
    )
    assert baggage_of(workload) == b"k8s.namespace.name=ns,k8s.deployment.name=d,cloud.region=r,cloud.availability_zone=z"
    assert b"k8s..name" not in baggage_of(Workload("u", "n", "ns", workload_type="", workload_name="d"))
    assert parse_baggage(b"a=1,b=,c=3,junk") == {"a": "1", "c": "3"}


def test_what_one_request_says_alone_is_read_of_each() -> None:
    repeated = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80"), (b"baggage", b"a=b")]
    trace = (b"traceparent", b"00-0-0-00")
    for value, host in ((b'for="10.0.0.9:1"', ""), (b'for="10.0.0.9:2";HOST="a.b"', "a.b"), (b'for="10.0.0.9:3"', "")):
        assert read_request([*repeated, (b"forwarded", value), trace]).forwarded_host == host
    for ends in ([(b"forwarded", b"for=x\r\n"), trace], [(b"forwarded", b"for=x"), (b"traceparent", b"\n")]):
        with pytest.raises(Malformed):
            read_request([*repeated, *ends])


def test_responses() -> None:
    assert response_fields(200, b"x=y") == ((b":status", b"200"), (b"baggage", b"x=y"))
    assert response_fields(401) == ((b":status", b"401"),)
    assert read_status([(b":status", b"503")]) == 503
    assert read_status([(b"x", b"404"), (b":status", b"503")]) == 503
    for none in ([], [(b":status", b"abc")], [(b":status", b"0200")], [(b":status", b"99")], [(b"x", b"200")]):
        assert read_status(none) == 0


@given(st.one_of(st.text(max_size=80), st.from_regex(r"[a@%]?\[?[0-9a-f:.%]{0,20}\]?:[+0-9]{0,6}", fullmatch=True)))
def test_any_authority_is_read_or_refused(text: str) -> None:
    try:
        authority = parse_authority(text)
    except (Malformed, BadRequest):
        return
    assert 0 <= authority.port <= 65535 and parse_authority(str(authority)) == authority


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=40)), max_size=6))
def test_any_fields_are_read_or_refused(fields: Fields) -> None:
    try:
        read_request(fields)
    except (Malformed, BadRequest):
        pass


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=400)), max_size=4))
def test_literals_are_read_back(fields: Fields) -> None:
    block = b"".join(literal(name, value) for name, value in fields)
    assert FieldReader(64 << 10).begin(1, END_HEADERS, block) == fields


@pytest.mark.parametrize("length", [126, 127, 128, 254, 255, 256, 16_383, 16_510, 16_511, 20_000])
def test_literals_of_any_length_are_read_back(length: int) -> None:
    field = (b"name", b"v" * length)
    block = literal(*field)
    assert Decoder(max_header_list_size=1 << 16).decode(block, raw=True) == [field]
    assert FieldReader(64 << 10).begin(1, END_HEADERS, block) == [field]


def parts() -> st.SearchStrategy[bytes]:
    strings = st.binary(max_size=150)
    indexed = st.integers(0x80, 0xFF).map(lambda first: bytes((first,)))
    known_name = st.builds(lambda index, b: bytes((index,)) + literal(b"", b)[2:], st.integers(0x40, 0x7F), strings)
    return st.one_of(
        indexed,
        known_name,
        *(
            st.builds(lambda a, b, first=first: first + literal(a, b)[1:], strings, strings)
            for first in (b"\0", b"\x10", b"\x40")
        ),
    )


@given(st.lists(parts(), max_size=5), st.binary(max_size=3))
def test_the_short_way_to_decode_says_what_the_library_says(blocks: list[bytes], rest: bytes) -> None:
    block = b"".join(blocks) + rest
    decoder = Decoder()
    decoder.decode(FIRST)
    ours = FieldReader(64 << 10)
    ours.begin(1, END_HEADERS, FIRST)
    try:
        expected: Fields | None = list(decoder.decode(block, raw=True))
    except HPACKError:
        expected = None
    try:
        assert ours.begin(3, END_HEADERS, block) == expected
        assert ours._decoder.header_table.dynamic_entries == decoder.header_table.dynamic_entries
    except ProtocolError:
        assert expected is None


def alike() -> st.SearchStrategy[bytes]:
    """Blocks that begin with one of a few rows of table entries, and go on as requests of weft's own kind do, or nearly."""
    begin = st.sampled_from([b"", b"\x88", b"\x82\xbf", b"\xbe", b"\xbf\xbe", b"\xff\0", b"\x40\1x\1y\xbe", b"\x80"])
    said = st.one_of(st.binary(max_size=8), st.integers(120, 130).map(bytes))
    forwarded = st.builds(literal, st.sampled_from([b"forwarded", b"forward"]), said)
    trace = st.builds(literal, st.just(b"traceparent"), st.sampled_from([bytes(55), bytes(54), bytes(56)]))
    own = st.one_of(st.just(b""), st.builds(bytes.__add__, forwarded, trace), forwarded, trace)
    return st.builds(lambda *parts: b"".join(parts), begin, own, st.sampled_from([b"", b"", b"\x88", b"\0"]))


@given(st.lists(alike(), max_size=8))
@example([b"\xbe", b"\xbe", b"\x40\1x\1y", b"\xbe"])
def test_blocks_that_begin_alike_say_what_the_library_says(blocks: list[bytes]) -> None:
    decoder, ours = Decoder(), FieldReader(64 << 10)
    decoder.decode(FIRST)
    ours.begin(1, END_HEADERS, FIRST)
    for block in blocks * 2:
        try:
            expected: Fields | None = list(decoder.decode(block, raw=True))
        except HPACKError:
            expected = None
        try:
            fields = ours.begin(3, END_HEADERS, block)
        except ProtocolError:
            assert expected is None
            return
        assert fields == expected and fields is not None
        assert ours.list_bytes == list_bytes(fields)


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([b":status", b"baggage", b"x"]), st.binary(max_size=5000)), min_size=1, max_size=3)
    )
)
def test_first_blocks_are_remembered_and_leave_the_table_as_if_they_were_not(blocks: list[Fields]) -> None:
    for _ in range(2):
        ours, encoder = FieldWriter(), Encoder()
        for fields in blocks:
            assert ours.encode(fields) == encoder.encode(fields, huffman=False)
            assert ours._encoder.header_table.dynamic_entries == encoder.header_table.dynamic_entries


@given(st.binary(max_size=200))
def test_any_block_is_decoded_or_ends_the_connection(block: bytes) -> None:
    try:
        FieldReader(1024).begin(1, END_HEADERS, block)
    except ProtocolError as error:
        assert error.code in (Code.COMPRESSION_ERROR, Code.ENHANCE_YOUR_CALM)


def test_build_forwarded() -> None:
    """As recorded: with the service where it is known."""
    source = (ip_address("10.77.0.2"), 55392)
    block = single_fields(source, "a.fz.svc.cluster.local", bytes(24))
    fields = Decoder().decode(block, raw=True)
    assert (b"forwarded", b'for="10.77.0.2:55392";host=a.fz.svc.cluster.local') in fields
    alone = Decoder().decode(single_fields(source, "", bytes(24)), raw=True)
    assert (b"forwarded", b'for="10.77.0.2:55392"') in alone
    for length in range(80, 120):  # with its other words 104 to 147 bytes: the length of 127 takes two
        said = Decoder().decode(single_fields(source, "a" * length, bytes(24)), raw=True)
        assert (b"forwarded", b'for="10.77.0.2:55392";host=%b' % (b"a" * length)) in said


def test_x_forwarded_network_header() -> None:
    """Last, and only where a network is to be told: an empty one is told too."""
    source = (ip_address("10.77.0.2"), 1)
    for network in ("net1", ""):
        fields = Decoder().decode(single_fields(source, "", bytes(24), network), raw=True)
        assert list(fields)[-1] == (b"x-forwarded-network", network.encode())
        request = read_request([(b":method", b"CONNECT"), (b":authority", b"1.2.3.4:5"), (b"baggage", b"a=b"), *fields])
        assert request.network == network and request.baggage == b"a=b"
    assert b"x-forwarded-network" not in dict(Decoder().decode(single_fields(source, "", bytes(24)), raw=True))
    assert read_request([(b":method", b"CONNECT"), (b":authority", b"1.2.3.4:5")]).network is None
    twice = [(b":method", b"CONNECT"), (b":authority", b"1.2.3.4:5"), (b"baggage", b"a=b"), (b"baggage", b"c=d")]
    assert read_request(twice).baggage == b"a=b,c=d"
