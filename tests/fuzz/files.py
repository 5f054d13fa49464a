"""What files, other programs of the node and users bring: events, manifests, resolv.conf, a SPIRE agent's documents, SOCKS."""

import time

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from mesh.dump import dump_policy, dump_service, dump_workload
from mesh.event_line import EventLine, read_event, read_line, write_event
from mesh.flows import connection_flow
from mesh.identity import Identity
from mesh.inventory import Inventory
from mesh.local_mesh import read_local_mesh
from mesh.manifests import parse
from mesh.policy_store import PolicyStore
from tests.fuzz.target import Cursor, Target
from tests.mesh.manifests.test_fuzz import SEEDS
from tests.mesh.test_event_line import CLOSED, EVENT
from tests.mesh.test_local_mesh import EXAMPLE
from tests.ztunnel.world import Authority
from ztunnel.ca import FetchError
from ztunnel.nameservers import read_nameservers
from ztunnel.socks5 import Negotiation, Refusal
from ztunnel.svid import read_svid

WEB = Identity("cluster.local", "demo", "web")
_NOW = time.time()


def _event(data: bytes) -> None:
    """A line of the proxy, read by the agent: late or at once alike, and what is kept of it is written and read back alike."""
    try:
        event = read_line(data)
    except ValueError:
        event = None
    try:
        late = read_event(data)
    except ValueError:
        late = None
    assert (late.whole() if isinstance(late, EventLine) else late) == event
    if event is None:
        return
    if not isinstance(event, int):
        kept = read_line(write_event(event))
        assert not isinstance(kept, int) and read_line(write_event(kept)) == kept
        for moment in event.moments():
            assert connection_flow(moment).uuid


def _manifests(data: bytes) -> None:
    """A user's manifests: problems, never an exception."""
    found = parse({"file.yaml": data.decode("utf-8", "replace")})
    assert all(problem.file == "file.yaml" and str(problem).isprintable() for problem in found.problems)


def _local_mesh(data: bytes) -> None:
    """A node's own configuration: what is taken from it can be looked up, and shown."""
    try:
        mesh = read_local_mesh(data.decode("utf-8", "replace"))
    except ValueError as refusal:
        assert str(refusal)
        return
    inventory, policies = Inventory(), PolicyStore()
    inventory.apply([*mesh.workloads, *mesh.services], ())
    policies.apply(mesh.policies, ())
    for one in mesh.workloads:
        assert inventory.workload(one.uid) == one and dump_workload(one)
    for service in mesh.services:
        assert inventory.service(service.key) == service and dump_service(service, inventory.endpoints(service.key))
    for policy in mesh.policies:
        assert policies.policy(policy.key) == policy and dump_policy(policy)


def _resolv_conf(data: bytes) -> None:
    assert len(read_nameservers(data.decode("utf-8", "replace"))) <= len(data)


def _svid(data: bytes) -> None:
    """A document: key, certificate, roots, by their lengths. Never another identity, or another time."""
    cursor = Cursor(data)
    key, leaf, roots = (cursor.take(cursor.byte() << 8 | cursor.byte()) for _ in range(3))
    try:
        found = read_svid(WEB, [leaf] if leaf else [], key, roots, _NOW)
    except FetchError:
        return
    assert found.identity == WEB and found.not_before <= _NOW < found.not_after


def _document() -> bytes:
    issuer = Authority()
    chain, key = issuer.issue(str(WEB))
    parts = (
        load_pem_private_key(key, None).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        x509.load_pem_x509_certificate(chain).public_bytes(Encoding.DER),
        issuer.certificate.public_bytes(Encoding.DER),
    )
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def _socks(data: bytes) -> None:
    """A client of a SOCKS listener: the same in whatever pieces, and nothing behind its request is read."""
    whole, parts = _negotiated(data, 1 << 16), _negotiated(data, 1)
    assert whole == parts


def _negotiated(data: bytes, most: int) -> tuple[object, bytes, int]:
    talk, answers, place = Negotiation(), b"", 0
    try:
        while place < len(data) and talk.wanted:
            assert 0 < talk.wanted <= 262
            part = data[place : place + min(most, talk.wanted)]
            place += len(part)
            answers += talk.receive(part)
    except Refusal as refusal:
        return str(refusal), answers + refusal.said, -1
    if talk.target is not None:
        host, port = talk.target
        assert 0 < port < 65536 and (not isinstance(host, str) or (0 < len(host) <= 253 and host.isascii()))
    return talk.target, answers, place


TARGETS = (
    Target("event-line", _event, [write_event(EVENT), write_event(CLOSED), b'{"lost":3}\n']),
    Target("local-mesh", _local_mesh, [EXAMPLE.encode()]),
    Target("manifests", _manifests, [one.encode() for one in SEEDS.split("---")]),
    Target("resolv-conf", _resolv_conf, [b"nameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch a b\n"], 1024),
    Target("socks5", _socks, [b"\5\1\0\5\1\0\3\x07web.abc\0\x50GET", b"\5\1\0\5\1\0\1\x0a\0\0\1\0\x50", b"\5\2\1\2"], 1024),
    Target("svid", _svid, [_document()]),
)
