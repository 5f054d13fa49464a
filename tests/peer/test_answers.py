"""The same words to port 15008 of weft and of Istio: the same answers. A peer outside of the mesh speaks them by hand."""

from collections.abc import Iterator

import pytest
from hpack import Decoder

from tests.lab.papers import LabAuthority, attacker_in, data, papers, text
from tests.lab.puppet import Puppet
from tests.peer.cross import ECHO_PORT, CrossMesh
from ztunnel.fields import literal
from ztunnel.frames import CLIENT_OPENING, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, frame

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]

HBONE = 15008
SERVERS = ("server-a", "server-b")
ME = "spiffe://cluster.local/ns/shop/sa/client-a"
FOREIGN = "spiffe://other.domain/ns/shop/sa/client-a"
AUTHORITIES = {
    "the pod": ("{own}:7000", "200"),
    "the service by name": ("{name}.shop.svc.cluster.local:7000", "200"),
    "an upper-case name": ("{NAME}.SHOP.SVC.CLUSTER.LOCAL:7000", "503"),
    "an unknown name": ("nowhere.shop.svc.cluster.local:7000", "503"),
    "a port that the service has not": ("{name}.shop.svc.cluster.local:1", "503"),
    "a port where nobody listens": ("{own}:7999", "503"),
    "another pod": ("{other}:7000", "400"),
    "nobody's address": ("192.0.2.1:7000", "400"),
    "loopback": ("127.0.0.1:7000", "400"),
    "the other family": ("[{own6}]:7000", "400"),
    "outbound capture": ("{own}:15001", "503"),
    "plain-text capture": ("{own}:15006", "503"),
    "the tunnel itself": ("{own}:15008", "503"),
    "a port too large": ("{own}:70000", "400"),
    "no port": ("{own}", "400"),
    "a name without a port": ("{name}.shop.svc.cluster.local", "400"),
    "nothing": ("", "reset 1"),
    "spaces": ("a b:80", "reset 1"),
    "colons": ("::::", "reset 1"),
    "zeros before the port": ("{own}:0007000", "200"),
    "a sign before the port": ("{own}:-1", "400"),
    "no host": (":7000", "503"),
    "brackets around IPv4": ("[{own}]:7000", "503"),
    "IPv4 as IPv6": ("[::ffff:{own}]:7000", "400"),
    "a name in brackets": ("[x]:7000", "503"),
    "brackets that are not closed": ("[::1:7000", "reset 1"),
    "somebody at the pod": ("me@{own}:7000", "503"),
    "somebody at nothing": ("me@", "reset 1"),
    "a name with a percent": ("a%20b:7000", "reset 1"),
    "a name that a URI allows": ("a!$&'()*+,;=b:7000", "503"),
    "a name that none allows": ("a^b:7000", "reset 1"),
    "a path": ("{own}:7000/", "reset 1"),
    "a whole URL": ("http://{own}:7000", "reset 1"),
    "the service with a dot behind": ("{name}.shop.svc.cluster.local.:7000", "503"),
    "the service in short": ("{name}:7000", "503"),
    "port 0": ("{own}:0", "503"),
}


@pytest.fixture(scope="module")
def authority(cross: CrossMesh) -> LabAuthority:
    return LabAuthority(cross)


@pytest.fixture(scope="module")
def stranger(cross: CrossMesh) -> Iterator[Puppet]:
    puppet = attacker_in(cross, "outsider-a")
    yield puppet
    puppet.end()


def answer(cross: CrossMesh, stranger: Puppet, authority: LabAuthority, server: str, fields: bytes, flags: int = 0) -> str:
    """The status of the answer, or the code of the reset, to a request of these fields on a fresh connection."""
    number = stranger.do("open", cross.address(server), HBONE, papers(authority, ME), text(CLIENT_OPENING))
    words = frame(HEADERS, END_HEADERS | flags, 1, fields)
    kind, _, payload = stranger.do("ask", number, text(words), 1)[0]
    stranger.do("close", number)
    if kind == RST_STREAM:
        return f"reset {int.from_bytes(data(payload), 'big')}"
    assert kind == HEADERS
    return str(dict(Decoder().decode(data(payload)))[":status"])


