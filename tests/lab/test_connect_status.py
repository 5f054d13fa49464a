"""What a peer with a valid certificate may ask of a pod's proxy, and the status of everything that it may not.

Source: the table "Status by request" of the recorded Istio ztunnel. All of it on one connection, which survives every answer.
"""

from collections.abc import Iterator

import pytest
from hpack import Decoder

from tests.lab.mesh import ECHO_PORT, NODES, Mesh, authentication, pod, service
from tests.lab.papers import LabAuthority, attacker_in, data, papers, text
from tests.lab.puppet import Puppet
from ztunnel.fields import literal
from ztunnel.frames import CLIENT_OPENING, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Code, frame, read_code

pytestmark = pytest.mark.lab

HBONE, DENIED_PORT = 15008, 7002
DENY = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: closed, namespace: shop}}
spec: {{action: DENY, selector: {{matchLabels: {{app: far}}}}, rules: [{{to: [{{operation: {{ports: ["{DENIED_PORT}"]}}}}]}}]}}
---
"""
TOPOLOGY = (
    NODES
    + pod("client", "a")
    + pod("attacker", "a", ", istio.io/dataplane-mode: none")
    + pod("far", "b")
    + pod("bank", "b")
    + service("far")
    + authentication("STRICT")
    + DENY
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(TOPOLOGY) as made:
        made.puppet("far").echo(ECHO_PORT)
        yield made


@pytest.fixture(scope="module")
def conversation(mesh: Mesh) -> Iterator["Conversation"]:
    attacker = attacker_in(mesh, "attacker")
    shown = papers(LabAuthority(mesh), "spiffe://cluster.local/ns/shop/sa/attacker")
    number = attacker.do("open", mesh.address("far"), HBONE, shown, text(CLIENT_OPENING))
    attacker.do("keep", number)
    yield Conversation(attacker, number)
    attacker.end()


class Conversation:
    """One connection on which every question is asked: no answer ends it."""

    def __init__(self, attacker: Puppet, number: int) -> None:
        self.number = number
        self._attacker = attacker
        self._decoder = Decoder()
        self._sid = -1

    def ask(self, block: bytes, flags: int = END_HEADERS) -> tuple[int, bytes]:
        """Status (or the code of RST_STREAM), and all frames of the answer, as types."""
        self._sid += 2
        answer = self._attacker.do("ask", self.number, text(frame(HEADERS, flags, self._sid, block)), self._sid)
        kind, _, payload = answer[0]
        if kind == RST_STREAM:
            return read_code(data(payload)), bytes([kind])
        status = int(dict(self._decoder.decode(data(payload)))[":status"])
        if status != 200:
            assert answer[0][1] == END_HEADERS | END_STREAM
            assert [one[0] for one in answer] == [HEADERS, RST_STREAM] and read_code(data(answer[1][2])) == Code.NO_ERROR
        return status, bytes(one[0] for one in answer)


def request(*fields: tuple[bytes, bytes]) -> bytes:
    return b"".join(literal(*field) for field in fields)


def connect(authority: str) -> bytes:
    return request((b":method", b"CONNECT"), (b":authority", authority.encode()))


SERVICE = "far.shop.svc.cluster.local"
TABLE: list[tuple[str, int, str]] = [
    (f"FAR:{ECHO_PORT}", 200, ""),
    (f"{SERVICE}:{ECHO_PORT}", 200, ""),
    ("FAR:9999", 503, "connection failed: Connection refused (os error 111)"),
    ("FAR:0", 503, "connection failed: "),
    ("FAR:15001", 503, "self call to FAR:15001"),
    ("FAR:15006", 503, "self call to FAR:15006"),
    ("FAR:15008", 503, "self call to FAR:15008"),
    (f"{SERVICE}:12345", 503, f"port 12345 of {SERVICE} has no target here"),
    (f"FAR.shop.svc.cluster.local:{ECHO_PORT}".replace("FAR", "Far"), 503, "unknown hostname Far.shop"),
    (f"nope.shop.svc.cluster.local:{ECHO_PORT}", 503, "unknown hostname nope.shop"),
    (f"BANK:{ECHO_PORT}", 400, "ip mismatch: FAR != BANK"),
    ("9.9.9.9:80", 400, "ip mismatch: FAR != 9.9.9.9"),
    (f"127.0.0.1:{ECHO_PORT}", 400, "ip mismatch: FAR != 127.0.0.1"),
    (f"VIP:{ECHO_PORT}", 400, "ip mismatch: FAR != VIP"),
    ("[fd00::1]:80", 400, "ip mismatch: FAR != fd00::1"),
    ("FAR", 400, "no port"),
    ("FAR:99999", 400, "no port"),
    (f"FAR:{DENIED_PORT}", 401, "shop/closed"),
    ("::::", 1, "malformed request: authority '::::'"),
    ("a b:80", 1, "malformed request: authority 'a b:80'"),
    ("http://x/", 1, "malformed request: authority 'http://x/'"),
    (f"[FAR]:{ECHO_PORT}", 503, "unknown hostname [FAR]"),
    (f"me@FAR:{ECHO_PORT}", 503, "unknown hostname me@FAR"),
    (f":{ECHO_PORT}", 503, "unknown hostname "),
    ("", 1, "malformed request: "),
]
BOMB = b"\x40\x01x\x7f\xa0\x1e" + b"y" * 3999 + b"\xbe" * 20
METHOD, HOST = (b":method", b"CONNECT"), (b":authority", b"FAR:7000")
ODD: dict[str, tuple[bytes, int, str]] = {
    "GET": (request((b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), HOST), 400, "method b'GET'"),
    "GET of nothing": (request((b":method", b"GET"), HOST), 1, "malformed request: method b'GET'"),
    "of one hop": (request(METHOD, HOST, (b"connection", b"close")), 1, "field b'connection'"),
    "scheme": (request(METHOD, (b":scheme", b"https"), HOST), 1, "no other pseudo field"),
    "path": (request(METHOD, (b":path", b"/"), HOST), 1, "no other pseudo field"),
    "protocol": (request(METHOD, (b":protocol", b"websocket"), HOST), 1, "no other pseudo field"),
    "no authority": (request(METHOD), 400, "CONNECT without an authority"),
    "late pseudo field": (request(METHOD, (b"x", b"y"), HOST), 1, "pseudo field b':authority'"),
    "upper-case field": (request(METHOD, HOST, (b"Forwarded", b"x")), 1, "field b'Forwarded'"),
    "a long list": (request(METHOD, HOST) + BOMB, 431, ""),
}


def filled(mesh: Mesh, pattern: str) -> str:
    vip = mesh.output("shop/client", "getent", "ahostsv4", "far").split()[0] if "VIP" in pattern else ""
    return pattern.replace("FAR", mesh.address("far")).replace("BANK", mesh.address("bank")).replace("VIP", vip)


def explained(mesh: Mesh, reason: str) -> None:
    if reason:
        mesh.await_flow(reason, "--from-pod", "shop/attacker", "--to-pod", "shop/far")
        mesh.await_access_log("b", f"src.addr={mesh.address('attacker')}:", reason)


@pytest.mark.parametrize(("target", "status", "reason"), TABLE, ids=[case[0] or "empty" for case in TABLE])
def test_status_by_target(mesh: Mesh, conversation: Conversation, target: str, status: int, reason: str) -> None:
    assert conversation.ask(connect(filled(mesh, target)))[0] == status
    explained(mesh, filled(mesh, reason))


@pytest.mark.parametrize("name", ODD)
def test_status_by_request(mesh: Mesh, conversation: Conversation, name: str) -> None:
    block, status, reason = ODD[name]
    block = block.replace(literal(*HOST), literal(HOST[0], filled(mesh, HOST[1].decode()).encode()))
    assert conversation.ask(block)[0] == status
    explained(mesh, reason)


def test_a_request_may_end_at_once(mesh: Mesh, conversation: Conversation) -> None:
    assert conversation.ask(connect(f"{mesh.address('far')}:{ECHO_PORT}"), END_HEADERS | END_STREAM)[0] == 200
