"""The truth table of L4 authorization, case by case as Istio's ztunnel decides it."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import policy_store
from mesh.identity import Identity
from mesh.matching import Connection, peer_of, policy_matches
from mesh.policy import Action, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch
from mesh.policy_set import PolicyGroup, PolicySet, Verdict, evaluate
from mesh.policy_store import PolicyStore
from mesh.workload import Workload

pytestmark = pytest.mark.unit

TLS = Connection(ip_address("127.0.0.1"), Identity("td", "namespace", "account"), ip_address("127.0.0.2"), 8080)
OTHER = TLS._replace(identity=Identity("td2", "elsewhere", "other"), source=ip_address("fd00::1"))
PLAIN = TLS._replace(identity=None)


def exact(value: str) -> tuple[StringMatch, ...]:
    return (StringMatch("exact", value),)


def allow(*rules: Rule, name: str = "allow") -> Policy:
    return Policy("ns", name, Scope.GLOBAL, Action.ALLOW, rules)


def deny(*rules: Rule, name: str = "deny") -> Policy:
    return Policy("ns", name, Scope.GLOBAL, Action.DENY, rules)


def asking(match: Match) -> Policy:
    return allow(((match,),))


@pytest.mark.parametrize(
    ("rules", "matches"),
    [((), False), (((),), True), ((((),),), True), ((((Match(),),),), False)],
    ids=["no rule", "no clause", "no match", "empty match"],
)
def test_rbac_empty_policy(rules: tuple[Rule, ...], matches: bool) -> None:
    assert policy_matches(allow(*rules), TLS) is matches
    assert evaluate([allow(*rules)], TLS).allowed is matches
    assert evaluate([deny(*rules)], TLS).allowed is not matches


def test_an_empty_match_is_skipped_and_its_neighbours_count() -> None:
    assert policy_matches(allow(((Match(), Match(destination_ports=(8080,))),)), TLS)
    assert not policy_matches(allow(((Match(), Match(destination_ports=(1,))),)), TLS)


ACCOUNT = ServiceAccountMatch("namespace", "account")
EVERYTHING = ip_network("0.0.0.0/0")


# Columns: the mutual TLS peer, another one (other trust domain, namespace and account, over IPv6), plain text.
@pytest.mark.parametrize(
    ("match", "tls", "other", "plain"),
    [
        (Match(namespaces=exact("namespace")), True, False, False),
        (Match(not_namespaces=exact("namespace")), False, True, True),
        (Match(namespaces=exact("nobody")), False, False, False),
        (Match(namespaces=exact("")), False, False, True),
        (Match(principals=exact("td/ns/namespace/sa/account")), True, False, False),
        (Match(not_principals=exact("td/ns/namespace/sa/account")), False, True, True),
        (Match(principals=exact("spiffe://td/ns/namespace/sa/account")), False, False, False),
        (Match(not_principals=(StringMatch("presence"),)), False, False, True),
        (Match(principals=(StringMatch("prefix"),)), True, True, False),
        (Match(service_accounts=(ACCOUNT,)), True, False, False),
        (Match(not_service_accounts=(ACCOUNT,)), False, True, True),
        (Match(source_ips=(ip_network("127.0.0.1/32"),)), True, False, True),
        (Match(not_source_ips=(ip_network("127.0.0.1/32"),)), False, True, False),
        (Match(source_ips=(ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8"))), True, False, True),
        (Match(source_ips=(EVERYTHING,)), True, False, True),
        (Match(source_ips=(ip_network("::/0"),)), False, True, False),
        (Match(destination_ips=(ip_network("127.0.0.2/32"),)), True, True, True),
        (Match(not_destination_ips=(ip_network("127.0.0.2/31"),)), False, False, False),
        (Match(destination_ports=(8080, 80)), True, True, True),
        (Match(destination_ports=(80,)), False, False, False),
        (Match(not_destination_ports=(8080,)), False, False, False),
        (Match(not_destination_ports=(80,)), True, True, True),
        (Match(namespaces=exact("namespace"), destination_ports=(8080,)), True, False, False),
        (Match(namespaces=exact("namespace"), destination_ports=(80,)), False, False, False),
        (Match(namespaces=exact("namespace"), not_source_ips=(EVERYTHING,)), False, False, False),
        (Match(namespaces=exact("namespace") + exact("elsewhere")), True, True, False),
        (Match(not_namespaces=exact("namespace") + exact("elsewhere")), False, False, True),
        (Match(namespaces=exact("namespace"), not_namespaces=exact("namespace")), False, False, False),
    ],
    ids=[
        "namespaces",
        "not_namespaces",
        "namespaces of nobody",
        "namespaces, empty",
        "principals",
        "not_principals",
        "principals, written with spiffe",
        "not_principals, presence",
        "principals, empty prefix",
        "service_accounts",
        "not_service_accounts",
        "source_ips",
        "not_source_ips",
        "source_ips, one of two",
        "source_ips, cidr_range",
        "source_ips, cidr_range of IPv6",
        "destination_ips",
        "not_destination_ips, cidr_range",
        "ports",
        "ports, others",
        "not_ports",
        "not_ports, others",
        "namespaces and ports",
        "namespaces and other ports",
        "namespaces and not_source_ips",
        "namespaces, two",
        "not_namespaces, two",
        "namespaces and not_namespaces",
    ],
)
def test_namespaces_principals_service_accounts_ips_and_ports(match: Match, tls: bool, other: bool, plain: bool) -> None:
    """Alone, and found among so many policies that not each of them is asked, whatever stands beside it in its rule."""
    ends = (TLS, OTHER, PLAIN)
    assert [policy_matches(asking(match), one) for one in ends] == [tls, other, plain]
    strangers = [deny(((Match(principals=exact(f"td/ns/a/sa/{number}")),),), name=f"{number}") for number in range(9)]
    stranger = Match(namespaces=exact("stranger"))
    for rules in ([((match,),)], [((stranger, match),)], [((stranger,),), ((match,),)], [((match,), ())]):
        among = PolicySet([group([*strangers, deny(*rules)])])
        assert [evaluate(among, one).allowed for one in ends] == [not tls, not other, not plain]


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        (StringMatch("exact", "abc"), ["abc"]),
        (StringMatch("exact", ""), [""]),
        (StringMatch("prefix", "ab"), ["abc", "ab"]),
        (StringMatch("prefix", ""), ["abc", "ab", "bc", ""]),
        (StringMatch("suffix", "bc"), ["abc", "bc"]),
        (StringMatch("suffix", ""), ["abc", "ab", "bc", ""]),
        (StringMatch("presence"), ["abc", "ab", "bc"]),
        (StringMatch("presence", "ignored"), ["abc", "ab", "bc"]),
    ],
)
def test_string_match(match: StringMatch, holds: list[str]) -> None:
    assert [text for text in ("abc", "ab", "bc", "") if match.matches(text)] == holds


def test_plain_text_has_an_empty_namespace_but_no_principal() -> None:
    empty = (StringMatch("prefix", ""),)
    assert policy_matches(asking(Match(namespaces=empty)), PLAIN)
    assert not policy_matches(asking(Match(principals=empty)), PLAIN)
    assert not policy_matches(asking(Match(namespaces=(StringMatch("presence"),))), PLAIN)


def test_rbac_nesting() -> None:
    """(namespace a or b) and port 80: clauses are AND-ed, their matches OR-ed."""
    policy = allow(((Match(namespaces=exact("a")), Match(namespaces=exact("b"))), (Match(destination_ports=(80,)),)))
    for namespace, port, expected in (("a", 80, True), ("b", 80, True), ("b", 81, False), ("c", 80, False)):
        connection = TLS._replace(identity=Identity("td", namespace, "x"), port=port)
        assert policy_matches(policy, connection) is expected


def test_rbac_multi_rule() -> None:
    policy = allow(((Match(namespaces=exact("a")),),), ((Match(destination_ports=(8080,)),),))
    assert policy_matches(policy, TLS)
    assert not policy_matches(policy, TLS._replace(port=1))


YES: Rule = ()
NO: Rule = ((Match(destination_ports=(1,)),),)


@pytest.mark.parametrize(
    ("policies", "verdict"),
    [
        ([], Verdict(True, None, "")),
        ([deny(NO)], Verdict(True, None, "")),
        ([deny(YES)], Verdict(False, "ns/deny", "explicitly denied by: ns/deny")),
        ([allow(YES)], Verdict(True, "ns/allow", "")),
        ([allow(NO)], Verdict(False, None, "allow policies exist, but none allowed", ("ns/allow",))),
        ([allow()], Verdict(False, None, "allow policies exist, but none allowed", ("ns/allow",))),
        ([allow(NO), allow(YES, name="second")], Verdict(True, "ns/second", "")),
        ([allow(YES), deny(YES)], Verdict(False, "ns/deny", "explicitly denied by: ns/deny")),
        ([allow(YES), deny(NO)], Verdict(True, "ns/allow", "")),
        ([allow(NO), deny(NO)], Verdict(False, None, "allow policies exist, but none allowed", ("ns/allow",))),
    ],
)
def test_assert_rbac_logic_deny_allow(policies: list[Policy], verdict: Verdict) -> None:
    assert evaluate(policies, TLS) == verdict


@given(st.permutations([allow(YES), allow(NO, name="n"), deny(NO), deny(YES, name="d")]))
def test_the_order_of_policies_does_not_change_the_result(policies: list[Policy]) -> None:
    assert evaluate(policies, TLS) == Verdict(False, "ns/d", "explicitly denied by: ns/d")


_TEXTS = st.sampled_from(["td/ns/namespace/sa/account", "namespace", "td/", "", "other"])
_KINDS = st.sampled_from(["exact", "exact", "prefix", "suffix", "presence"])
_STRINGS = st.lists(st.builds(StringMatch, _KINDS, _TEXTS), max_size=2).map(tuple)
_PORTS = st.lists(st.sampled_from([8080, 1]), max_size=2).map(tuple)
_ACCOUNTS = st.lists(st.builds(ServiceAccountMatch, st.just("namespace"), st.sampled_from(["account", "b"])), max_size=1).map(
    tuple
)
_MATCHES = st.builds(
    Match,
    namespaces=_STRINGS,
    principals=_STRINGS,
    not_principals=_STRINGS,
    destination_ports=_PORTS,
    not_destination_ports=_PORTS,
    service_accounts=_ACCOUNTS,
)
_RULES = st.lists(st.lists(st.lists(_MATCHES, max_size=2).map(tuple), max_size=2).map(tuple), max_size=2).map(tuple)
_POLICIES = st.builds(
    Policy,
    st.just("ns"),
    st.uuids().map(str),
    st.just(Scope.GLOBAL),
    st.sampled_from(Action),
    _RULES,
    st.sampled_from([False, False, False, True]),
)


_NAMED = st.builds(replace, _POLICIES, name=st.integers(0, 15).map(str), scope=st.sampled_from(Scope))


def group(policies: Iterable[Policy]) -> PolicyGroup:
    made = PolicyGroup()
    for policy in policies:
        made.put(policy)
    return made


@given(st.lists(_POLICIES, min_size=9, max_size=14), st.sampled_from([TLS, OTHER, PLAIN, TLS._replace(port=1)]))
def test_many_policies_are_looked_up_and_decide_what_asking_each_decides(
    policies: list[Policy], connection: Connection
) -> None:
    assert evaluate(PolicySet([group(policies)]), connection) == evaluate(policies, connection)


@given(
    st.lists(st.lists(_NAMED, max_size=20) | st.lists(st.integers(0, 15).map("ns/{}".format), max_size=5), max_size=6),
    st.lists(st.integers(0, 15).map("ns/{}".format), max_size=14).map(tuple),
    st.sampled_from([TLS, OTHER, PLAIN, TLS._replace(port=1)]),
)
def test_after_any_changes_a_store_decides_what_asking_each_policy_decides(
    changes: list[list[Policy] | list[str]], listed: tuple[str, ...], connection: Connection
) -> None:
    """Policies come, are replaced and go; the workload is asked for from the beginning."""
    store, known = PolicyStore(), dict[str, Policy]()
    workload = Workload("uid", "web", "ns", authorization_policies=listed)
    for change in changes:
        upserts = [one for one in change if isinstance(one, Policy)]
        removals = [one for one in change if isinstance(one, str)]
        store.apply(upserts, removals)
        for name in (*removals, *(one.key for one in upserts)):
            known.pop(name, None)
        for one in upserts:
            known.pop(one.key, None)
            known[one.key] = one
        of_namespace = {key: one for key, one in known.items() if one.scope is Scope.NAMESPACE}
        everywhere = {key: one for key, one in known.items() if one.scope is Scope.GLOBAL}
        plain = list((of_namespace | everywhere | {key: known[key] for key in listed if key in known}).values())
        applicable = store.applicable(workload)
        assert list(applicable) == plain and len(applicable) == len(plain)
        assert evaluate(applicable, connection) == evaluate(plain, connection)


def test_what_left_a_group_of_many_decides_nothing_any_more() -> None:
    strangers = [deny(((Match(principals=exact(f"td/ns/a/sa/{number}")),),), name=f"{number}") for number in range(9)]
    keyed, keyless = (deny(((one,),)) for one in (Match(destination_ports=(8080,)), Match(not_namespaces=exact("none"))))
    several = group(strangers)
    for refusing in (keyed, keyless):
        for successor in (None, deny(NO), replace(refusing, dry_run=True)):
            several.put(refusing)
            assert not evaluate(PolicySet([several]), TLS).allowed
            several.remove(refusing.key) if successor is None else several.put(successor)
            assert evaluate(PolicySet([several]), TLS).allowed


def test_who_is_refused_by_default_stays_so_when_a_policy_in_dry_run_comes_or_goes() -> None:
    several = group([allow(NO)])
    watching = allow(YES, name="watching")
    for change in (lambda: several.put(replace(watching, dry_run=True)), lambda: several.remove(watching.key)):
        change()
        assert evaluate(PolicySet([several]), TLS) == Verdict(
            False, None, "allow policies exist, but none allowed", ("ns/allow",)
        )
    several.put(watching)
    assert evaluate(PolicySet([several]), TLS).allowed
    several.put(replace(watching, dry_run=True))
    assert not evaluate(PolicySet([several]), TLS).allowed
    several.remove("ns/allow")
    assert evaluate(PolicySet([several]), TLS) == Verdict(True, None, "")


def test_a_store_keeps_up_what_the_newest_few_workloads_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was forgotten for want of room, and is asked for again, has what is in force by then."""
    monkeypatch.setattr(policy_store, "_MAX_QUESTIONS", 2)
    store = PolicyStore()
    listed = [replace(deny(YES), name=name, scope=Scope.WORKLOAD_SELECTOR) for name in ("a", "b", "c")]
    store.apply(listed, [])
    workloads = [Workload("uid", "web", "ns", authorization_policies=(one.key, "ns/late")) for one in listed]

    def held() -> list[list[str]]:
        return [[policy.key for policy in store.applicable(one)] for one in workloads]

    assert held() == [["ns/a"], ["ns/b"], ["ns/c"]]
    assert len(store._listed) == 2
    late = replace(allow(), name="late", scope=Scope.WORKLOAD_SELECTOR)
    store.apply([late], ["ns/a"])
    assert held() == [["ns/late"], ["ns/b", "ns/late"], ["ns/c", "ns/late"]]
    store.apply([replace(late, dry_run=True)], ["ns/b", "ns/c"])
    assert held() == [["ns/late"]] * 3 and len(store._listed) == 2
    for name in ("x", "y"):
        store.applicable(Workload("uid", "web", name, authorization_policies=("ns/other",)))
    assert store._listers.keys() == {"ns/other"}


