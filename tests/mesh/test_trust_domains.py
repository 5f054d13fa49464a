"""One mesh under several names: a policy that means somebody means him in each of them, and nobody else."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import Identity, read_aliases
from mesh.matching import Connection, policy_matches
from mesh.policy import Action, Match, Policy, Scope, StringMatch
from mesh.trust_domains import TrustDomains

pytestmark = pytest.mark.unit

RENAMED = TrustDomains("new.org", frozenset({"old.org", "older.local"}))
MESH = ["new.org", "old.org", "older.local", "cluster.local"]


def naming(*matches: StringMatch, negative: bool = False) -> Policy:
    match = Match(not_principals=matches) if negative else Match(principals=matches)
    return Policy("demo", "p", Scope.NAMESPACE, Action.ALLOW, (((match,),),))


def means(policy: Policy, identity: Identity | None) -> bool:
    address = ip_address("10.0.0.1")
    return policy_matches(policy, Connection(address, identity, address, 80))


def web(domain: str) -> Identity:
    return Identity(domain, "demo", "web")


@pytest.mark.parametrize("written", ["new.org", "old.org", "cluster.local"])
def test_a_principal_of_one_domain_is_meant_in_all(written: str) -> None:
    policy = RENAMED.expand(naming(StringMatch("exact", f"{written}/ns/demo/sa/web")))
    assert all(means(policy, web(domain)) for domain in ("new.org", "old.org", "older.local"))
    assert not means(policy, web("other.org")) and not means(policy, Identity("new.org", "demo", "db"))
    denied = RENAMED.expand(naming(StringMatch("exact", f"{written}/ns/demo/sa/web"), negative=True))
    assert not means(denied, web("older.local")) and means(denied, None)


def test_a_principal_of_another_mesh_stays_what_it_is() -> None:
    policy = naming(StringMatch("exact", "other.org/ns/demo/sa/web"), StringMatch("presence"))
    assert RENAMED.expand(policy) is policy


@pytest.mark.parametrize("written", ["new.org", "old", "", "cluster.local/"])
def test_what_is_no_principal_of_anybody_means_nobody_in_each_domain(written: str) -> None:
    policy = RENAMED.expand(naming(StringMatch("exact", written)))
    assert not any(means(policy, web(domain)) for domain in MESH)


def test_without_an_alias_nothing_is_touched() -> None:
    policy = naming(StringMatch("exact", "cluster.local/ns/demo/sa/web"))
    assert TrustDomains("cluster.local").expand(policy) is policy
    assert means(TrustDomains("new.org").expand(policy), web("new.org")), "the name that stands for the mesh's own"


PRINCIPAL = st.builds(
    lambda domain, account: f"{domain}/ns/demo/sa/{account}",
    st.sampled_from([*MESH, "other.org"]),
    st.sampled_from(["web", "db"]),
)
WRITTEN = st.builds(
    lambda kind, text, cut: StringMatch(kind, text if kind == "exact" else text[:cut] if kind == "prefix" else text[-cut:]),
    st.sampled_from(["exact", "prefix", "suffix"]),
    PRINCIPAL,
    st.integers(1, 30),
)


@given(st.lists(WRITTEN, min_size=1, max_size=3), st.sampled_from(MESH[:3]), st.sampled_from(["web", "db"]))
def test_whoever_is_meant_in_some_domain_is_meant_in_each_and_nobody_else(
    written: list[StringMatch], domain: str, account: str
) -> None:
    policy = naming(*written)
    meant = any(means(policy, Identity(one, "demo", account)) for one in MESH)
    assert means(RENAMED.expand(policy), Identity(domain, "demo", account)) is meant


@given(st.lists(WRITTEN, min_size=1, max_size=3), st.sampled_from(["web", "db"]))
def test_strangers_gain_nothing(written: list[StringMatch], account: str) -> None:
    stranger = Identity("stranger.net", "demo", account)
    assert means(RENAMED.expand(naming(*written)), stranger) is means(naming(*written), stranger)


def test_settings() -> None:
    assert read_aliases(["a.org", " b.org ", ""]) == {"a.org", "b.org"}
    with pytest.raises(ValueError, match=r"'spiffe://a\.org': not a trust domain: write one like example\.org"):
        read_aliases(["spiffe://a.org"])
