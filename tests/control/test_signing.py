"""The certificate service as nodes use it, over TLS, with tokens and with client certificates."""

import asyncio
import errno
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from control import signing
from control.cluster import Cluster
from control.credentials import Credentials
from control.grants import Grants
from control.rate import Rate
from control.refusals import Refusals
from control.store import Store
from control.tokens import Tokens
from control.trust import Trust
from control.workloads import MeshNames
from mesh.identity import Identity
from mesh.manifests import parse
from mesh.proto import certificate_pb2_grpc, control_pb2
from mesh.proto.certificate_pb2 import IstioCertificateRequest
from mesh.resources import ADDRESS_TYPE
from tests.conftest import key_pem
from tests.control.conftest import DEADLINE_S
from wire.grpc_tls import Endpoint
from ztunnel.ca import CertificateClient
from ztunnel.certificates import Certificate

pytestmark = pytest.mark.unit

MESH = """
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDRs: [10.244.2.0/24]}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: demo}
spec: {serviceAccountName: web, containers: [{name: main, command: [serve]}]}
"""
WEB = "spiffe://cluster.local/ns/demo/sa/web"
DAY_S = 86400
NOT_IMPERSONATED = "request impersonation authentication failure"


@pytest.fixture
def meshed(control: Any) -> Any:
    """A control plane with two nodes, their tokens, and a pod on n1."""
    control.apply(MESH)
    control.report({"name": "web", "node": "n1", "addresses": ["10.244.1.2"]})
    control.token("n1")
    control.token("n2")
    return control


def request(
    key: ec.EllipticCurvePrivateKey, identity: str | None = WEB, ttl_s: int = 0, csr: str | None = None
) -> IstioCertificateRequest:
    # What a request says about itself counts for nothing: it asks for another's name.
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://cluster.local/ns/demo/sa/admin")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    metadata = ParseDict({"ImpersonatedIdentity": identity}, Struct()) if identity is not None else None
    return IstioCertificateRequest(csr=pem if csr is None else csr, validity_duration=ttl_s, metadata=metadata)


def test_a_node_gets_the_certificate_of_a_pod_that_it_runs(meshed: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    began = datetime.now(UTC).replace(microsecond=0)
    leaf_pem, root_pem = meshed.certificate(request(key, ttl_s=3600), meshed.tokens["n1"])
    assert root_pem == meshed.root_pem
    leaf, root = (x509.load_pem_x509_certificate(pem.encode()) for pem in (leaf_pem, root_pem))
    leaf.verify_directly_issued_by(root)
    assert leaf.public_key() == key.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [WEB]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert began <= leaf.not_valid_after_utc - timedelta(hours=1) <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("node", "identity", "cluster", "reason"),
    [
        ("", WEB, "Kubernetes", "request authenticate failure"),
        ("n1", WEB, None, NOT_IMPERSONATED),
        ("n1", WEB, "elsewhere", "request authenticate failure"),
        ("n2", WEB, "Kubernetes", f"{NOT_IMPERSONATED}: no pod with service account demo/web is reported on node n2"),
        (
            "n1",
            WEB.replace("web", "admin"),
            "Kubernetes",
            f"{NOT_IMPERSONATED}: no pod with service account demo/admin is reported on node n1",
        ),
        (
            "n1",
            WEB.replace("cluster.local", "other"),
            "Kubernetes",
            f"{NOT_IMPERSONATED}: spiffe://other/ns/demo/sa/web is of trust domain other, this mesh is cluster.local",
        ),
    ],
)
def test_nobody_gets_another_identity(meshed: Any, node: str, identity: str, cluster: str | None, reason: str) -> None:
    token = meshed.tokens.get(node, "weft-" + "0" * 64)
    with pytest.raises(grpc.RpcError) as refused:
        meshed.certificate(request(ec.generate_private_key(ec.SECP256R1()), identity), token, cluster)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNAUTHENTICATED, reason)


