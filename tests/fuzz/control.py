"""What agent, control plane, CA and operators send: protobufs, certificate chains, HTTP/1.1, DNS from pods and servers."""

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from ssl import DER_cert_to_PEM_cert, PEM_cert_to_DER_cert

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.protobuf.message import DecodeError

from agent.plugin import parse_add, parse_delete
from agent.zds_messages import parse_ack, parse_hello
from control.answer import Content, from_proto, to_wire
from control.stream import Stream
from mesh.delta import Resource, Snapshot
from mesh.identity import Identity
from mesh.inventory import Inventory
from mesh.policy_store import PolicyStore
from mesh.resources import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    decode_address,
    decode_authorization,
    encode_policy,
    encode_service,
    encode_workload,
)
from mesh.workload import Service, Workload
from tests import zds_packets
from tests.fuzz.target import Cursor, Target
from tests.mesh.test_on_demand import MESH
from tests.mesh.test_resources import ANN, MANUAL, MESH_DENY, NONE, PORT_LEVEL, S3, SELECTED, STATIC_STRICT, TUN
from tests.ztunnel.world import Authority
from wire import xds_response
from wire.fds import Packet
from wire.http_messages import HttpError, content_length, parse_request
from ztunnel.ca import FetchError, read_chain
from ztunnel.crl_file import read_lists
from ztunnel.der import Malformed, certificate_key
from ztunnel.dns_message import DNSError
from ztunnel.dns_query import answer, read_query, refuse, relay
from ztunnel.dns_response import Wishes, addresses_in, ask, question_for, read_response
from ztunnel.zds_session import ReadError, read_request

WEB = Identity("cluster.local", "demo", "web")
_CHAIN, _KEY = Authority().issue(str(WEB))
_PRIVATE = load_pem_private_key(_KEY, None)
_ROOT = Authority().pem
_OF_NO_VERSION = DER_cert_to_PEM_cert(PEM_cert_to_DER_cert(_ROOT.decode()).replace(b"\2\1\2", b"\2\1\13", 1)).encode()
_NOW = time.time()


def _zds(data: bytes) -> None:
    """Both ends."""
    for fds in ([], [0]):
        with suppress(ReadError):
            assert read_request(Packet(data, fds)).WhichOneof("payload")
    with suppress(ValueError):
        parse_hello(data)
    with suppress(ValueError):
        assert len(parse_ack(data)) <= 2048


def _address(data: bytes) -> None:
    """What is taken in can be looked up, and is written and read back alike."""
    try:
        value = decode_address(data)
    except ValueError:
        return
    inventory = Inventory()
    inventory.apply([value], [])
    if isinstance(value, Workload):
        assert decode_address(encode_workload(value)) == value
    else:
        assert isinstance(value, Service) and decode_address(encode_service(value)) == value


def _delta_requests(data: bytes) -> None:
    """A node's side of a stream, message after message: answered or ended with a reason, and what it names is bounded."""
    stream, cursor = Stream("n1"), Cursor(data)
    snapshots = {ADDRESS_TYPE: MESH, AUTHORIZATION_TYPE: Snapshot({"a/b": Resource("a/b", "1", b"")})}
    while cursor.left:
        try:
            stream.receive(from_proto(DeltaDiscoveryRequest.FromString(cursor.take(cursor.byte() << 8 | cursor.byte()))))
        except (DecodeError, ValueError):
            return
        for _ in range(3):
            response = stream.next_response(snapshots)
            if response is not None:
                told = DeltaDiscoveryResponse.FromString(to_wire(response, Content(response), "1"))
                assert len(told.resources) <= len(MESH.resources)
    assert stream.server.sent <= len(MESH.resources) + len(data), "what it claims to hold is no more than it sent"


def _conversation() -> bytes:
    """On demand: everything at first, an address, an ACK that brings another name."""
    requests = (
        DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, resource_names_subscribe=["*"], resource_names_unsubscribe=["*"]),
        DeltaDiscoveryRequest(type_url=AUTHORIZATION_TYPE, initial_resource_versions={"a/b": "0", "a/gone": "1"}),
        DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, resource_names_subscribe=["/10.244.0.8", "/10.99.7.1"]),
        DeltaDiscoveryRequest(
            type_url=ADDRESS_TYPE, response_nonce="2", resource_names_subscribe=["amb/web.amb.svc.cluster.local"]
        ),
    )
    parts = [request.SerializeToString() for request in requests]
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def _authorization(data: bytes) -> None:
    try:
        policy = decode_authorization("demo/name", data)
    except ValueError:
        return
    PolicyStore().apply([policy], [])
    assert decode_authorization("demo/name", encode_policy(policy)) == policy


def _xds(data: bytes) -> None:
    """A whole response, as gRPC hands it on."""
    try:
        response = xds_response.read_response(data)
    except ValueError:
        return
    for resource in response.resources:
        _address(resource.value)
        with suppress(ValueError):
            decode_authorization(resource.name, resource.value)


