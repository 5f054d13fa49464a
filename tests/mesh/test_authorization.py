"""Security objects become the policies that istiod would send, and workloads list them as istiod's would."""

from typing import Any

import pytest

from mesh.authorization import Conversion, Listed, convert
from mesh.manifests import AuthorizationPolicy, PeerAuthentication
from mesh.policy import Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch
from mesh.resources import encode_policy

pytestmark = pytest.mark.unit

ROOT = "istio-system"
STATIC = f"{ROOT}/istio_converted_static_strict"


def authorization(name: str, namespace: str = "amb", *rules: Any, **spec: Any) -> AuthorizationPolicy:
    metadata = {"name": name, "namespace": namespace, "annotations": spec.pop("annotations", {})}
    value = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata}
    return AuthorizationPolicy.from_dict(value | {"spec": {"rules": list(rules), **spec}})


def peers(
    name: str, namespace: str = "amb", mode: str = "", ports: dict[str, str] | None = None, created: str = "", **selector: str
) -> PeerAuthentication:
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
    spec: dict[str, Any] = {"mtls": {"mode": mode}} if mode else {}
    if ports:
        spec["portLevelMtls"] = {port: {"mode": one} for port, one in ports.items()}
    if selector:
        spec["selector"] = {"matchLabels": selector}
    value = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": metadata, "spec": spec}
    return PeerAuthentication.from_dict(value)


def converted(*objects: AuthorizationPolicy | PeerAuthentication) -> Conversion:
    policies = [one for one in objects if isinstance(one, AuthorizationPolicy)]
    authentications = [one for one in objects if isinstance(one, PeerAuthentication)]
    return convert(policies, authentications, ROOT)


def policy(conversion: Conversion, key: str) -> Policy:
    (found,) = [one for one in conversion.policies if one.key == key]
    return found


def rules(*given: Any, action: str = "ALLOW") -> tuple[Any, ...]:
    return policy(converted(authorization("p", "amb", *given, action=action)), "amb/p").rules


def exact(*values: str) -> tuple[StringMatch, ...]:
    return tuple(StringMatch("exact", value) for value in values)


# --- AuthorizationPolicy


def test_scopes() -> None:
    selected = {"selector": {"matchLabels": {"app": "web"}}}
    made = converted(
        authorization("mesh", ROOT),
        authorization("ns"),
        authorization("selected", **selected),
        authorization("everywhere", ROOT, **selected),
        authorization("unselective", selector={"matchLabels": {}}),
    )
    assert {one.key: one.scope for one in made.policies if one.key != STATIC} == {
        "istio-system/mesh": Scope.GLOBAL,
        "amb/ns": Scope.NAMESPACE,
        "amb/selected": Scope.WORKLOAD_SELECTOR,
        "istio-system/everywhere": Scope.WORKLOAD_SELECTOR,
        "amb/unselective": Scope.NAMESPACE,
    }
    assert made.listed_by("amb", {"app": "web"}).keys == ("amb/selected", "istio-system/everywhere")
    assert made.listed_by("other", {"app": "web"}).keys == ("istio-system/everywhere",)
    assert made.listed_by("amb", {"app": "db"}) == Listed()
    assert made.sources["amb/selected"] == "AuthorizationPolicy amb/selected"


def test_golden_namespace_deny() -> None:
    made = converted(authorization("mesh-deny", ROOT, {"from": [{"source": {"namespaces": ["evil"]}}]}, action="DENY"))
    golden = "0a096d6573682d64656e79120c697374696f2d73797374656d20012a0c0a0a12080a060a046576696c"
    assert encode_policy(policy(made, "istio-system/mesh-deny")).hex() == golden


