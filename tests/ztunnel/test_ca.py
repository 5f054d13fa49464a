"""The CA client against a real gRPC server over TLS: what it sends, what it takes, what it refuses."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.identity import Identity
from mesh.proto import certificate_pb2, certificate_pb2_grpc
from tests.conftest import key_pem
from wire.grpc_tls import Endpoint, host_and_port
from ztunnel import ca as ca_client
from ztunnel.ca import CertificateClient, ExpiredError, FetchError, make_request, read_chain

pytestmark = pytest.mark.unit

WEB = Identity("cluster.local", "demo", "web")
URI = "spiffe://cluster.local/ns/demo/sa/web"


class Ca(certificate_pb2_grpc.IstioCertificateServiceServicer):
    """Signs what it is asked for, or refuses; remembers what it saw."""

    def __init__(self, authority: Any) -> None:
        self.authority = authority
        self.requests: list[certificate_pb2.IstioCertificateRequest] = []
        self.metadata: list[dict[str, str]] = []

    async def CreateCertificate(
        self, request: certificate_pb2.IstioCertificateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> certificate_pb2.IstioCertificateResponse:
        self.requests.append(request)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        uri = dict(request.metadata).get("ImpersonatedIdentity", URI)
        if "slow" in uri:
            await asyncio.Event().wait()  # until the call ends
        if "intruder" in uri:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "request impersonation authentication failure")
        key = x509.load_pem_x509_csr(request.csr.encode()).public_key()
        leaf = self.authority.workload(key, uri).decode()
        return certificate_pb2.IstioCertificateResponse(cert_chain=[leaf, self.authority.root_pem.decode()])


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not answered here was meant not to be."""
    monkeypatch.setattr(ca_client, "_TIMEOUT_S", 60.0)


def with_ca(
    tmp_path: Path, authority: Any, scenario: Callable[[Ca, Endpoint], Awaitable[None]], by_certificate: bool = False
) -> None:
    async def run() -> None:
        server, ca = grpc.aio.server(), Ca(authority)
        certificate_pb2_grpc.add_IstioCertificateServiceServicer_to_server(ca, server)
        trusted = authority.root_pem if by_certificate else None
        credentials = grpc.ssl_server_credentials([authority.server("127.0.0.1")], trusted, by_certificate)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        (tmp_path / "root.pem").write_bytes(authority.root_pem)
        (tmp_path / "token").write_text("first\n")
        async with asyncio.timeout(100):
            await scenario(ca, Endpoint(f"127.0.0.1:{port}", tmp_path / "root.pem", tmp_path / "token", "Kubernetes"))
        await server.stop(None)

    asyncio.run(run())


def test_either_name_of_the_server_will_do(tmp_path: Path, authority: Any) -> None:
    """At once, and for as many as ask at a time."""

    async def scenario(ca: Ca, endpoint: Endpoint) -> None:
        for name in ("127.0.0.1", "somebody.else"):
            client = CertificateClient(replace(endpoint, server_name=name), ttl_s=60)
            found = await asyncio.gather(*(client.fetch(WEB, time.time()) for _ in range(8)))
            assert [one.identity for one in found] == [WEB] * 8
            before = len(ca.requests)
            with pytest.raises(FetchError, match="unauthenticated"):
                await client.fetch(Identity("cluster.local", "demo", "intruder"), time.time())
            assert len(ca.requests) == before + 1, "a refusal is an answer"
            await client.close()

    with_ca(tmp_path, authority, scenario)


def test_a_fetch_that_ends_as_another_goes_over_to_the_other_name_goes_over_too(
    tmp_path: Path, authority: Any, eventually: Any
) -> None:
    async def scenario(ca: Ca, endpoint: Endpoint) -> None:
        client = CertificateClient(replace(endpoint, server_name="somebody.else"), ttl_s=60)
        connecting, reach = asyncio.Event(), client._ask

        async def is_cut_off(message: certificate_pb2.IstioCertificateRequest) -> certificate_pb2.IstioCertificateResponse:
            connecting.set()
            await eventually(lambda: client._unreached)
            client._ask = reach  # type: ignore[method-assign]
            raise asyncio.CancelledError  # as a call does whose channel is closed

        client._ask = is_cut_off  # type: ignore[method-assign]
        slow = asyncio.create_task(client.fetch(WEB, time.time()))
        await connecting.wait()
        client._ask = reach  # type: ignore[method-assign]
        assert [one.identity for one in await asyncio.gather(slow, client.fetch(WEB, time.time()))] == [WEB] * 2
        assert client._unreached == 1 and len(ca.requests) == 2
        await client.close()

    with_ca(tmp_path, authority, scenario)


