"""A SPIRE agent as the source of certificates, played by a real gRPC server on a unix socket that speaks its two interfaces.

It answers as SPIRE 1.16 was seen to: who subscribes hears nothing before all of its entries have documents; later on it hears
of each change as it comes, so also of an entry whose document is not signed yet, as of nobody.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
PROXY = frozenset({"unix:uid:0"})
"""What the agent finds out about the caller of its Workload API."""
LATER = b"\xfa\x07\x05field"
"""A field of a version to come: number 127."""


def der(pem: bytes) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem))


class Agent(delegated_identity_pb2_grpc.DelegatedIdentityServicer, spiffe_workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Entries by selectors, and their documents; every subscriber gets every change."""

    def __init__(self, authority: Any) -> None:
        self.authority = authority
        self.bundles = {"spiffe://example.org": der(authority.root_pem), "spiffe://partner.net": b"never to be trusted"}
        self.entries: dict[frozenset[str], list[Identity]] = {}
        self.keys: dict[Identity, tuple[ec.EllipticCurvePrivateKey, bytes]] = {}
        self.subscribed: list[frozenset[str]] = []
        self.asked = 0
        """Streams of the Workload API."""
        self.open = 0
        self.refusal = ""
        self.changed = asyncio.Event()

    def register(self, identity: Identity, *selectors: str) -> None:
        self.entries.setdefault(frozenset(selectors), []).append(identity)
        self.renew(identity)

    def delete(self, identity: Identity) -> None:
        for owners in self.entries.values():
            owners[:] = [one for one in owners if one != identity]
        self.unsign(identity)

    def unsign(self, identity: Identity) -> None:
        """As where an entry is replaced, or the key is tainted that signed its document: the next one is on its way."""
        del self.keys[identity]
        self.tell()

    def renew(self, identity: Identity, ttl: timedelta = timedelta(hours=1)) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.keys[identity] = (key, der(self.authority.workload(key.public_key(), str(identity), ttl=ttl)))
        self.tell()

    def tell(self) -> None:
        waiters, self.changed = self.changed, asyncio.Event()
        waiters.set()

    def key_der(self, identity: Identity) -> bytes:
        return self.keys[identity][0].private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def entitled(self, selectors: frozenset[str]) -> list[Identity]:
        return [identity for entry, owners in self.entries.items() if entry <= selectors for identity in owners]

    async def _pushed(
        self, context: Any, make: Callable[[], Any], entitled: Callable[[], list[Identity]] = list
    ) -> AsyncIterator[Any]:
        if self.refusal:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self.refusal)
        self.open += 1
        try:
            while not all(one in self.keys for one in entitled()):
                await self.changed.wait()
            while not self.refusal:  # asked again before each push
                changed = self.changed
                yield make()
                await changed.wait()
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self.refusal)
        finally:
            self.open -= 1

    async def SubscribeToX509SVIDs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        selectors = frozenset(f"{one.type}:{one.value}" for one in request.selectors)
        self.subscribed.append(selectors)
        async for message in self._pushed(context, lambda: self._delegated(selectors), lambda: self.entitled(selectors)):
            yield message

    def _delegated(self, selectors: frozenset[str]) -> Any:
        said = delegated.SubscribeToX509SVIDsResponse(
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
                for one in self.entitled(selectors)
                if one in self.keys
            ],
            federates_with=["partner.net"],
        ).SerializeToString()
        return delegated.SubscribeToX509SVIDsResponse.FromString(said + LATER)

    async def SubscribeToX509Bundles(self, _: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._pushed(
            context, lambda: delegated.SubscribeToX509BundlesResponse(ca_certificates=self.bundles)
        ):
            yield message

    async def FetchX509SVID(self, _: Any, context: Any) -> AsyncIterator[Any]:
        self.asked += 1
        if ("workload.spiffe.io", "true") not in {(key, value) for key, value in context.invocation_metadata()}:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        async for message in self._pushed(context, self._own, lambda: self.entitled(PROXY)):
            if not message.svids:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
            yield message

    def _own(self) -> Any:
        bundle = self.bundles["spiffe://example.org"]
        said = workload.X509SVIDResponse(
            svids=[
                workload.X509SVID(
                    spiffe_id=str(one), x509_svid=self.keys[one][1], x509_svid_key=self.key_der(one), bundle=bundle
                )
                for one in self.entitled(PROXY)
                if one in self.keys
            ]
        ).SerializeToString()
        return workload.X509SVIDResponse.FromString(said + LATER)


class Unknown(grpc.GenericRpcHandler):
    """What is not served, in the words of SPIRE's servers."""

    def service(self, call: Any) -> Any:
        async def refuse(_: bytes, context: Any) -> AsyncIterator[bytes]:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"unknown service {call.method.split('/')[1]}")
            yield b""

        return grpc.unary_stream_rpc_method_handler(refuse)