def test_one_clause_for_to_one_for_from_one_for_each_when() -> None:
    given = {
        "from": [{"source": {"principals": ["td/ns/a/sa/b"]}}, {"source": {"namespaces": ["a"], "notNamespaces": ["b"]}}],
        "to": [{"operation": {"ports": ["80", "81"]}}, {"operation": {"notPorts": ["82"]}}],
        "when": [
            {"key": "source.ip", "values": ["10.0.0.0/8"], "notValues": ["10.1.2.3", "fd00::1"]},
            {"key": "destination.port", "notValues": ["9090"]},
        ],
    }
    ((to, source, address, port),) = rules(given)
    assert to == (Match(destination_ports=(80, 81)), Match(not_destination_ports=(82,)))
    assert source == (
        Match(principals=exact("td/ns/a/sa/b")),
        Match(namespaces=exact("a"), not_namespaces=exact("b")),
    )
    (match,) = address
    assert [str(one) for one in (*match.source_ips, *match.not_source_ips)] == ["10.0.0.0/8", "10.1.2.3/32", "fd00::1/128"]
    assert port == (Match(not_destination_ports=(9090,)),)


def test_every_condition_that_a_connection_can_answer() -> None:
    values = {
        "source.ip": "10.0.0.1",
        "source.namespace": "ns",
        "source.principal": "*",
        "destination.ip": "10.0.0.2",
        "destination.port": "80",
    }
    (rule,) = rules({"when": [{"key": key, "values": [value]} for key, value in values.items()]})
    attributes = [next(name for name in Match.__slots__ if getattr(match, name)) for (match,) in rule]
    assert attributes == ["source_ips", "namespaces", "principals", "destination_ips", "destination_ports"]


def test_wildcards_and_accounts() -> None:
    given = {"principals": ["*", "*/sa/b", "td/*"], "serviceAccounts": ["mine", "other/theirs"], "namespaces": ["a"]}
    ((source,),) = rules({"from": [{"source": given}]})
    (match,) = source
    assert match.principals == (StringMatch("presence"), StringMatch("suffix", "/sa/b"), StringMatch("prefix", "td/"))
    assert match.service_accounts == (ServiceAccountMatch("amb", "mine"), ServiceAccountMatch("other", "theirs"))


def test_rules_that_ask_nothing_and_policies_without_rules() -> None:
    assert rules({}) == ((),)
    assert rules() == ()


def test_an_allow_rule_about_requests_is_dropped_whole() -> None:
    made = converted(
        authorization(
            "p",
            "amb",
            {"from": [{"source": {"namespaces": ["a"]}}], "to": [{"operation": {"ports": ["80"], "methods": ["GET"]}}]},
            {"from": [{"source": {"namespaces": ["b"]}}]},
        )
    )
    assert policy(made, "amb/p").rules == (((Match(namespaces=exact("b")),),),)
    (problem,) = made.problems
    assert (problem.object, problem.field) == ("AuthorizationPolicy amb/p", "spec.rules[0].to[0].operation.methods")
    assert problem.warning and "allows nothing" in problem.reason


def test_an_allow_policy_of_which_nothing_is_left_denies_everything() -> None:
    assert rules({"to": [{"operation": {"paths": ["/x"]}}]}) == ()


def test_a_deny_rule_keeps_what_a_connection_can_answer() -> None:
    given = {"from": [{"source": {"namespaces": ["a"], "requestPrincipals": ["x"]}}], "to": [{"operation": {"ports": ["80"]}}]}
    assert rules(given, action="DENY") == (((Match(destination_ports=(80,)),), (Match(namespaces=exact("a")),)),)


def test_a_deny_clause_about_requests_only_never_matches() -> None:
    given = {"from": [{"source": {"namespaces": ["a"]}}], "to": [{"operation": {"methods": ["GET"]}}]}
    made = converted(authorization("p", "amb", given, action="DENY"))
    assert policy(made, "amb/p").rules == (((Match(),), (Match(namespaces=exact("a")),)),)
    assert "never matches" in made.problems[0].reason
    beside = {"to": [{"operation": {"methods": ["GET"]}}, {"operation": {"ports": ["80"]}}]}
    made_beside = converted(authorization("p", "amb", beside, action="DENY"))
    assert policy(made_beside, "amb/p").rules == (((Match(), Match(destination_ports=(80,))),),)
    assert "an entry that says nothing else then never matches" in made_beside.problems[0].reason
    # rules { clauses { matches {} } clauses { matches { namespaces { exact: "a" } } } }: the empty match is sent.
    sent = encode_policy(policy(made, "amb/p")).hex()
    assert sent == "0a01701203616d62180120012a0d" + "0a021200" + "0a0712050a030a0161"


