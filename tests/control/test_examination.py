"""What a whole set of objects is warned of."""

from ipaddress import ip_network

import pytest

from control.examination import Examination, Findings
from control.services import mesh_service
from control.topology import Topology
from mesh.manifests import Service, parse
from mesh.workload import Network

pytestmark = pytest.mark.unit

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: %s}
spec: {action: DENY, rules: [{}]}
---
"""
NAMESPACE = "{apiVersion: v1, kind: Namespace, metadata: {name: empty}}\n---\n"
SERVICE = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {ports: [{port: 80}]}}\n---\n"
IPV4, IPV6 = ip_network("10.96.0.0/24"), ip_network("fd00:96::/120")


def examined(spec: str, *ranges: Network) -> Findings:
    """A service in a mesh with these service ranges."""
    text = SERVICE.replace("spec: {", f"spec: {{{spec}, ")
    return Examination("istio-system", ranges, {}).examine(parse({"x": text}).objects)


def test_a_policy_of_a_namespace_that_nothing_is_in_is_warned_of() -> None:
    examination = Examination("istio-system", (), {})

    def warned(text: str) -> list[str]:
        found = parse({"x": text})
        assert not found.problems
        problems = [one for one in examination.examine(found.objects).problems if one.field == "metadata.namespace"]
        assert all(one.warning and one.reason.endswith(": it concerns no pod") for one in problems)
        return [one.object for one in problems]

    policies = "".join(POLICY % name for name in ("shop", "shopp", "empty", "istio-system"))
    mode = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: shopp}}\n---\n"
    assert warned(mode + policies + SERVICE + NAMESPACE) == [
        "PeerAuthentication shopp/strict",
        "AuthorizationPolicy shopp/nobody",
    ]
    assert warned(policies + SERVICE) == ["AuthorizationPolicy shopp/nobody", "AuthorizationPolicy empty/nobody"]


@pytest.mark.parametrize(
    ("spec", "ranges", "versions"),
    [
        ("clusterIP: None", (IPV4, IPV6), []),
        ("ipFamilyPolicy: SingleStack", (IPV4, IPV6), [4]),
        ("ipFamilyPolicy: PreferDualStack", (IPV4,), [4]),
        ("ipFamilyPolicy: PreferDualStack", (IPV4, IPV6), [4, 6]),
        ("ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]", (IPV4, IPV6), [6, 4]),
        ("ipFamilyPolicy: RequireDualStack", (IPV6, IPV4), [6, 4]),
        ("ipFamilies: [IPv6, IPv4]", (IPV4, IPV6), [6, 4]),
        ("clusterIP: 'fd00:96::7'", (IPV4, IPV6), [6]),
    ],
)
def test_a_service_has_addresses_of_the_families_that_it_asks_for(
    spec: str, ranges: tuple[Network, ...], versions: list[int]
) -> None:
    findings = examined(spec, *ranges)
    assert not findings.problems
    assert [one.version for one in findings.addresses.get("shop/web", ())] == versions


@pytest.mark.parametrize(("only", "missing"), [(IPV4, 6), (IPV6, 4)])
def test_a_service_that_must_have_both_families_is_refused_where_there_is_one(only: Network, missing: int) -> None:
    [problem] = examined("ipFamilyPolicy: RequireDualStack", only).problems
    assert not problem.warning and problem.object == "Service shop/web"
    assert problem.reason == f"there is no IPv{missing} service range: add one with --service-cidr"


@pytest.mark.parametrize(
    "spec",
    [
        "ipFamilies: [IPv4], clusterIPs: ['fd00:96::7']",
        "ipFamilyPolicy: SingleStack, clusterIPs: [10.96.0.7, 'fd00:96::7']",
    ],
)
def test_an_address_that_a_service_names_and_does_not_get_is_warned_of(spec: str) -> None:
    findings = examined(spec, IPV4, IPV6)
    [problem] = findings.problems
    assert (problem.warning, problem.field) == (True, "spec.clusterIPs")
    assert problem.reason == "fd00:96::7 is left out: by ipFamilies and ipFamilyPolicy it uses no IPv6"
    assert [one.version for one in findings.addresses["shop/web"]] == [4]


def test_who_answers_for_a_service_is_named_in_one_order() -> None:
    """Else a control plane that starts anew would send every service again."""
    service = parse({"x": SERVICE}).of(Service)[0]
    made = mesh_service(service, (), (IPV4,), None, Topology(), ["spiffe://b", "spiffe://c", "spiffe://a"])
    assert made.subject_alt_names == ("spiffe://a", "spiffe://b", "spiffe://c")


def test_a_pod_range_that_overlaps_a_service_range_is_warned_of() -> None:
    nodes = "".join(
        f"{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{podCIDRs: ['{cidr}']}}}}\n---\n"
        for name, cidr in (("inside", "10.96.0.64/26"), ("around", "fd00::/16"), ("apart", "10.96.1.0/24"))
    )
    problems = Examination("istio-system", (IPV4, IPV6), {}).examine(parse({"x": nodes}).objects).problems
    assert [(one.object, one.warning) for one in problems] == [("Node inside", True), ("Node around", True)]
    assert problems[0].reason.startswith("10.96.0.64/26 overlaps the service range 10.96.0.0/24: ")


def test_what_was_examined_before_is_not_taken_for_what_is_asked_now() -> None:
    """As many objects of the same kinds, and others."""
    examination = Examination("istio-system", (IPV4,), {})
    good, lost = SERVICE.replace("spec: {", "spec: {clusterIP: 10.96.0.7, "), "192.0.2.1 is not in a service range"
    for text, reasons in ((good, []), (good.replace("10.96.0.7", "192.0.2.1"), [lost]), (good, [])):
        findings = examination.examine(parse({"x": text}).objects)
        assert [one.reason.partition(" (")[0] for one in findings.problems] == reasons
    policies = [parse({"x": POLICY % name}).objects for name in ("shop", "shopp")]
    for one in policies:
        assert [problem.object for problem in examination.examine(one).problems] == [one[0].title]


def test_a_service_is_refused_once_for_an_address_and_whatever_it_is_warned_of() -> None:
    outside = SERVICE.replace("spec: {", "spec: {clusterIP: 192.0.2.1, ")
    asking = outside.replace("namespace: shop", "namespace: shop, labels: {istio.io/use-waypoint: gw}")
    examination = Examination("istio-system", (IPV4,), {})
    problems = examination.examine(parse({"x": asking}).objects).problems
    assert sorted((one.warning, one.field) for one in problems) == [
        (False, "spec.clusterIP"),
        (True, "metadata.labels[istio.io/use-waypoint]"),
    ]
    inside = SERVICE.replace("spec: {", "spec: {clusterIP: 10.96.0.7, ")
    [problem] = examination.examine(parse({"x": inside + inside.replace("web", "zoo")}).objects).problems
    assert (problem.object, problem.reason) == ("Service shop/zoo", "10.96.0.7 belongs to Service shop/web")