def test_what_cannot_be_signed_is_an_invalid_argument(meshed: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for asked, reason in (
        (request(key, csr="garbage"), "CSR signing error (not a PKCS#10 request in PEM"),
        (
            request(key, ttl_s=91 * 86400),
            "CSR signing error (requested TTL 7862400s is greater than the max allowed TTL 7776000s)",
        ),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            meshed.certificate(asked, meshed.tokens["n1"])
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith(reason)


def test_an_identity_ends_with_its_last_pod(meshed: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    meshed.report({"name": "web", "node": "n1", "addresses": ["10.244.1.2"], "phase": "Failed"})
    with pytest.raises(grpc.RpcError, match="no pod with service account demo/web is reported on node n1"):
        meshed.certificate(request(key), meshed.tokens["n1"])


def test_a_rotated_token_leaves_the_one_before_valid(meshed: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    first = meshed.tokens["n1"]
    second = meshed.token("n1")
    assert meshed.certificate(request(key), first) and meshed.certificate(request(key), second)
    meshed.token("n1")
    with pytest.raises(grpc.RpcError, match="request authenticate failure"):
        meshed.certificate(request(key), first)
    assert meshed.certificate(request(key), second)


def test_a_node_certificate_serves_instead_of_a_token(new_control: Any) -> None:
    control = new_control()
    control.start("--listen-client-certificate", "127.0.0.1:0")
    control.apply(MESH)
    control.report({"name": "web", "node": "n1", "addresses": ["10.244.1.2"]})
    key = ec.generate_private_key(ec.SECP256R1())
    chain = "".join(control.certificate(request(key, identity=None), control.token("n1"), None))
    shows = x509.load_pem_x509_certificate(chain.encode()).extensions
    names = shows.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("spiffe://cluster.local/node/n1")]
    assert list(shows.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    workload_chain = "".join(control.certificate(request(key), control.tokens["n1"]))

    def status(shown: str | None, node: str = "n1") -> Any:
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        private = key.private_bytes(*pem) if shown else None
        channel = control.channel("certificates", private, shown.encode() if shown else None)
        stream = control.stream(node, token="", channel=channel)
        stream.send(ADDRESS_TYPE, node=True)
        try:
            return stream.take().type_url
        except grpc.RpcError as error:
            return error.code()

    assert status(chain) == ADDRESS_TYPE
    assert status(chain, "n2") is grpc.StatusCode.PERMISSION_DENIED
    assert status(workload_chain) is grpc.StatusCode.UNAUTHENTICATED, "a workload is no node"
    assert status(None) is grpc.StatusCode.UNAVAILABLE, "no certificate, no handshake"


def test_a_workload_certificate_renews_itself_and_a_nodes_gets_its_residents(new_control: Any) -> None:
    control = new_control()
    control.start("--listen-client-certificate", "127.0.0.1:0")
    control.apply(MESH)
    control.report({"name": "web", "node": "n1", "addresses": ["10.244.1.2"]})
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    token = control.token("n1")
    node_chain = "".join(control.certificate(request(key, identity=None), token, None))
    workload_chain = "".join(control.certificate(request(key), token))

    def ask(chain: str, identity: str | None) -> list[str]:
        stub = certificate_pb2_grpc.IstioCertificateServiceStub(control.channel("certificates", private, chain.encode()))
        metadata = [("clusterid", "Kubernetes")]
        return list(stub.CreateCertificate(request(key, identity), timeout=DEADLINE_S, metadata=metadata).cert_chain)

    for chain, identity in ((workload_chain, None), (workload_chain, WEB), (node_chain, WEB)):
        leaf = x509.load_pem_x509_certificate(ask(chain, identity)[0].encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [WEB]
    for chain, identity, reason in (
        (workload_chain, WEB.replace("web", "admin"), f"{NOT_IMPERSONATED}: {WEB} may have no identity but its own"),
        (node_chain, WEB.replace("web", "admin"), f"{NOT_IMPERSONATED}: no pod with service account demo/admin"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            ask(chain, identity)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED and refused.value.details().startswith(reason)
    control.report({"name": "web", "node": "n1", "addresses": ["10.244.1.2"], "phase": "Failed"})
    with pytest.raises(grpc.RpcError, match="request authenticate failure: no pod has the identity"):
        ask(workload_chain, None)


def test_a_node_proxy_with_a_certificate_and_no_token_gets_what_its_pods_need(
    new_control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztunnel.ca._TIMEOUT_S", DEADLINE_S)
    control = new_control()
    control.start("--listen-client-certificate", "127.0.0.1:0")
    control.apply(MESH)
    control.report({"name": "web", "node": "n1", "addresses": ["10.244.1.2"]})
    key = ec.generate_private_key(ec.SECP256R1())
    chain = control.certificate(request(key, identity=None), control.token("n1"), None)
    (tmp_path / "key.pem").write_bytes(key_pem(key))
    (tmp_path / "cert-chain.pem").write_text("".join(chain))

    async def fetch() -> Certificate:
        endpoint = Endpoint(
            control.address("certificates"), chain[1].encode(), None, "Kubernetes", "weft-control", client_folder=tmp_path
        )
        client = CertificateClient(endpoint, 60)
        try:
            return await client.fetch(Identity.parse(WEB), time.time())
        finally:
            await client.close()

    assert str(asyncio.run(fetch()).identity) == WEB


def test_a_root_is_rotated_with_overlap_and_nobody_is_cut_off(meshed: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())

    def certificate() -> tuple[x509.Certificate, list[x509.Certificate]]:
        # Each call is a connection of its own, of a client that knows the first root and no other.
        leaf, bundle = meshed.certificate(request(key, ttl_s=3600), meshed.tokens["n1"])
        return x509.load_pem_x509_certificate(leaf.encode()), x509.load_pem_x509_certificates(bundle.encode())

    def pass_a_day(news: str) -> None:
        """But for a moment, in which control runs: an overlap is long, so that no phase ends while it is looked at."""
        meshed.stop()
        path = meshed.state / "control" / "rotation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"since_s": time.time() - DAY_S + 2}))
        meshed.start()
        certificate()
        meshed.wait_for_log(news)

    _, (old,) = certificate()
    with pytest.raises(grpc.RpcError, match=r"an overlap of 1 s: certificates that were issued are valid for 3[89]\d\d s"):
        meshed.stub.RotateRoot(control_pb2.RotateRootRequest(overlap_s=1))
    answer = meshed.stub.RotateRoot(control_pb2.RotateRootRequest(overlap_s=DAY_S))
    assert answer.phase == "announced" and answer.until_unix_s <= time.time() + DAY_S
    with pytest.raises(grpc.RpcError, match="a rotation is under way"):
        meshed.stub.RotateRoot(control_pb2.RotateRootRequest(overlap_s=DAY_S))
    leaf, bundle = certificate()
    leaf.verify_directly_issued_by(old)
    assert bundle[0] == old and len(bundle) == 2
    pass_a_day("root rotation: the new root signs")
    leaf, trusted = certificate()
    leaf.verify_directly_issued_by(bundle[1])
    assert trusted == [bundle[1], old] and meshed.status().rotation.phase == "signing"
    pass_a_day("root rotation: the old root is retired")
    leaf, trusted = certificate()
    leaf.verify_directly_issued_by(bundle[1])
    assert trusted == [bundle[1]] and meshed.status().rotation.phase == "steady"
    assert x509.load_pem_x509_certificates(meshed.status().rotation.bundle_pem.encode()) == trusted
    meshed.token("n2")
    assert x509.load_pem_x509_certificates(meshed.root_pem.encode()) == trusted
    certificate()


def test_who_is_nobody_is_refused_before_a_request_is_read(meshed: Any) -> None:
    never = threading.Event()
    call = meshed.channel().stream_unary(
        "/istio.v1.auth.IstioCertificateService/CreateCertificate", lambda one: one, lambda one: one
    )
    try:
        with pytest.raises(grpc.RpcError, match="request authenticate failure"):
            call((b"" for _ in iter(never.wait, True)), timeout=DEADLINE_S, metadata=[("authorization", "Bearer nobody's")])
    finally:
        never.set()


Call = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def serving(folder: Path, manifests: str = MESH) -> AsyncIterator[tuple[signing.CertificateService, Call]]:
    """The service alone, and how a node with a token of its own calls it; without manifests it knows no mesh yet."""
    store = Store(folder / "control.db")
    tokens = Tokens(store)
    cluster = Cluster(MeshNames(), [], store, tokens)
    if manifests:
        cluster.replace_objects(parse({"f": manifests}).objects)
    grants = Grants("cluster.local", "Kubernetes", cluster.has_node, cluster.index.runs_on, cluster.index.runs)
    trust = Trust(folder, "cluster.local", 3600)
    service = signing.CertificateService(trust, cluster, Credentials(tokens, "cluster.local"), grants, Refusals(), 3600)
    server = grpc.aio.server()
    service.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    bearers = {node: f"Bearer {tokens.issue(node, bytes([number] * 32))}" for number, node in enumerate(("n1", "n2"))}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        async def call(node: str, *requests: bytes, stays: bool = False) -> grpc.aio.AioRpcError:
            """How a call ends that is refused; one that `stays` says nothing at all."""
            method = channel.stream_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
            sent = None if stays else iter(requests)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await asyncio.wait_for(method(sent, metadata=(("authorization", bearers[node]),)), DEADLINE_S)
            return ended.value

        yield service, call
    await server.stop(None)
    store.close()


def test_who_asks_and_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> grpc.aio.AioRpcError:
        async with serving(tmp_path) as (_, call):
            ended: grpc.aio.AioRpcError = await call("n1", stays=True)
        return ended

    monkeypatch.setattr(signing, "REQUEST_S", 0.1)
    ended = asyncio.run(scenario())
    assert (ended.code(), ended.details()) == (grpc.StatusCode.DEADLINE_EXCEEDED, "no certificate request within 0.1 s")


def test_who_asks_and_leaves_without_a_request_hears_so(tmp_path: Path) -> None:
    async def scenario() -> grpc.aio.AioRpcError:
        async with serving(tmp_path) as (_, call):
            ended: grpc.aio.AioRpcError = await call("n1")
        return ended

    ended = asyncio.run(scenario())
    assert (ended.code(), ended.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "no certificate request was sent")


def test_a_node_that_asks_for_too_much_waits_and_nobody_else_does(tmp_path: Path) -> None:
    async def scenario() -> list[grpc.StatusCode]:
        async with serving(tmp_path) as (service, call):
            now = [1000.0]
            service.clock = lambda: now[0]
            service._rate = Rate(1.0, 2)
            wrong = IstioCertificateRequest(csr="none").SerializeToString()
            codes = [(await call(node, wrong)).code() for node in ("n1", "n1", "n1", "n2")]
            now[0] += 1.0
            return [*codes, (await call("n1", wrong)).code(), (await call("n1", wrong)).code()]

    taken, full = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
    assert asyncio.run(scenario()) == [taken, taken, full, taken, taken, full]


def test_before_the_first_good_state_a_node_is_told_to_come_again(tmp_path: Path) -> None:
    """Not that it is nobody: it would be taken for an outsider."""

    async def scenario() -> grpc.aio.AioRpcError:
        async with serving(tmp_path, "") as (_, call):
            ended: grpc.aio.AioRpcError = await call("n1", stays=True)  # a request that meets the end would be INTERNAL
        return ended

    assert asyncio.run(scenario()).code() is grpc.StatusCode.UNAVAILABLE


def test_what_could_not_be_remembered_of_a_certificate_is_not_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root that is replaced would be retired before it expires."""

    def full(lifetime_s: int) -> None:
        assert lifetime_s == 60
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scenario() -> grpc.aio.AioRpcError:
        async with serving(tmp_path) as (service, call):
            monkeypatch.setattr(service.trust, "granted", full)
            asked = request(ec.generate_private_key(ec.SECP256R1()), None, 60).SerializeToString()
            ended: grpc.aio.AioRpcError = await call("n1", asked)
        return ended

    ended = asyncio.run(scenario())
    assert ended.code() is grpc.StatusCode.UNAVAILABLE and "No space left" in str(ended.details())