@pytest.mark.parametrize(
    "source",
    [
        {"requestPrincipals": ["*"]},
        {"notRequestPrincipals": ["*"]},
        {"remoteIpBlocks": ["10.0.0.0/8"]},
        {"notRemoteIpBlocks": ["10.0.0.0/8"]},
        {"trustDomains": ["td"]},
        {"notTrustDomains": ["td"]},
    ],
)
def test_sources_that_only_a_request_shows(source: dict[str, Any]) -> None:
    assert rules({"from": [{"source": source}]}) == ()


@pytest.mark.parametrize("field", ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"])
def test_operations_that_only_a_request_shows(field: str) -> None:
    assert rules({"to": [{"operation": {field: ["x"]}}]}) == ()
    assert rules({"to": [{"operation": {field: ["x"]}}]}, action="DENY") == (((Match(),),),)


@pytest.mark.parametrize(
    "key", ["request.headers[x]", "source.serviceAccount", "remote.ip", "connection.sni", "request.auth.claims[a]"]
)
def test_conditions_that_only_a_request_shows(key: str) -> None:
    value = {"remote.ip": "10.0.0.1"}.get(key, "x")
    assert rules({"when": [{"key": key, "values": [value]}]}) == ()
    assert rules({"when": [{"key": key, "values": [value]}]}, action="DENY") == (((Match(),),),)


def test_what_is_not_enforced_at_all_is_not_sent_and_said() -> None:
    made = converted(
        authorization("custom", action="CUSTOM", provider={"name": "p"}),
        authorization("audit", action="AUDIT"),
        authorization("waypoint", targetRefs=[{"kind": "Gateway", "name": "g"}]),
    )
    assert [one.key for one in made.policies] == [STATIC]
    assert sorted(problem.field for problem in made.problems) == ["spec.action", "spec.action", "spec.targetRefs"]
    assert all("not in force" in problem.reason and problem.warning for problem in made.problems)


def test_dry_run_is_sent_as_such() -> None:
    made = converted(authorization("p", annotations={"istio.io/dry-run": "true"}))
    assert policy(made, "amb/p").dry_run


# --- PeerAuthentication


def test_golden_static_strict_is_always_sent() -> None:
    golden = (
        "0a1d697374696f5f636f6e7665727465645f7374617469635f737472696374120c697374696f2d73797374656d180220012a080a06120422022200"
    )
    made = converted()
    assert encode_policy(policy(made, STATIC)).hex() == golden
    assert made.listed_by("amb", {}) == Listed()


def test_strict_workloads_list_it_and_say_whose_object_it_is() -> None:
    made = converted(peers("default", mode="STRICT"), peers("lax", "other", "PERMISSIVE"))
    assert made.listed_by("amb", {}) == Listed((STATIC,), {STATIC: "PeerAuthentication amb/default"})
    assert made.listed_by("other", {}) == Listed()
    assert made.sources[STATIC] == "PeerAuthentication amb/default"


# Columns: the mesh's mode, the namespace's, the workload's; whose object makes it strict.
@pytest.mark.parametrize(
    ("mesh", "namespace", "workload", "strict"),
    [
        ("STRICT", "", "", "istio-system/mesh"),
        ("STRICT", "UNSET", "UNSET", "istio-system/mesh"),
        ("STRICT", "PERMISSIVE", "", ""),
        ("STRICT", "DISABLE", "UNSET", ""),
        ("STRICT", "STRICT", "", "amb/ns"),
        ("PERMISSIVE", "STRICT", "UNSET", "amb/ns"),
        ("STRICT", "STRICT", "PERMISSIVE", ""),
        ("STRICT", "STRICT", "DISABLE", ""),
        ("", "PERMISSIVE", "STRICT", "amb/one"),
        ("", "", "UNSET", ""),
    ],
)
def test_the_narrowest_object_decides(mesh: str, namespace: str, workload: str, strict: str) -> None:
    made = converted(
        *([peers("mesh", ROOT, mesh)] if mesh else []),
        *([peers("ns", "amb", namespace)] if namespace else []),
        *([peers("one", "amb", workload, app="web")] if workload else []),
    )
    listed = made.listed_by("amb", {"app": "web"})
    assert listed == (Listed((STATIC,), {STATIC: f"PeerAuthentication {strict}"}) if strict else Listed())


def test_golden_exempt_ports() -> None:
    made = converted(
        peers("portlevel", mode="STRICT", ports={"9090": "PERMISSIVE", "8080": "DISABLE", "1": "STRICT"}, app="web")
    )
    key = "amb/converted_peer_authentication_portlevel"
    golden = (
        "0a27636f6e7665727465645f706565725f61757468656e7469636174696f6e5f706f72746c6576656c1203616d62180220012a180a06120422022200"
        "0a0612045202903f0a06120452028247"
    )
    assert encode_policy(policy(made, key)).hex() == golden
    assert made.listed_by("amb", {"app": "web"}) == Listed((key,), {key: "PeerAuthentication amb/portlevel"})
    assert made.listed_by("amb", {"app": "db"}) == Listed()


def test_strict_ports_of_a_permissive_workload() -> None:
    made = converted(peers("p", mode="PERMISSIVE", ports={"8081": "STRICT", "8080": "STRICT", "1": "DISABLE"}, app="web"))
    match = Match(not_principals=(StringMatch("presence"),), destination_ports=(8080, 8081))
    found = policy(made, "amb/converted_peer_authentication_p")
    assert (found.rules, found.action, found.scope) == ((((match,),),), Action.DENY, Scope.WORKLOAD_SELECTOR)


def test_ports_except_from_the_mode_that_is_inherited() -> None:
    narrow = peers("p", ports={"8080": "DISABLE"}, app="web")
    key = "amb/converted_peer_authentication_p"
    inherits = converted(narrow, peers("mesh", ROOT, "STRICT"))
    assert inherits.listed_by("amb", {"app": "web"}) == Listed((key,), {key: "PeerAuthentication amb/p"})
    assert converted(narrow).listed_by("amb", {"app": "web"}) == Listed()
    assert [one.key for one in converted(narrow).policies] == [STATIC]


def test_ports_that_all_agree_with_the_mode_need_no_policy_of_their_own() -> None:
    made = converted(peers("p", mode="STRICT", ports={"8080": "STRICT", "9090": "UNSET"}, app="web"))
    assert made.listed_by("amb", {"app": "web"}).keys == (STATIC,)
    assert [one.key for one in made.policies] == [STATIC]


def test_ports_do_not_count_in_the_root_namespace() -> None:
    made = converted(peers("p", ROOT, "STRICT", {"8080": "DISABLE"}, app="web"))
    assert made.listed_by(ROOT, {"app": "web"}).keys == (STATIC,)
    assert made.listed_by("amb", {"app": "web"}) == Listed()
    assert [(one.field, one.warning) for one in made.problems] == [("spec.portLevelMtls", True)]


def test_of_several_the_oldest_is_in_force_then_the_first_by_name() -> None:
    made = converted(
        peers("b", mode="STRICT", created="2026-01-01T00:00:00Z"), peers("a", mode="PERMISSIVE", created="2026-02-01T00:00:00Z")
    )
    assert made.listed_by("amb", {}).keys == (STATIC,)
    assert [(one.object, one.warning) for one in made.problems] == [("PeerAuthentication amb/a", True)]
    assert converted(peers("b", mode="STRICT"), peers("a", mode="PERMISSIVE")).listed_by("amb", {}) == Listed()
    narrow = converted(peers("y", mode="STRICT", app="web"), peers("x", mode="PERMISSIVE", app="web"))
    assert narrow.listed_by("amb", {"app": "web"}) == Listed()


def test_a_workload_lists_both_kinds() -> None:
    made = converted(authorization("selected", selector={"matchLabels": {"app": "web"}}), peers("default", mode="STRICT"))
    assert made.listed_by("amb", {"app": "web"}) == Listed(("amb/selected", STATIC), {STATIC: "PeerAuthentication amb/default"})
