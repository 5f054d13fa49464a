"""A SPIRE agent as the source of certificates: entries and agents that come, go and refuse, at both of its interfaces."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.identity import Identity
from tests.ztunnel.spire_agent import DELEGATED, PROXY, WORKLOAD, Agent, der, serving
from tests.ztunnel.world import Authority
from ztunnel import delegated_identity, workload_api
from ztunnel.ca import FetchError
from ztunnel.certificates import Certificate
from ztunnel.delegated_identity import DelegatedIdentities
from ztunnel.svid import MAX_FEDERATED_ROOTS, read_federated, read_svid
from ztunnel.workload_api import WorkloadApi

pytestmark = pytest.mark.unit

WEB, DB = Identity("example.org", "demo", "web"), Identity("example.org", "demo", "db")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told by a fetch's own time-out is told too late, and a busy machine has the time it takes."""
    for module in (delegated_identity, workload_api):
        monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 600.0)


def with_agent(tmp_path: Path, authority: Any, scenario: Callable[[Agent, str], Awaitable[None]]) -> None:
    async def run() -> None:
        agent, address = Agent(authority), f"unix://{tmp_path}/a.sock"
        async with asyncio.timeout(100), serving(agent, address, DELEGATED, WORKLOAD):
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
    async with asyncio.timeout(40):
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


@pytest.mark.parametrize("kind", [DelegatedIdentities, WorkloadApi])
def test_roots_of_a_federated_domain_come_along_where_it_is_an_alias(
    tmp_path: Path, authority: Any, other_authority: Any, eventually: Any, kind: type[DelegatedIdentities] | type[WorkloadApi]
) -> None:
    async def scenario(agent: Agent, address: str) -> None:
        agent.register(WEB, *(["k8s:ns:demo"] if kind is DelegatedIdentities else PROXY))
        agent.bundles["spiffe://partner.net"] = der(other_authority.root_pem)
        agent.bundles["spiffe://stranger.net"] = der(other_authority.root_pem)
        alone, source = kind(address), kind(address, aliases=frozenset({"partner.net", "absent.net", "example.org"}))
        pushed = Heard(source).renewed
        assert (await alone.fetch(WEB, time.time())).federated == ()
        certificate = await source.fetch(WEB, time.time())
        assert certificate.federated == (("partner.net", other_authority.root_pem),)
        assert certificate.roots_pem == authority.root_pem
        root, version = der(other_authority.root_pem), bytes.fromhex("a003020102")
        for unreadable in (b"no certificates", root.replace(version, version[:-1] + b"\x05"), root * (MAX_FEDERATED_ROOTS + 1)):
            agent.bundles["spiffe://partner.net"] = unreadable
            agent.tell()
            await eventually(lambda: pushed and pushed[-1].federated == (("partner.net", b""),))
            assert (await source.fetch(WEB, time.time())).federated == (("partner.net", b""),)
            agent.bundles["spiffe://partner.net"] = root * MAX_FEDERATED_ROOTS
            agent.tell()
            await eventually(lambda: pushed[-1].federated == (("partner.net", other_authority.root_pem * MAX_FEDERATED_ROOTS),))
        agent.federates.clear()
        del agent.bundles["spiffe://partner.net"]
        agent.tell()
        await eventually(lambda: pushed[-1].federated == ())
        for one in (alone, source):
            await one.close()

    with_agent(tmp_path, authority, scenario)


def test_a_federated_root_takes_nobody_elses_name(caplog: pytest.LogCaptureFixture) -> None:
    """OpenSSL would look in it for who signed with the other's key."""
    own, partner, renewed = Authority("Mesh root"), Authority("partner root"), Authority("partner root")
    lookalike, other = Authority("mesh  ROOT"), Authority("Partner Root")
    bundles = {
        "a.net": der(lookalike.pem + partner.pem + renewed.pem + own.pem),
        "b.net": der(other.pem + renewed.pem),
        "c.net": b"\x30\x01",
    }
    found = read_federated(own.pem, bundles)
    assert found == (("a.net", partner.pem + renewed.pem + own.pem), ("b.net", renewed.pem), ("c.net", b""))
    assert [one.getMessage() for one in caplog.records if "left out" in one.getMessage()] == [
        "a root of the federated trust domain a.net has the name of one of ours: left out",
        "a root of the federated trust domain b.net has the name of one of a.net: left out",
    ]
    assert read_federated(own.pem, bundles) is found, "and not said again for each identity"


def test_a_name_is_the_same_whose_parts_come_in_another_order_where_they_have_none() -> None:
    """DER sorts them by their bytes, OpenSSL without case and further spaces."""
    own, lookalike = (
        Authority(x509.Name([x509.RelativeDistinguishedName(
            [x509.NameAttribute(NameOID.COMMON_NAME, "aa"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, spaced)]
        )]))
        for spaced in ("b", "b   ")
    )  # fmt: skip
    assert [one.oid for one in own.certificate.subject] != [one.oid for one in lookalike.certificate.subject]
    assert read_federated(own.pem, {"a.net": der(lookalike.pem)}) == (("a.net", b""),)


_OWN, _ROOT = Authority("Mesh root").pem, der(Authority("partner root").pem)


@given(place=st.integers(0, len(_ROOT) - 1), put=st.binary(max_size=4), cut=st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_what_a_federated_domain_wrote_is_read_or_left_out(place: int, put: bytes, cut: int) -> None:
    """Whatever it is, this mesh's own certificates are served with it."""
    ((domain, roots),) = read_federated(_OWN, {"partner.net": _ROOT[:place] + put + _ROOT[place + cut :]})
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=(_OWN + roots).decode())
    assert domain == "partner.net"