@asynccontextmanager
async def serving(agent: Agent, address: str, *services: Callable[[Any, Any], None]) -> AsyncIterator[None]:
    server = grpc.aio.server()
    for add in services:
        add(agent, server)
    server.add_generic_rpc_handlers((Unknown(),))
    server.add_insecure_port(address)
    await server.start()
    yield
    await server.stop(None)


DELEGATED = delegated_identity_pb2_grpc.add_DelegatedIdentityServicer_to_server
WORKLOAD = spiffe_workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server


def with_agent(tmp_path: Path, authority: Any, scenario: Callable[[Agent, str], Awaitable[None]]) -> None:
    async def run() -> None:
        agent, address = Agent(authority), f"unix://{tmp_path}/a.sock"
        async with asyncio.timeout(30), serving(agent, address, DELEGATED, WORKLOAD):
            await scenario(agent, address)

    asyncio.run(run())


class Heard:
    """What a source tells unasked."""

    def __init__(self, source: DelegatedIdentities | WorkloadApi) -> None:
        self.renewed: list[Certificate] = []
        self.withdrawn: list[tuple[Identity, str]] = []
        source.on_renewal(self.renewed.append, lambda identity, reason: self.withdrawn.append((identity, reason)))


async def refusal(source: DelegatedIdentities | WorkloadApi, identity: Identity = WEB) -> str:
    """Why there is no certificate: at once, for nobody else's fetch should wait behind it."""
    async with asyncio.timeout(5):
        with pytest.raises(FetchError) as caught:
            await source.fetch(identity, time.time())
    return str(caught.value)


async def trouble(source: WorkloadApi) -> str:
    """Why there is no certificate, if there is none."""
    try:
        await source.fetch(WEB, time.time())
    except FetchError as error:
        return str(error)
    return ""


def test_spire_certificates_by_namespace_and_service_account(tmp_path: Path, authority: Any) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.register(DB, "k8s:ns:demo")
        agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
        source = DelegatedIdentities(address)
        certificate = await source.fetch(WEB, time.time())
        assert agent.subscribed == [{"k8s:ns:demo", "k8s:sa:web"}]
        assert certificate.identity == WEB and der(certificate.chain_pem) == agent.keys[WEB][1]
        assert der(certificate.roots_pem) == der(authority.root_pem), "its own trust domain's, and no partner's"
        reason = f"SPIRE {address}: no entry for k8s:ns:shop, k8s:sa:web gives the identity spiffe://example.org/ns/shop/sa/web"
        for _ in range(2):  # whoever asks again hears the same
            assert await refusal(source, Identity("example.org", "shop", "web")) == f"{reason}: register one"
        other = await refusal(source, Identity("example.org", "demo", "cache"))
        assert other.endswith(f"gives the identity spiffe://example.org/ns/demo/sa/cache, only {DB}: register one")
        assert (await refusal(source, Identity("other.org", "demo", "web"))).endswith(
            "no bundle of trust domain other.org, only of example.org, partner.net: set TRUST_DOMAIN, of proxies and control, "
            "to the agent's"
        )
        await source.close()

    with_agent(tmp_path, authority, scenario)


def test_spire_pushes_renewals_and_new_bundles_until_the_identity_is_forgotten(
    tmp_path: Path, authority: Any, other_authority: Any, eventually: Any
) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
        source = DelegatedIdentities(address)
        pushed = Heard(source).renewed
        first = await source.fetch(WEB, time.time())
        pushed.clear()
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


def test_an_entry_that_comes_later_is_heard_of_at_once(tmp_path: Path, authority: Any, eventually: Any) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        for source in (DelegatedIdentities(address), WorkloadApi(address)):
            heard = Heard(source)
            await refusal(source)
            agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
            agent.register(WEB, *PROXY)
            await eventually(lambda heard=heard: heard.renewed)
            assert heard.renewed[0].identity == WEB and not heard.withdrawn
            await source.close()
            agent.delete(WEB)

    with_agent(tmp_path, authority, scenario)