def connect(authority: str) -> bytes:
    return literal(b":method", b"CONNECT") + literal(b":authority", authority.encode())


@pytest.mark.parametrize("case", AUTHORITIES)
def test_what_a_connect_is_answered(cross: CrossMesh, stranger: Puppet, authority: LabAuthority, case: str) -> None:
    pattern, expected = AUTHORITIES[case]
    found = {}
    for server in SERVERS:
        other = cross.address("client-b" if server == "server-a" else "client-a")
        names = {"own": cross.address(server), "own6": cross.address(server, 6), "name": server, "NAME": server.upper()}
        found[server] = answer(cross, stranger, authority, server, connect(pattern.format(other=other, **names)))
    assert found == dict.fromkeys(SERVERS, expected)


METHOD, HTTPS, ROOT = literal(b":method", b"CONNECT"), literal(b":scheme", b"https"), literal(b":path", b"/")
GET = literal(b":method", b"GET")
LONG = b"\x40\x01x\x7f\xa0\x1e" + b"y" * 3999 + b"\xbe" * 20
"""A field that enters the table, and 20 times the same."""
REQUESTS = {
    "GET": (GET + HTTPS + ROOT, "400"),
    "GET of nothing": (GET, "reset 1"),
    "GET of no scheme": (GET + ROOT, "reset 1"),
    "GET of an odd path": (GET + HTTPS + literal(b":path", b"x"), "reset 1"),
    "lower case": (literal(b":method", b"connect"), "reset 1"),
    "CONNECT with a path": (METHOD + HTTPS + ROOT, "reset 1"),
    "extended CONNECT": (METHOD + literal(b":protocol", b"websocket"), "reset 1"),
    "a field of one hop": (METHOD, "reset 1", literal(b"connection", b"close")),
    "an upgrade": (METHOD, "reset 1", literal(b"upgrade", b"x")),
    "te": (METHOD, "reset 1", literal(b"te", b"gzip")),
    "te of trailers": (METHOD, "200", literal(b"te", b"trailers")),
    "a length that is none": (METHOD, "reset 1", literal(b"content-length", b"x")),
    "80 KiB of fields": (METHOD, "431", LONG),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_what_other_requests_are_answered(cross: CrossMesh, stranger: Puppet, authority: LabAuthority, case: str) -> None:
    first, expected, *more = REQUESTS[case]
    found = {}
    for server in SERVERS:
        place = literal(b":authority", f"{cross.address(server)}:{ECHO_PORT}".encode())
        found[server] = answer(cross, stranger, authority, server, first + place + b"".join(more))
    assert found == dict.fromkeys(SERVERS, expected)


def test_a_connect_without_an_authority_is_a_bad_request(cross: CrossMesh, stranger: Puppet, authority: LabAuthority) -> None:
    for more in (b"", literal(b"host", b"10.1.0.1:7000")):
        found = {server: answer(cross, stranger, authority, server, METHOD + more) for server in SERVERS}
        assert found == dict.fromkeys(SERVERS, "400")


def test_a_connect_that_says_nothing_more_is_served(cross: CrossMesh, stranger: Puppet, authority: LabAuthority) -> None:
    found = {
        server: answer(cross, stranger, authority, server, connect(f"{cross.address(server)}:{ECHO_PORT}"), END_STREAM)
        for server in SERVERS
    }
    assert found == dict.fromkeys(SERVERS, "200")


@pytest.mark.parametrize("server", SERVERS)
def test_a_certificate_of_another_trust_domain_is_refused(
    cross: CrossMesh, stranger: Puppet, authority: LabAuthority, server: str
) -> None:
    words = text(CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, connect(f"{cross.address(server)}:{ECHO_PORT}")))
    good = stranger.do("speak", cross.address(server), HBONE, papers(authority, ME), words, 1, True, 1)
    assert good["said"], "with the right one it is heard"
    bad = stranger.do("speak", cross.address(server), HBONE, papers(authority, FOREIGN), words)
    assert bad["said"] == "" and bad["end"] == "alert SSLV3_ALERT_CERTIFICATE_UNKNOWN", bad