def test_a_certificate_with_every_credential_read_anew(tmp_path: Path, authority: Any, other_authority: Any) -> None:
    async def scenario(ca: Ca, endpoint: Endpoint) -> None:
        client = CertificateClient(endpoint, ttl_s=86_400)
        certificate = await client.fetch(WEB, time.time())
        assert certificate.identity == WEB and certificate.roots_pem == authority.root_pem
        assert certificate.not_after - certificate.not_before == pytest.approx(86_400 + 120)
        (tmp_path / "token").write_text("second")
        await client.fetch(WEB, time.time())
        assert [row["authorization"] for row in ca.metadata] == ["Bearer first", "Bearer second"]
        assert ca.metadata[0]["clusterid"] == "Kubernetes"
        assert ca.requests[0].validity_duration == 86_400 and ca.requests[0].csr != ca.requests[1].csr
        with pytest.raises(FetchError, match="unauthenticated: request impersonation authentication failure"):
            await client.fetch(Identity("cluster.local", "demo", "intruder"), time.time())
        (tmp_path / "root.pem").write_bytes(other_authority.root_pem)
        with pytest.raises(FetchError, match=r"CA 127.0.0.1:\d+: spiffe://.*: unavailable: .*"):
            await client.fetch(WEB, time.time())
        (tmp_path / "root.pem").write_text("nonsense")
        with pytest.raises(FetchError, match=r"root.pem: holds no PEM certificate: write control's root"):
            await client.fetch(WEB, time.time())
        (tmp_path / "root.pem").write_bytes(authority.root_pem)
        (tmp_path / "token").unlink()
        with pytest.raises(FetchError, match=r"token: No such file or directory: write the node's token into it"):
            await client.fetch(WEB, time.time())
        await client.close()

    with_ca(tmp_path, authority, scenario)


def test_a_client_certificate_instead_of_a_token(tmp_path: Path, authority: Any, other_authority: Any) -> None:
    def install(issuer: Any) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        (tmp_path / "key.pem").write_bytes(key_pem(key))
        (tmp_path / "cert-chain.pem").write_bytes(issuer.workload(key.public_key(), "spiffe://cluster.local/node/n1"))

    async def scenario(ca: Ca, endpoint: Endpoint) -> None:
        client = CertificateClient(replace(endpoint, client_folder=tmp_path), ttl_s=60)
        with pytest.raises(FetchError, match=r"key\.pem: No such file or directory: write this node's key into it"):
            await client.fetch(WEB, time.time())
        install(other_authority)
        with pytest.raises(FetchError, match="unavailable"):
            await client.fetch(WEB, time.time())
        install(authority)
        assert (await client.fetch(WEB, time.time())).identity == WEB, "the new pair is shown at once"
        (tmp_path / "token").unlink()
        await client.fetch(WEB, time.time())
        assert ["authorization" in row for row in ca.metadata] == [True, False]
        (tmp_path / "key.pem").write_text("nothing")
        with pytest.raises(FetchError, match=r"key\.pem: holds no private key in PEM: write this node's own"):
            await client.fetch(WEB, time.time())
        await client.close()

    with_ca(tmp_path, authority, scenario, by_certificate=True)


def test_who_has_one_identity_impersonates_nobody(tmp_path: Path, authority: Any) -> None:
    async def scenario(ca: Ca, endpoint: Endpoint) -> None:
        client = CertificateClient(endpoint, ttl_s=60, impersonates=False)
        assert (await client.fetch(WEB, time.time())).identity == WEB
        assert not ca.requests[0].metadata.fields
        with pytest.raises(FetchError, match=f"issued {URI} instead of"):
            await client.fetch(WEB._replace(service_account="db"), time.time())
        await client.close()

    with_ca(tmp_path, authority, scenario)


def test_a_new_root_ends_fetches_under_way_with_a_reason(tmp_path: Path, authority: Any, eventually: Any) -> None:
    async def scenario(ca: Ca, endpoint: Endpoint) -> None:
        client = CertificateClient(endpoint, ttl_s=1)
        slow = asyncio.ensure_future(client.fetch(Identity("cluster.local", "demo", "slow"), time.time()))
        await eventually(lambda: ca.requests)
        (tmp_path / "root.pem").write_bytes(authority.root_pem * 2)
        assert (await client.fetch(WEB, time.time())).identity == WEB
        with pytest.raises(FetchError, match="the connection was replaced meanwhile"):
            await slow
        cancelled = asyncio.ensure_future(client.fetch(Identity("cluster.local", "demo", "slow"), time.time()))
        await eventually(lambda: len(ca.requests) == 3)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        left = asyncio.ensure_future(client.fetch(Identity("cluster.local", "demo", "slow"), time.time()))
        await eventually(lambda: len(ca.requests) == 4)
        await client.close()
        with pytest.raises(FetchError, match="the connection was replaced meanwhile"):
            await left

    with_ca(tmp_path, authority, scenario)


