"""A SPIRE agent as the source of certificates, played by a real gRPC server on a unix socket that speaks its two interfaces."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh.identity import Identity
from mesh.proto import delegated_identity_pb2 as delegated
from mesh.proto import delegated_identity_pb2_grpc, spiffe_workload_pb2_grpc, spire_types_pb2
from mesh.proto import spiffe_workload_pb2 as workload
from ztunnel.ca import FetchError
from ztunnel.certificates import Certificate
from ztunnel.delegated_identity import DelegatedIdentities
from ztunnel.svid import read_svid
from ztunnel.workload_api import WorkloadApi

pytestmark = pytest.mark.unit

WEB, DB = Identity("example.org", "demo", "web"), Identity("example.org", "demo", "db")


def der(pem: bytes) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem))


class Agent(delegated_identity_pb2_grpc.DelegatedIdentityServicer, spiffe_workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Entries by selectors; every subscriber gets every change."""

    def __init__(self, authority: Any) -> None:
        self.authority = authority
        self.bundles = {"spiffe://example.org": der(authority.root_pem), "spiffe://partner.net": b"never to be trusted"}
        self.entries: dict[frozenset[str], list[Identity]] = {}
        self.keys: dict[Identity, tuple[ec.EllipticCurvePrivateKey, bytes]] = {}
        self.subscribed: list[frozenset[str]] = []
        self.open = 0
        self.refusal = ""
        self.changed = asyncio.Event()

    def register(self, identity: Identity, *selectors: str) -> None:
        self.entries.setdefault(frozenset(selectors), []).append(identity)
        self.renew(identity)

    def renew(self, identity: Identity, ttl: timedelta = timedelta(hours=1)) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.keys[identity] = (key, der(self.authority.workload(key.public_key(), str(identity), ttl=ttl)))
        self.tell()

    def tell(self) -> None:
        waiters, self.changed = self.changed, asyncio.Event()
        waiters.set()

    def key_der(self, identity: Identity) -> bytes:
        return self.keys[identity][0].private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    async def _pushed(self, context: Any, make: Callable[[], Any]) -> AsyncIterator[Any]:
        if self.refusal:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self.refusal)
        self.open += 1
        try:
            while True:
                changed = self.changed
                yield make()
                await changed.wait()
        finally:
            self.open -= 1

    async def SubscribeToX509SVIDs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        selectors = frozenset(f"{one.type}:{one.value}" for one in request.selectors)
        self.subscribed.append(selectors)
        async for message in self._pushed(context, lambda: self._delegated(selectors)):
            yield message

    def _delegated(self, selectors: frozenset[str]) -> Any:
        found = [identity for entry, owners in self.entries.items() if entry <= selectors for identity in owners]
        return delegated.SubscribeToX509SVIDsResponse(
            x509_svids=[
                delegated.X509SVIDWithKey(
                    x509_svid=spire_types_pb2.X509SVID(
                        cert_chain=[self.keys[one][1]],
                        id=spire_types_pb2.SPIFFEID(
                            trust_domain=one.trust_domain, path=str(one).removeprefix(f"spiffe://{one.trust_domain}")
                        ),
                    ),
                    x509_svid_key=self.key_der(one),
                )
                for one in found
            ],
            federates_with=["partner.net"],
        )

    async def SubscribeToX509Bundles(self, _: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._pushed(
            context, lambda: delegated.SubscribeToX509BundlesResponse(ca_certificates=self.bundles)
        ):
            yield message

    async def FetchX509SVID(self, _: Any, context: Any) -> AsyncIterator[Any]:
        if ("workload.spiffe.io", "true") not in {(key, value) for key, value in context.invocation_metadata()}:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        async for message in self._pushed(context, self._own):
            yield message

    def _own(self) -> Any:
        bundle = self.bundles["spiffe://example.org"]
        return workload.X509SVIDResponse(
            svids=[
                workload.X509SVID(
                    spiffe_id=str(one), x509_svid=self.keys[one][1], x509_svid_key=self.key_der(one), bundle=bundle
                )
                for one in self.keys
            ]
        )


def with_agent(tmp_path: Path, authority: Any, scenario: Callable[[Agent, str], Awaitable[None]]) -> None:
    async def run() -> None:
        server, agent = grpc.aio.server(), Agent(authority)
        delegated_identity_pb2_grpc.add_DelegatedIdentityServicer_to_server(agent, server)
        spiffe_workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(agent, server)
        address = f"unix://{tmp_path}/a.sock"
        server.add_insecure_port(address)
        await server.start()
        async with asyncio.timeout(30):
            await scenario(agent, address)
        await server.stop(None)

    asyncio.run(run())


def test_spire_certificates_by_namespace_and_service_account(tmp_path: Path, authority: Any) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.register(DB, "k8s:ns:demo")
        agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
        source = DelegatedIdentities(address)
        certificate = await source.fetch(WEB, time.time())
        assert agent.subscribed == [{"k8s:ns:demo", "k8s:sa:web"}]
        assert certificate.identity == WEB and der(certificate.chain_pem) == agent.keys[WEB][1]
        assert der(certificate.roots_pem) == der(authority.root_pem), "its own trust domain's, and no partner's"
        with pytest.raises(
            FetchError, match=r"no entry gives k8s:ns:shop and k8s:sa:web the identity .*/ns/shop/sa/web: register it"
        ):
            await source.fetch(Identity("example.org", "shop", "web"), time.time())
        with pytest.raises(FetchError, match=r"no entry gives .* the identity spiffe://other"):
            await source.fetch(Identity("other.org", "demo", "web"), time.time())
        await source.close()

    with_agent(tmp_path, authority, scenario)


def test_spire_pushes_renewals_and_new_bundles_until_the_identity_is_forgotten(
    tmp_path: Path, authority: Any, other_authority: Any, eventually: Any
) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
        source, pushed = DelegatedIdentities(address), list[Certificate]()
        source.on_renewal(pushed.append)
        first = await source.fetch(WEB, time.time())
        agent.renew(WEB)
        await eventually(lambda: pushed)
        assert pushed[0].chain_pem != first.chain_pem and pushed[0].roots_pem == first.roots_pem
        agent.bundles["spiffe://example.org"] += der(other_authority.root_pem)
        agent.tell()
        await eventually(lambda: len(pushed) == 2)
        assert pushed[1].chain_pem == pushed[0].chain_pem
        assert pushed[1].roots_pem == authority.root_pem + other_authority.root_pem, "both, while the root is replaced"
        assert await source.fetch(WEB, time.time()) == pushed[1] and len(agent.subscribed) == 1
        assert agent.open == 2
        source.forget(WEB)
        await eventually(lambda: agent.open == 1)
        agent.renew(WEB)
        agent.tell()
        assert len(pushed) == 2
        await source.close()
        await eventually(lambda: agent.open == 0)

    with_agent(tmp_path, authority, scenario)


async def tried(source: DelegatedIdentities) -> Certificate | None:
    try:
        return await source.fetch(WEB, time.time())
    except FetchError:
        return None


def test_spire_that_refuses_or_is_away_is_a_reason_and_asked_again(tmp_path: Path, authority: Any, eventually: Any) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
        agent.refusal = "caller not configured as an authorized delegate"
        source = DelegatedIdentities(address)
        with pytest.raises(FetchError, match=r"SPIRE unix://.*: permission denied: caller not configured as an authorized"):
            await source.fetch(WEB, time.time())
        agent.refusal = ""
        found = None
        for _ in range(500):  # it asks again when its pause is over
            found = found or await tried(source)
            await asyncio.sleep(0 if found else 0.01)
        assert found is not None and found.identity == WEB
        away = DelegatedIdentities(f"unix://{tmp_path}/nobody.sock")
        with pytest.raises(FetchError, match="unavailable"):
            await away.fetch(WEB, time.time())
        await source.close()
        await away.close()

    with_agent(tmp_path, authority, scenario)


def test_the_workload_api_gives_this_proxys_own_identities_and_their_renewals(
    tmp_path: Path, authority: Any, eventually: Any
) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.renew(WEB)
        source, pushed = WorkloadApi(address), list[Certificate]()
        source.on_renewal(pushed.append)
        first = await source.fetch(WEB, time.time())
        assert (first.identity, first.roots_pem) == (WEB, authority.root_pem)
        with pytest.raises(FetchError, match=f"this proxy is not entitled to {DB}, only to {WEB}"):
            await source.fetch(DB, time.time())
        agent.renew(WEB)
        await eventually(lambda: pushed)
        assert der(pushed[0].chain_pem) == agent.keys[WEB][1]
        source.forget(WEB)
        agent.renew(WEB)
        agent.renew(DB)
        assert (await source.fetch(WEB, time.time())).identity == WEB and len(pushed) == 1
        await source.close()

    with_agent(tmp_path, authority, scenario)


def test_what_an_agent_must_not_say(authority: Any, other_authority: Any) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    leaf, roots = der(authority.workload(key.public_key(), str(WEB))), der(authority.root_pem)
    assert read_svid(WEB, [leaf], private, roots, time.time()).key_pem.startswith(b"-----BEGIN PRIVATE KEY")
    stranger = der(authority.workload(key.public_key(), str(DB)))
    for chain, shown, bundle, reason in (
        ([], private, roots, "has no certificate"),
        ([leaf], private, b"", "has no roots"),
        ([leaf], private, b"x" * 1000, "cannot be read"),
        ([leaf], private, b"x" * ((1 << 20) + 1), "beyond 1048576 bytes"),
        ([leaf], b"no key", roots, "cannot be read"),
        ([b"no certificate"], private, roots, "cannot be read"),
        ([stranger], private, roots, f"issued {DB} instead of {WEB}"),
        ([leaf], ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
         roots, "another key than ours"),
    ):  # fmt: skip
        with pytest.raises(FetchError, match=reason):
            read_svid(WEB, chain, shown, bundle, time.time())