def test_a_deleted_entrys_identity_is_withdrawn(tmp_path: Path, authority: Any, eventually: Any) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        cases = (
            (DelegatedIdentities(address), f"no entry for k8s:ns:demo, k8s:sa:web gives the identity {WEB}: register one"),
            (WorkloadApi(address), f"this proxy is not entitled to {WEB}, only to {DB}"),
            (WorkloadApi(address), "permission denied: no identity issued: register an entry of this node whose selectors are "
                                   "this proxy's"),
        )  # fmt: skip
        for index, (source, reason) in enumerate(cases):
            agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
            agent.register(WEB, *PROXY)
            if index == 1:
                agent.register(DB, *PROXY)
            heard = Heard(source)
            await source.fetch(WEB, time.time())
            agent.delete(WEB)
            await eventually(lambda heard=heard: heard.withdrawn)
            ((identity, said),) = heard.withdrawn
            assert identity == WEB and said.endswith(reason) and (await refusal(source)).endswith(reason)
            if index == 1:
                agent.delete(DB)
            await source.close()

    with_agent(tmp_path, authority, scenario)


def test_a_replaced_entrys_identity_goes_on_with_what_it_had(tmp_path: Path, authority: Any, eventually: Any) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
        agent.register(WEB, *PROXY)
        for source in (DelegatedIdentities(address), WorkloadApi(address)):
            heard = Heard(source)
            first = await source.fetch(WEB, time.time())
            heard.renewed.clear()
            streams = len(agent.subscribed) + agent.asked
            agent.unsign(WEB)
            await eventually(lambda before=streams: len(agent.subscribed) + agent.asked > before)
            assert await source.fetch(WEB, time.time()) == first
            agent.renew(WEB)
            await eventually(lambda heard=heard: heard.renewed)
            assert heard.renewed[0].chain_pem != first.chain_pem and not heard.withdrawn
            await source.close()

    with_agent(tmp_path, authority, scenario)


def test_who_could_not_be_attested_anew_goes_on_with_what_it_had(tmp_path: Path, authority: Any, eventually: Any) -> None:
    """An agent that starts while the kubelet is away takes this process for nobody, or for less than it is."""

    async def scenario() -> None:
        agent, address = Agent(authority), f"unix://{tmp_path}/a.sock"
        agent.register(WEB, *PROXY)
        source = WorkloadApi(address)
        heard = Heard(source)
        async with serving(agent, address, WORKLOAD):
            await source.fetch(WEB, time.time())
        agent.delete(WEB)
        asked = agent.asked
        async with serving(agent, address, WORKLOAD):
            await eventually(lambda: agent.asked >= asked + 2)  # refused, and refused again
        agent.register(DB, *PROXY)
        async with serving(agent, address, WORKLOAD):
            while "only to" not in await trouble(source):  # noqa: ASYNC110  nobody is told of what changes nothing
                await asyncio.sleep(0.01)
        agent.register(WEB, *PROXY)
        heard.renewed.clear()
        async with serving(agent, address, WORKLOAD):
            await eventually(lambda: heard.renewed)
            await source.close()
        assert not heard.withdrawn

    asyncio.run(scenario())


def test_entries_of_single_pods_are_found_by_the_uids_of_those_on_this_node(
    tmp_path: Path, authority: Any, eventually: Any
) -> None:
    """As SPIRE's controller manager registers every pod."""

    async def scenario(agent: Agent, address: str) -> None:
        agent.register(WEB, "k8s:pod-uid:u2")
        pods = {"u1"}
        source = DelegatedIdentities(address, lambda identity: pods if identity == WEB else set())
        heard = Heard(source)
        assert "no entry for k8s:ns:demo, k8s:sa:web, k8s:pod-uid:u1 gives" in await refusal(source)
        await refusal(source, DB)
        pods = {"u1", "u2"}
        source.residents_changed()
        await eventually(lambda: heard.renewed)
        assert agent.subscribed[2:] == [{"k8s:ns:demo", "k8s:sa:web", "k8s:pod-uid:u1", "k8s:pod-uid:u2"}]
        # The one pod leaves, another has come: its entry is found when the former one's is deleted.
        agent.register(WEB, "k8s:pod-uid:u3")
        pods = {"u3"}
        source.residents_changed()
        agent.entries[frozenset({"k8s:pod-uid:u2"})] = []
        agent.tell()
        await eventually(lambda: len(agent.subscribed) == 4)
        assert (await source.fetch(WEB, time.time())).identity == WEB and not heard.withdrawn
        await source.close()

    with_agent(tmp_path, authority, scenario)