def test_csr_has_one_critical_identity_and_no_subject() -> None:
    key, pem = make_request(WEB)
    request = x509.load_pem_x509_csr(pem)
    assert request.is_signature_valid and len(request.subject) == 0 and isinstance(key.curve, ec.SECP256R1)
    (extension,) = request.extensions
    assert extension.critical and isinstance(extension.value, x509.SubjectAlternativeName)
    assert [name.value for name in extension.value] == [URI]


def test_empty_chain_wrong_identity_and_what_else_the_ca_must_not_answer(authority: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = authority.workload(key.public_key(), URI).decode()
    roots = authority.root_pem.decode()
    foreign = authority.workload(key.public_key(), "spiffe://cluster.local/ns/demo/sa/db", URI).decode()
    bare = authority.workload(key.public_key()).decode()
    old = authority.workload(key.public_key(), URI, ttl=timedelta(seconds=-1)).decode()
    stolen = authority.workload(ec.generate_private_key(ec.SECP256R1()).public_key(), URI).decode()
    for chain, reason in [
        ([], "has 0 elements: expected leaf and roots"),
        ([leaf], "has 1 elements: expected leaf and roots"),
        ([leaf, "no PEM"], "cannot be read"),
        ([leaf, "no PEM", roots], "cannot be read"),
        ([bare, roots], "cannot be read: No .*SubjectAlternativeName"),
        ([authority.server("127.0.0.1")[1].decode(), roots], f"issued no identity instead of {URI}"),
        ([foreign, roots], f"issued spiffe://cluster.local/ns/demo/sa/db instead of {URI}"),
        ([stolen, roots], "another key than ours"),
        ([old, roots], "not valid now: compare this node's clock"),
        ([leaf, "x" * (1 << 20)], "beyond 1048576 bytes"),
    ]:
        with pytest.raises(FetchError, match=reason):
            read_chain(WEB, key, chain, time.time())
    whole = read_chain(WEB, key, [leaf, roots, roots, roots * 2], time.time())
    assert whole.chain_pem.decode() == leaf + roots * 2 and whole.roots_pem.decode() == roots * 2
    joined = read_chain(WEB, key, [leaf + roots, roots], time.time())
    assert joined.chain_pem.decode() == leaf + roots, "an element may hold several blocks"


def test_a_certificate_is_valid_from_its_first_second_to_before_its_last(authority: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    chain = [authority.workload(key.public_key(), URI).decode(), authority.root_pem.decode()]
    whole = read_chain(WEB, key, chain, time.time())
    for now in (whole.not_before, whole.not_after - 1):
        assert read_chain(WEB, key, chain, now) == whole
    with pytest.raises(ExpiredError):
        read_chain(WEB, key, chain, whole.not_after)
    with pytest.raises(FetchError, match="not valid now") as early:
        read_chain(WEB, key, chain, whole.not_before - 1)
    assert not isinstance(early.value, ExpiredError), "a clock that is behind ends nothing that is in force"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://istiod.istio-system.svc:15012", "istiod.istio-system.svc:15012"),
        ("10.0.0.1", "10.0.0.1:15012"),
        ("https://istiod.example", "istiod.example:443"),
        ("https://istiod.example/", "istiod.example:443"),
        ("https://[fd00::1]", "[fd00::1]:443"),
        ("[fd00::1]:99", "[fd00::1]:99"),
        ("[fd00::1]", "[fd00::1]:15012"),
    ],
)
def test_addresses(value: str, expected: str) -> None:
    assert host_and_port("XDS_ADDRESS", value, 15012) == expected


@pytest.mark.parametrize(
    "value", ["", "http://x:1", "x:", "x:0", "x:99999", "x:\N{SUPERSCRIPT TWO}", "fd00::1", "a/b:1", "x y:1", "x\t:1"]
)
def test_what_is_no_address(value: str) -> None:
    with pytest.raises(ValueError, match=r"XDS_ADDRESS=.*write https://HOST:PORT"):
        host_and_port("XDS_ADDRESS", value, 15012)
