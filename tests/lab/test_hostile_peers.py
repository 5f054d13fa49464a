"""Who may not talk to a pod, and whom a pod may not talk to: each refused before the application sees a byte, with its reason.

The attacker sits in a pod that is not enrolled. It can borrow the key of the lab's own root, so that certificates are wrong in
one respect only; and it can put itself into another pod's place on the network.
"""

import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from bpf.layout import MARK_DELIVER, MARK_PROXY, PORT_INBOUND, PORT_OUTBOUND
from lab.layout import POD_BRIDGE
from tests.lab.mesh import ECHO_PORT, NODES, Mesh, authentication, pod
from tests.lab.papers import Forger, LabAuthority, attacker_in, attacker_on, data, papers, text
from tests.lab.puppet import Puppet
from tests.ztunnel.world import Authority
from ztunnel.client_hello import NO_APPLICATION_PROTOCOL
from ztunnel.fields import literal
from ztunnel.frames import CLIENT_OPENING, END_HEADERS, HEADERS, Code, frame

pytestmark = pytest.mark.lab

PORT, HBONE = 7001, 15008
NAMES = {name: f"spiffe://cluster.local/ns/shop/sa/{name}" for name in ("attacker", "far", "bank", "client")}
FOREIGN = "spiffe://other.domain/ns/shop/sa/attacker"
OUTSIDE = ", istio.io/dataplane-mode: none"
ALLOW = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: known, namespace: shop}
spec:
  action: ALLOW
  selector: {matchLabels: {app: far}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client, cluster.local/ns/shop/sa/attacker]}}]}]