def test_of_many_policies_only_those_that_can_match_are_asked() -> None:
    strangers = [allow(((Match(principals=exact(f"td/ns/a/sa/{number}")),),), name=f"{number}") for number in range(1000)]
    mine = allow(((Match(principals=exact("td/ns/namespace/sa/account")),),), name="mine")
    watched = PolicySet([group([*strangers, mine, replace(deny(YES), dry_run=True)])])
    assert evaluate(watched, TLS) == Verdict(True, "ns/mine", "")
    refused = evaluate(watched, OTHER)
    assert (refused.allowed, refused.asked) == (False, ("ns/0", "ns/1", "ns/2", "ns/3"))
    assert len(watched.candidates(peer_of(TLS))) == 1
    for match in (
        Match(namespaces=exact("a")),
        Match(service_accounts=(ServiceAccountMatch("a", "b"),)),
        Match(destination_ports=(1,)),
    ):
        assert not group(deny(((match,),), name=f"{number}") for number in range(9)).candidates(peer_of(TLS))


def test_a_verdict_is_remembered_for_what_is_equal_in_everything_that_policies_ask_for() -> None:
    """And only so many of them."""
    watched = PolicySet([group([allow(((Match(destination_ports=(80,)),),))])])
    first = evaluate(watched, TLS._replace(port=80))
    assert evaluate(watched, TLS._replace(port=80)) is first and first.allowed
    others = [TLS._replace(port=81), OTHER._replace(port=80), TLS._replace(port=80, source=ip_address("203.0.113.9"))]
    assert [evaluate(watched, one).allowed for one in others] == [False, True, True]
    for port in range(1000, 2000):
        evaluate(watched, TLS._replace(port=port))
    assert evaluate(watched, TLS._replace(port=80)) is not first


