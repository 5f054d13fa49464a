"""What other proxies and whoever reaches 15008 send: HTTP/2, HPACK, CONNECT requests, ClientHello, names in certificates.

And what they have us write: PROXY headers.
"""

from ipaddress import ip_address

import pytest
from hpack.exceptions import HPACKError

from mesh.identity import Identity, first_identity
from tests.fuzz.target import Cursor, Target
from tests.ztunnel.test_client_hello import USUAL
from tests.ztunnel.test_hbone import BAGGAGE, FIRST, SECOND
from tests.ztunnel.test_http2 import BLOCK, CONVERSATION, HOSTILE, REQUEST, End, Recorder
from ztunnel import frames
from ztunnel.baggage import Descriptions, parse_baggage
from ztunnel.client_hello import MAX_HELLO_BYTES, Hello, offered_protocols
from ztunnel.fields import FieldReader, Fields, list_bytes
from ztunnel.frames import CLIENT_OPENING, END_HEADERS, HEADERS, SERVER_OPENING, SERVER_STREAMS, ProtocolError, frame
from ztunnel.hbone import Authority, BadRequest, Malformed, _read, forwarded_host, parse_authority, read_request, read_status
from ztunnel.proxy_header import proxy_header
from ztunnel.tls import check_client, check_server
from ztunnel.verification import PeerRefused

PEER = Identity("cluster.local", "demo", "web")


def _outcome(end: End, parts: list[bytes]) -> tuple[str, bytes]:
    """How a connection took these bytes: its last words, or how it was refused."""
    refused = ""
    try:
        for part in parts:
            end.hears(part)
    except ProtocolError as error:
        refused = str(error)
    http = end.http
    assert len(http.streams) <= SERVER_STREAMS and len(http.out) < 1 << 20
    assert all(stream.receive_window >= 0 for stream in http.streams.values()) or refused
    assert all(stream in http.streams.values() for stream in http.blocked)
    return refused, bytes(http.out)


def _server(data: bytes) -> None:
    """However bytes are cut, they mean the same."""
    cursor = Cursor(data)
    cuts, appetite = cursor.byte(), 1 << 30 if cursor.byte() & 1 else 7
    said = cursor.rest()
    whole, parts = End(True, appetite), End(True, appetite)
    step = cuts + 1
    outcome = _outcome(whole, [CLIENT_OPENING, said])
    assert outcome == _outcome(parts, [CLIENT_OPENING, *(said[at : at + step] for at in range(0, len(said), step))])
    assert [one.data for one in whole.streams] == [one.data for one in parts.streams]


def _client(data: bytes) -> None:
    end = End(False)
    for _ in range(3):
        end.http.request(Recorder(), REQUEST, b"")
    _outcome(end, [SERVER_OPENING, data])


def _opening(data: bytes) -> None:
    _outcome(End(True), [data])


def _blocks(data: bytes) -> None:
    """Several blocks through one table. What is decoded without the library is what the library makes of it."""
    reader, model = FieldReader(1 << 14), FieldReader(1 << 14)
    cursor = Cursor(data)
    while cursor.left:
        block = cursor.take(cursor.byte() << 8 | cursor.byte())
        try:
            quick = reader._read_plain(block)
        except HPACKError:
            quick = None
        try:
            fields = reader.begin(1, END_HEADERS, block)
            assert fields is not None and list_bytes(fields) == reader.list_bytes <= 4 * reader.max_list_bytes
            if quick is not None:
                assert fields == [(bytes(name), bytes(value)) for name, value in model._decoder.decode(block, raw=True)]
            else:
                model.begin(1, END_HEADERS, block)
        except ProtocolError:
            return
        _request(fields)


def _request(fields: Fields) -> None:
    """What is remembered of a request is what it says when it is read alone."""
    read_status(fields)
    try:
        request = read_request(fields)
    except (Malformed, BadRequest) as error:
        with pytest.raises(type(error)):
            _read(fields)
        return
    assert request == _read(fields)
    assert 0 <= request.authority.port <= 65535 and request.forwarded_host.isascii()


def _requests(data: bytes) -> None:
    """Fields of a request: name and value, by their lengths."""
    cursor, fields = Cursor(data), []
    while cursor.left:
        kind = cursor.byte() & 7
        usual = (b":method", b":authority", b"baggage", b"forwarded", b"traceparent", b":scheme")
        name = usual[kind] if kind < len(usual) else cursor.take(cursor.byte() & 31)
        fields.append((name, cursor.take(cursor.byte())))
    _request(fields)


def _authority(data: bytes) -> None:
    """What was read is written and read back alike."""
    try:
        authority = parse_authority(data.decode("ascii", "replace"))
    except (Malformed, BadRequest):
        return
    assert isinstance(authority, Authority) and parse_authority(str(authority)) == authority


