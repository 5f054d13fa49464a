"""What a whole set of objects is warned of."""

import pytest

from control.examination import Examination
from mesh.manifests import parse

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


def test_a_policy_of_a_namespace_that_nothing_is_in_is_warned_of() -> None:
    examination = Examination("istio-system", (), {})

    def warned(text: str) -> list[str]:
        found = parse({"x": text})
        assert not found.problems
        problems = [one for one in examination.examine(found.objects).problems if one.field == "metadata.namespace"]
        assert all(one.warning and one.reason.endswith(": it concerns no pod") for one in problems)
        return [one.object for one in problems]

    policies = "".join(POLICY % name for name in ("shop", "shopp", "empty", "istio-system"))
    assert warned(policies + SERVICE + NAMESPACE) == ["AuthorizationPolicy shopp/nobody"]
    assert warned(policies + SERVICE) == ["AuthorizationPolicy shopp/nobody", "AuthorizationPolicy empty/nobody"]