def test_assert_rbac_dry_run_with_real_policies() -> None:
    watching = replace(deny(YES), dry_run=True)
    assert evaluate([watching], TLS) == Verdict(True, None, "")
    assert evaluate([replace(allow(NO), dry_run=True)], TLS) == Verdict(True, None, "")
    assert evaluate([replace(allow(YES), dry_run=True), allow(NO)], TLS).allowed is False
    assert policy_matches(watching, TLS)


def test_strict_mutual_tls_is_a_policy_like_any_other() -> None:
    strict = deny(((Match(not_principals=(StringMatch("presence"),)),),))
    exempt = deny(((Match(not_principals=(StringMatch("presence"),)),), (Match(not_destination_ports=(8080,)),)))
    assert evaluate([strict], TLS).allowed
    assert not evaluate([strict], PLAIN).allowed
    assert evaluate([exempt], PLAIN).allowed
    assert not evaluate([exempt], PLAIN._replace(port=9090)).allowed


def test_a_policy_for_a_namespace_that_it_does_not_name_is_for_all() -> None:
    """As Istio's ztunnel has it, and not for nobody: what it forbids is forbidden."""
    nowhere = Policy("", "d", Scope.NAMESPACE, Action.DENY, YES)
    store, workload = PolicyStore(), Workload("u", "w", "shop", authorization_policies=("/d",))
    for one in (workload, replace(workload, authorization_policies=())):
        store.apply([nowhere], [])
        assert list(store.applicable(one)) == [nowhere]
        store.apply([], ["/d"])
        assert list(store.applicable(one)) == []