def _values(data: bytes) -> None:
    """Baggage and forwarded: found words are short, and hold nothing that ends a line."""
    assert all(name and value for name, value in parse_baggage(data).items() if name)
    described = Descriptions().read(PEER, data)
    assert described.identity == PEER and all(len(word) <= 253 for word in described[1:])
    host = forwarded_host(data)
    assert len(host) <= len(data) and host.isascii()


def _hello(data: bytes) -> None:
    """What comes in pieces is known when the whole is; no piece makes it known otherwise."""
    whole = offered_protocols(data)
    step = max(1, len(data) // 4)
    hello = Hello()
    for at in range(0, len(data), step):
        refused = hello.refusal(data[at : at + step])
        assert not refused or (whole and b"h2" not in whole and refused.isprintable())
        if hello.done or refused:
            break
    assert whole is None or sum(map(len, whole)) <= MAX_HELLO_BYTES


def _names(data: bytes) -> None:
    """The URI names of a certificate: who is accepted has exactly the name that it proved."""
    names = data.decode("latin-1").split("\n")
    first = first_identity(names)
    assert first is None or str(first) in names
    try:
        client = check_client(names, "cluster.local")
        assert str(client) in names and client.trust_domain == "cluster.local"
    except PeerRefused:
        pass
    try:
        check_server(names, frozenset({str(PEER)}))
        assert str(PEER) in names
    except PeerRefused:
        assert str(PEER) not in names


def _proxy_header(data: bytes) -> None:
    """What an application is told of a peer: whoever reads it by the protocol's text learns just that, and reads no further."""
    cursor = Cursor(data)
    ends = []
    for _ in range(2):
        size = 16 if cursor.byte() & 1 else 4
        ends.append((ip_address(cursor.take(size).ljust(size, b"\0")), cursor.byte() << 8))
    identity = first_identity([cursor.rest().decode("latin-1")]) or PEER
    header = proxy_header(ends[0], ends[1], identity)
    assert header[:13] == b"\r\n\r\n\0\r\nQUIT\n\x21"
    kind, length = header[13], int.from_bytes(header[14:16], "big")
    size = {0x11: 12, 0x21: 36, 0x01: 0}[kind]
    assert len(header) == 16 + length < 1024
    if size:
        wide = (size - 4) // 2
        said = [header[16 + wide * place : 16 + wide * (place + 1)] for place in range(2)]
        ports = [int.from_bytes(header[16 + 2 * wide + 2 * place :][:2], "big") for place in range(2)]
        assert [(ip_address(one), port) for one, port in zip(said, ports, strict=True)] == ends
    else:
        assert ends[0][0].version != ends[1][0].version
    assert header[16 + size :] == b"\xd0" + len(str(identity)).to_bytes(2, "big") + str(identity).encode()


_START = frame(HEADERS, END_HEADERS, 1, BLOCK)
_URI = str(PEER).encode()
TARGETS = (
    Target(
        "http2-server",
        _server,
        [b"\x05\x01" + CONVERSATION[len(CLIENT_OPENING) :], *(b"\xff\x01" + one[1][:2000] for one in HOSTILE)],
    ),
    Target("http2-client", _client, [frame(HEADERS, END_HEADERS, 1, b"\x88") + frame(0, 1, 1, b"pong"), frames.goaway(1, 0)]),
    Target("http2-opening", _opening, [CLIENT_OPENING, CONVERSATION, CLIENT_OPENING + _START]),
    Target("hpack", _blocks, [b"".join(len(one).to_bytes(2, "big") + one for one in (FIRST, SECOND, BLOCK))]),
    Target("request", _requests, [b"\x00\x07CONNECT\x01\x0b10.0.0.1:80\x03\x14for=1.1.1.1;host=a.b "]),
    Target("authority", _authority, [b"10.0.0.1:80", b"[fd00::1]:443", b"web.demo.svc.cluster.local:8080"], 600),
    Target("baggage-forwarded", _values, [BAGGAGE, b'for="10.244.1.5:45896";host=web.amb.svc.cluster.local']),
    Target("client-hello", _hello, [USUAL, USUAL[:5] + USUAL[5:200]], MAX_HELLO_BYTES + 100),
    Target(
        "proxy-header",
        _proxy_header,
        [b"\0\x0a\0\0\1\x50\0\x0a\0\0\2\x50" + _URI, b"\1" + bytes(16) + b"\1\0\x0a\0\0\2\x50"],
        1024,
    ),
    Target("certificate-names", _names, [_URI, b"https://x\n" + _URI, b"spiffe://other/ns/a/sa/b\n" + _URI]),
)