def _chain(data: bytes) -> None:
    """A CA's answer: never taken for another identity, or another time."""
    chain = data.decode("latin-1").split("\0")
    try:
        found = read_chain(WEB, _PRIVATE, chain, _NOW)  # type: ignore[arg-type]
    except FetchError:
        return
    assert found.identity == WEB and found.not_before <= _NOW < found.not_after


def _der(data: bytes) -> None:
    """Issuer and serial number of what the library takes for a certificate are those that it reads."""
    try:
        key = certificate_key(data)
    except Malformed:
        key = None
    try:
        certificate = x509.load_der_x509_certificate(data)
        issuer, serial = certificate.issuer.public_bytes(), certificate.serial_number
    except (ValueError, TypeError, x509.InvalidVersion):
        return
    assert key is not None and int.from_bytes(key.serial, "big", signed=True) == serial
    assert key.issuer == issuer or not certificate.issuer.rdns


def _crl(data: bytes) -> None:
    with suppress(ValueError):
        assert all(issuer for issuer in read_lists(data))


def _http(data: bytes) -> None:
    """A request's head and its length."""
    with suppress(HttpError):
        request = parse_request(data)
        assert request.path.startswith("/") and request.method.isalpha()
        assert 0 <= content_length(request.headers, 1 << 20) <= 1 << 20


def _plugin(data: bytes) -> None:
    """What a runtime's plugin tells the agent."""
    with suppress(ValueError):
        request = parse_add(data)
        assert "/../" not in f"/{request.netns}/" and "/" not in request.uid + request.namespace + request.name
    with suppress(ValueError):
        parse_delete(data)


def _dns_query(data: bytes) -> None:
    """A pod's question: whatever it is, an answer keeps within the limit that it allows."""
    query = read_query(data)
    if query is None:
        return
    assert len(refuse(query, 2)) <= len(data) + 11, "no larger than the question, and an OPT record"
    if query.question is None or query.refusal:
        return
    name, limit = query.question.name, query.udp_limit
    assert 512 <= limit <= 65535 and name == name.lower()
    if name:
        for alias in ("", "web.demo.svc.cluster.local"):
            said = answer(query, name, alias, _ADDRESSES, 30, limit)
            assert len(said) <= limit and said[:2] == data[:2]


def _dns_response(data: bytes) -> None:
    """A server's answer: only to this question, and no more than it holds."""
    with suppress(DNSError):
        response = read_response(data, 0x1234, _QUESTION)
        assert response.code < 16 and all(record.end <= len(data) for record in (*response.answers, *response.rest))
        for limit in (512, 65535):
            assert _QUERY is not None and len(relay(_QUERY, response, limit)) <= limit
        packed, ttl_s = addresses_in(response, _QUESTION)
        assert ttl_s >= 0 and all(len(one) == 4 for one in packed)


_QUESTION = question_for("web.demo.svc.cluster.local", 1)
_ASKED = ask(0x1234, _QUESTION, 1232, Wishes())
_ADDRESSES = [ip_address(f"10.0.0.{host}") for host in range(200)] + [ip_address("fd00::1")]
_QUERY = read_query(_ASKED)
assert _QUERY is not None
_ANSWERED = answer(_QUERY, _QUESTION.name, "", _ADDRESSES[:3], 30, 512)


def _list(encoding: Encoding) -> bytes:
    issuer, now = Authority(), datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.name).last_update(now).next_update(now)
    revoked = x509.RevokedCertificateBuilder().serial_number(77).revocation_date(now).build()
    return builder.add_revoked_certificate(revoked).sign(issuer.key, hashes.SHA256()).public_bytes(encoding)


TARGETS = (
    Target("zds", _zds, [one for one in vars(zds_packets).values() if isinstance(one, bytes)]),
    Target("address", _address, [ANN, TUN, MANUAL, S3, SELECTED, NONE]),
    Target("authorization", _authorization, [MESH_DENY, STATIC_STRICT, PORT_LEVEL]),
    Target("xds", _xds, [DeltaDiscoveryResponse(type_url="a", nonce="1").SerializeToString()]),
    Target("xds-requests", _delta_requests, [_conversation()]),
    Target("ca-chain", _chain, [_CHAIN + b"\0" + _ROOT, _CHAIN + _ROOT, _CHAIN + b"\0" + _OF_NO_VERSION], 8192),
    Target(
        "certificate-der", _der, [x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER) for pem in (_CHAIN, _ROOT)]
    ),
    Target("crl", _crl, [_list(Encoding.PEM), _list(Encoding.DER), _list(Encoding.DER).replace(b"\2\1\1", b"\2\1\5", 1)]),
    Target("http1", _http, [b"GET /flows?number=5&x=%41 HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n"]),
    Target("dns-query", _dns_query, [_ASKED, refuse(_QUERY, 2), _ANSWERED], 1024),
    Target("dns-response", _dns_response, [_ANSWERED, answer(_QUERY, _QUESTION.name, "a.b", _ADDRESSES, 30, 2000)]),
    Target("plugin", _plugin, [json.dumps({"Netns": "/run/netns/a", "PodName": "a", "PodNamespace": "b"}).encode()]),
)