def test_an_agent_that_was_away_is_found_again_and_blamed_for_what_expired_meanwhile(
    tmp_path: Path, authority: Any, eventually: Any
) -> None:
    async def scenario() -> None:
        agent, address, late = Agent(authority), f"unix://{tmp_path}/a.sock", False
        agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
        agent.register(WEB, *PROXY)

        def clock() -> float:
            return time.time() + late * 7200

        sources = DelegatedIdentities(address, clock=clock), WorkloadApi(address, clock)
        heard = [Heard(source) for source in sources]
        async with serving(agent, address, DELEGATED, WORKLOAD):
            first = [await source.fetch(WEB, time.time()) for source in sources]
            late = True  # the agent itself is left alone
            for source in sources:
                assert await refusal(source) == f"the agent's document of {WEB} has expired: does the agent reach its server?"
            late = False
        await eventually(lambda: agent.open == 0)
        assert [await source.fetch(WEB, time.time()) for source in sources] == first
        late = True
        for source in sources:
            reason = ""
            while "unavailable: No such file or directory: is the agent up, and its socket at this path?" not in reason:
                reason = await refusal(source)
                await asyncio.sleep(0.01)
        for one in heard:
            one.renewed.clear()
        agent.renew(WEB, timedelta(hours=3))
        async with serving(agent, address, DELEGATED, WORKLOAD):
            await eventually(lambda: all(one.renewed for one in heard))
            for source in sources:
                await source.close()
        assert not any(one.withdrawn for one in heard)

    asyncio.run(scenario())


def test_spire_that_refuses_is_a_reason_with_its_mend_and_asked_again(
    tmp_path: Path, authority: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.register(WEB, "k8s:ns:demo", "k8s:sa:web")
        for refused, mend in (
            (
                "caller not configured as an authorized delegate",
                "name this proxy's SPIFFE ID in the agent's authorized_delegates",
            ),
            ("no identity issued", "register an entry of this node whose selectors are this proxy's"),
        ):
            agent.refusal = refused
            source = DelegatedIdentities(address)
            heard = Heard(source)
            assert await refusal(source) == f"SPIRE {address}: permission denied: {refused}: {mend}"
            agent.refusal = ""
            await eventually(lambda heard=heard: heard.renewed)
            caplog.clear()
            agent.refusal = refused  # what is there is nobody else's for that, but somebody should know before it expires
            agent.tell()
            said = f"SPIRE {address}: permission denied: {refused}: {mend}"
            await eventually(lambda said=said: caplog.messages.count(said) == 1)
            assert (await source.fetch(WEB, time.time())).identity == WEB and not heard.withdrawn
            await source.close()

    with_agent(tmp_path, authority, scenario)


def test_one_socket_named_for_the_other_is_told_by_its_setting(tmp_path: Path, authority: Any) -> None:
    async def scenario() -> None:
        agent, admin, public = Agent(authority), f"unix://{tmp_path}/admin.sock", f"unix://{tmp_path}/public.sock"
        async with serving(agent, admin, DELEGATED), serving(agent, public, WORKLOAD):
            for source, mend in (
                (DelegatedIdentities(public), "SPIRE_ADMIN_SOCKET must be the agent's admin_socket_path"),
                (WorkloadApi(admin), "SPIFFE_ENDPOINT_SOCKET must be the agent's socket_path"),
            ):
                assert mend in await refusal(source)
                await source.close()

    asyncio.run(scenario())


def test_the_workload_api_gives_this_proxys_own_identities_and_their_renewals(
    tmp_path: Path, authority: Any, eventually: Any
) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.register(WEB, *PROXY)
        source = WorkloadApi(address)
        pushed = Heard(source).renewed
        first = await source.fetch(WEB, time.time())
        pushed.clear()
        assert (first.identity, first.roots_pem) == (WEB, authority.root_pem)
        assert await refusal(source, DB) == f"Workload API {address}: this proxy is not entitled to {DB}, only to {WEB}"
        agent.renew(WEB)
        await eventually(lambda: pushed)
        assert der(pushed[0].chain_pem) == agent.keys[WEB][1]
        source.forget(WEB)
        source.forget(DB)
        agent.renew(WEB)
        agent.register(DB, *PROXY)
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