---
"""
TOPOLOGY = (
    NODES
    + pod("client", "a")
    + pod("intruder", "a")
    + pod("attacker", "a", OUTSIDE)
    + pod("far", "b")
    + pod("bank", "b")
    + authentication("STRICT")
    + ALLOW
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(TOPOLOGY) as made:
        made.puppet("far").echo(ECHO_PORT)
        yield made


@pytest.fixture(scope="module")
def authority(mesh: Mesh) -> LabAuthority:
    return LabAuthority(mesh)


@pytest.fixture(scope="module")
def attacker(mesh: Mesh) -> Iterator[Puppet]:
    puppet = attacker_in(mesh, "attacker")
    yield puppet
    puppet.end()


@contextmanager
def untouched(mesh: Mesh, port: int) -> Iterator[None]:
    """What happens meanwhile does not reach the application: the first that it accepts is who comes afterwards."""
    with mesh.puppet("far").listen(port) as listener:
        yield
        with mesh.puppet("client").connect(mesh.address("far"), port) as wire:
            wire.send("a friend")
            with listener.accept() as first:
                assert first.receive(8) == "a friend"


def connect(authority: str) -> bytes:
    return literal(b":method", b"CONNECT") + literal(b":authority", authority.encode())


# --- clients that no proxy may serve

Case = tuple[Callable[[LabAuthority], dict[str, Any]], str, str]
ME = NAMES["attacker"]
CLIENTS: dict[str, Case] = {
    "no certificate": (lambda _: {"alpn": ["h2"]}, "TLSV13_ALERT_CERTIFICATE_REQUIRED", "no client certificate presented"),
    "untrusted issuer": (lambda _: papers(Authority(), ME), "TLSV1_ALERT_UNKNOWN_CA", "untrusted issuer: "),
    "forged signature": (lambda root: papers(Forger(root), ME), "TLSV1_ALERT_DECRYPT_ERROR", "certificate signature failure"),
    "other trust domain": (
        lambda root: papers(root, FOREIGN),
        "CERTIFICATE_UNKNOWN",
        f"wrong trust domain: peer is {FOREIGN}, this mesh is cluster.local",
    ),
    "no name": (lambda root: papers(root), "CERTIFICATE_UNKNOWN", "wrong SAN: peer has no workload identity, got []"),
    "no SPIFFE name": (
        lambda root: papers(root, "https://example.com/ns/shop/sa/client"),
        "CERTIFICATE_UNKNOWN",
        "wrong SAN: peer has no workload identity, got ['https://example.com/ns/shop/sa/client']",
    ),
    "expired": (lambda root: papers(root, ME, expired=True), "SSLV3_ALERT_CERTIFICATE_EXPIRED", "certificate expired"),
    "a server's certificate": (
        lambda root: papers(root, ME, usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "certificate is not meant for this role (extended key usage)",
    ),
    "TLS 1.2": (lambda root: {**papers(root, ME), "version": "TLSv1_2"}, "PROTOCOL_VERSION", "unsupported protocol"),
    "HTTP/1.1": (
        lambda root: {**papers(root, ME), "alpn": ["http/1.1"]},
        "alert",
        "no common protocol: peer offers 'http/1.1', this proxy speaks 'h2'",
    ),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_without_a_valid_identity(mesh: Mesh, authority: LabAuthority, attacker: Puppet, name: str) -> None:
    make, end, reason = CLIENTS[name]
    far = mesh.address("far")
    words = text(CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, connect(f"{far}:{PORT}")))
    with untouched(mesh, PORT):
        fate = attacker.do("speak", far, HBONE, make(authority), words)
    assert end in fate["end"] and fate["said"] == "", fate
    if name == "HTTP/1.1":  # an alert that OpenSSL before 3.2 has no words for
        assert data(fate["last"]) == NO_APPLICATION_PROTOCOL
    flow = mesh.await_flow(reason, "--from-port", str(fate["port"]), "--to-pod", "shop/far", "--verdict", "DROPPED")
    assert flow["Summary"].startswith("refused, no acceptable identity: tls handshake error: ")
    assert flow["drop_reason_desc"] == "AUTH_REQUIRED" and flow["IP"]["source"] == mesh.address("attacker")
    assert flow["l4"]["TCP"]["destination_port"] == HBONE
    mesh.await_access_log("b", f"src.addr={mesh.address('attacker')}:", 'direction="inbound"', "tls handshake error: ", reason)


TOO_LONG = "packet length too long" if ssl.OPENSSL_VERSION_INFO < (3, 2) else "record layer failure"
"""OpenSSL's words."""
GARBAGE: dict[str, tuple[bytes, str]] = {
    "plain HTTP": (b"GET / HTTP/1.1\r\nHost: far\r\n\r\n", "tls handshake error: http request"),
    "plain HTTP/2": (CLIENT_OPENING + frame(HEADERS, END_HEADERS, 1, connect("10.0.0.1:1")), "tls handshake error: "),
    "a record too long": (b"\x16\x03\x01\xff\xff" + b"\xaa" * 70000, f"tls handshake error: {TOO_LONG}"),
    "a broken hello": (b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\xff\xff", "tls handshake error: length"),
    "zeros": (bytes(4096), "tls handshake error: wrong version number"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_instead_of_a_handshake(mesh: Mesh, attacker: Puppet, name: str) -> None:
    garbage, reason = GARBAGE[name]
    with untouched(mesh, PORT):
        fate = attacker.do("speak", mesh.address("far"), HBONE, None, text(garbage))
    assert fate["end"] in ("end", "reset") and len(data(fate["said"])) <= 7, "at most an alert is said"
    mesh.await_flow(reason, "--from-pod", "shop/attacker", "--to-pod", "shop/far", "--verdict", "DROPPED")
    mesh.await_access_log("b", f"src.addr={mesh.address('attacker')}:", reason)


def test_garbage_after_a_good_handshake(mesh: Mesh, authority: LabAuthority, attacker: Puppet) -> None:
    with untouched(mesh, PORT):
        fate = attacker.do("speak", mesh.address("far"), HBONE, papers(authority, ME), text(b"GET / HTTP/1.1\r\n\r\n" * 3))
    assert data(fate["said"])[-4:] == Code.PROTOCOL_ERROR.to_bytes(4, "big") and fate["end"] in ("end", "reset")
    reason = "h2 failed: PROTOCOL_ERROR: not an HTTP/2 preface"
    assert mesh.await_flow(reason, "--from-pod", "shop/attacker", "--to-pod", "shop/far")["verdict"] == "ERROR"
    mesh.await_access_log("b", f"src.addr={mesh.address('attacker')}:", reason)


# --- servers that no client may talk to

SECRET = "the application's secret"
SERVERS: dict[str, Case] = {
    "another pod": (
        lambda root: papers(root, NAMES["far"]),
        "CERTIFICATE_UNKNOWN",
        f"wrong SAN: peer did not present the expected SAN ({NAMES['bank']}), got ['{NAMES['far']}']",
    ),
    "other trust domain": (
        lambda root: papers(root, FOREIGN),
        "CERTIFICATE_UNKNOWN",
        "wrong SAN: peer did not present the expected SAN",
    ),
    "no name": (lambda root: papers(root), "CERTIFICATE_UNKNOWN", f"expected SAN ({NAMES['bank']}), got []"),
    "untrusted issuer": (lambda _: papers(Authority(), NAMES["bank"]), "UNKNOWN_CA", "untrusted issuer: "),
    "forged signature": (lambda root: papers(Forger(root), NAMES["bank"]), "DECRYPT_ERROR", "certificate signature failure"),
    "expired": (lambda root: papers(root, NAMES["bank"], expired=True), "CERTIFICATE_EXPIRED", "certificate expired"),
    "a client's certificate": (
        lambda root: papers(root, NAMES["bank"], usages=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        "UNSUPPORTED_CERTIFICATE",
        "certificate is not meant for this role (extended key usage)",
    ),
    "TLS 1.2": (lambda root: {**papers(root, NAMES["bank"]), "version": "TLSv1_2"}, "", "protocol version"),
}


@pytest.fixture(scope="module")
def thief(mesh: Mesh, attacker: Puppet) -> Iterator[int]:
    """The attacker in the bank's place: node a routes the bank's address to it. Its listener's number."""
    layout, bank = mesh.layout, mesh.address("bank")

    def ip(name: str, *arguments: str) -> None:
        subprocess.run(["ip", "-n", name, *arguments], check=True, capture_output=True)

    node, own = layout.node_netns("a"), layout.pod_netns("a", "shop/attacker")
    ip(own, "address", "add", f"{bank}/32", "dev", "lo")
    ip(node, "route", "add", f"{bank}/32", "via", mesh.address("attacker"), "dev", POD_BRIDGE)
    listener = attacker.do("pose", HBONE)
    yield listener
    attacker.do("unpose", listener)
    ip(node, "route", "del", f"{bank}/32")
    ip(own, "address", "del", f"{bank}/32", "dev", "lo")


def robbed(mesh: Mesh, attacker: Puppet, thief: int, shown: dict[str, Any] | None, answer: bytes = b"") -> dict[str, Any]:
    """The client talks to the bank, and the thief is there: what that one heard."""
    visit = attacker.start("visit", thief, shown, text(answer))
    try:  # a reset may be there before connect() has returned
        with mesh.puppet("client").connect(mesh.address("bank"), ECHO_PORT) as wire:
            wire.send(SECRET)
            ended = wire.ended()
    except (ConnectionResetError, BrokenPipeError):
        ended = "reset"
    assert ended == "reset"
    return dict(visit.result(100))


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_is_somebody_else(mesh: Mesh, authority: LabAuthority, attacker: Puppet, thief: int, name: str) -> None:
    make, end, reason = SERVERS[name]
    fate = robbed(mesh, attacker, thief, make(authority))
    assert fate["said"] == "" and end in fate["end"], fate
    flow = mesh.await_flow(reason, "--from-pod", "shop/client", "--to-pod", "shop/bank")
    refusal = "io error: invalid peer certificate: " if end else "io error: tls handshake error: "
    assert flow["verdict"] == "DROPPED" and refusal in flow["Summary"]
    mesh.await_access_log("a", f"src.addr={mesh.address('client')}:", 'direction="outbound"', "bytes_sent=0", reason)


def test_a_server_that_speaks_no_tls(mesh: Mesh, attacker: Puppet, thief: int) -> None:
    fate = robbed(mesh, attacker, thief, None, b"HTTP/1.1 200 OK\r\n\r\n")
    assert SECRET.encode() not in data(fate["said"])
    mesh.await_flow("tls handshake error: wrong version number", "--from-pod", "shop/client", "--to-pod", "shop/bank")


def test_only_the_certificate_told_them_apart(mesh: Mesh, authority: LabAuthority, attacker: Puppet, thief: int) -> None:
    """With the bank's own name, signed by the lab's root, the thief is the bank: the tests above would see what they refute."""
    shown = papers(authority, NAMES["bank"])
    cancelled = frame(3, 0, 1, (8).to_bytes(4, "big"))  # not a GOAWAY before the stream: that would be tried again
    fate = robbed(mesh, attacker, thief, shown, b"\0\0\0\4\0\0\0\0\0" + cancelled)
    assert data(fate["said"]).startswith(CLIENT_OPENING)


# --- ways around the mesh


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [PORT_OUTBOUND, PORT_INBOUND])
def test_malicious_calls_inpod_lead_nowhere(mesh: Mesh, port: int, version: int) -> None:
    far, own = mesh.address("far", version), {4: "127.0.0.1", 6: "::1"}[version]
    client = mesh.puppet("client")
    with untouched(mesh, PORT):
        for puppet in (mesh.host("a"), mesh.host("b"), mesh.puppet("attacker"), client):
            assert puppet.fate(far, port) in ("refused", "reset"), puppet
        for address in (far, own):
            assert mesh.puppet("far").fate(address, port) in ("refused", "reset")
    target = f"[{far}]" if ip_address(far).version == 6 else far
    mesh.await_flow(f"self call to {target}:{port}", "--from-pod", "shop/client", "--to-pod", "shop/far")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [15000, 15020, 15021])
def test_the_proxys_admin_ports_are_not_in_pods(mesh: Mesh, port: int, version: int) -> None:
    far, own = mesh.address("far", version), {4: "127.0.0.1", 6: "::1"}[version]
    assert mesh.puppet("far").fate(own, port) == "refused"
    for name in ("client", "attacker"):
        assert mesh.puppet(name).fate(far, port) in ("refused", "reset"), name


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mark", [MARK_PROXY, MARK_DELIVER], ids=["0x539", "0x111"])
def test_a_mark_opens_no_door(mesh: Mesh, attacker: Puppet, others: list[Puppet], mark: int, version: int) -> None:
    """Not to who is outside of the mesh (STRICT refuses it), nor to an enrolled pod that no policy allows."""
    with untouched(mesh, PORT):
        for puppet in (attacker, *others):
            for port in (PORT, PORT_INBOUND, PORT_OUTBOUND):
                fate = puppet.do("dial", mesh.address("far", version), port, mark, "let me in", 30)
                assert fate in ("refused", "reset"), port
    mesh.await_flow("shop/known", "--from-pod", "shop/intruder", "--to-pod", "shop/far", "--verdict", "DROPPED")
    mesh.await_flow(
        "PeerAuthentication shop/mode", "--from-pod", "shop/attacker", "--to-pod", "shop/far", "--verdict", "DROPPED"
    )


@pytest.fixture(scope="module")
def others(mesh: Mesh) -> Iterator[list[Puppet]]:
    """An enrolled pod that no policy allows, and a process of another node."""
    puppets = [attacker_in(mesh, "intruder"), attacker_on(mesh, "a")]
    yield puppets
    for puppet in puppets:
        puppet.end()
