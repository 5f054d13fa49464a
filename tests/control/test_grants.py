import pytest

from control.grants import Grant, Grants, Refusal
from mesh.identity import Identity

pytestmark = pytest.mark.unit

GRANTS = Grants(
    "cluster.local",
    "Kubernetes",
    has_node=lambda node: node in {"n1", "n2"},
    runs_on=lambda node, namespace, account: (node, namespace, account) == ("n1", "demo", "web"),
    runs=lambda namespace, account: (namespace, account) == ("demo", "web"),
)
WEB = "spiffe://cluster.local/ns/demo/sa/web"


def test_a_node_may_have_the_identity_of_what_it_runs() -> None:
    assert GRANTS.decide("n1", ["Kubernetes"], WEB) == Grant("workload", WEB)


def test_a_node_may_have_its_own_credential() -> None:
    assert GRANTS.decide("n2", [], None) == Grant("node", "spiffe://cluster.local/node/n2")


def test_a_workload_renews_its_own_identity_and_gets_no_other() -> None:
    web = Identity.parse(WEB)
    assert GRANTS.renew(web, [], None) == GRANTS.renew(web, ["Kubernetes"], WEB) == Grant("workload", WEB)
    for refused, clusters, impersonated, reason in (
        (web, ["other"], None, "request authenticate failure"),
        (web._replace(trust_domain="other"), [], None, "request authenticate failure"),
        (web, [], WEB + "x", f"request impersonation authentication failure: {WEB} may have no identity but its own"),
        (web._replace(service_account="db"), [], None, "request authenticate failure: no pod has the identity"),
    ):
        decision = GRANTS.renew(refused, clusters, impersonated)
        assert isinstance(decision, Refusal) and decision.reason.startswith(reason)


@pytest.mark.parametrize(
    ("node", "clusters", "impersonated", "reason"),
    [
        (None, ["Kubernetes"], WEB, "request authenticate failure"),
        ("gone", ["Kubernetes"], WEB, "request authenticate failure"),
        ("gone", [], None, "request authenticate failure"),
        ("n1", ["other"], WEB, "request authenticate failure"),
        ("n1", ["Kubernetes", "other"], WEB, "request authenticate failure"),
        ("n1", [], WEB, "request impersonation authentication failure"),
        ("n1", ["Kubernetes"], "", "request impersonation authentication failure: not a workload identity: ''"),
        (
            "n1",
            ["Kubernetes"],
            "x" * 9000,
            f"request impersonation authentication failure: not a workload identity: '{'x' * 200}...': "
            "expected spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/NAME",
        ),
        (
            "n2",
            ["Kubernetes"],
            WEB,
            "request impersonation authentication failure: no pod with service account demo/web is reported on node n2",
        ),
        (
            "n1",
            ["Kubernetes"],
            "spiffe://evil.example/ns/demo/sa/web",
            "request impersonation authentication failure: spiffe://evil.example/ns/demo/sa/web is of trust domain "
            "evil.example, this mesh is cluster.local",
        ),
        ("n1", ["Kubernetes"], "spiffe://cluster.local/node/n1", "request impersonation authentication failure: not a"),
    ],
)
def test_nobody_gets_anything_else(node: str | None, clusters: list[str], impersonated: str | None, reason: str) -> None:
    decision = GRANTS.decide(node, clusters, impersonated)
    assert isinstance(decision, Refusal)
    assert decision.reason == reason or decision.reason.startswith(f"{reason}")
    if node is None or node == "gone":
        assert decision.reason == reason, "nothing is explained to a stranger"
