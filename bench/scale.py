"""A large mesh beside the bench's own: 10,000 workloads, 1,000 services and 10,000 policies. Pure.

A hundred namespaces with a hundred pods, ten services and a hundred policies each. No pod of it runs: the bench reports them
to the control plane as a kubelet would, on node a, where they are a part of every proxy's mesh and of nobody's work.
"""

import json
from collections.abc import Iterator
from typing import Any

from mesh.identity import Identity
from mesh.matching import Connection
from mesh.policy import Action, Match, Policy, Scope, StringMatch
from mesh.workload import Address

NAMESPACES, PODS_EACH, SERVICES_EACH, POLICIES_EACH = 100, 100, 10, 100
_FIRST_ADDRESS = (10 << 24) + (76 << 16) + (128 << 8)
"""10.76.128.0, in node a's pod range and far from the addresses that the lab gives out."""
_APPS = 10


def _object(kind: str, version: str, namespace: str, name: str, spec: Any, labels: dict[str, str] | None = None) -> Any:
    meta: dict[str, Any] = {
        "name": name,
        **({"namespace": namespace} if namespace else {}),
        **({"labels": labels} if labels else {}),
    }
    return {"apiVersion": version, "kind": kind, "metadata": meta, **({"spec": spec} if spec is not None else {})}


def objects() -> Iterator[dict[str, Any]]:
    """All manifests."""
    for number in range(NAMESPACES):
        namespace = f"scale-{number}"
        yield _object("Namespace", "v1", "", namespace, None, {"istio.io/dataplane-mode": "ambient"})
        yield _object("ServiceAccount", "v1", namespace, "app", None)
        containers = [{"name": "main", "image": "none", "command": ["/usr/bin/sleep", "infinity"]}]
        for pod in range(PODS_EACH):
            spec = {"nodeName": "a", "serviceAccountName": "app", "containers": containers}
            yield _object("Pod", "v1", namespace, f"pod-{pod}", spec, {"app": f"app-{pod % _APPS}"})
        for service in range(SERVICES_EACH):
            ports = [{"port": 80, "targetPort": 8080}]
            yield _object("Service", "v1", namespace, f"app-{service}", {"selector": {"app": f"app-{service}"}, "ports": ports})
        for policy in range(POLICIES_EACH):
            yield _object("AuthorizationPolicy", "security.istio.io/v1", namespace, f"policy-{policy}", _policy_spec(policy))


def _policy_spec(number: int) -> dict[str, Any]:
    source = {"principals": [f"cluster.local/ns/scale-{number}/sa/app", f"cluster.local/ns/other-{number}/sa/*"]}
    rule = {"from": [{"source": source}], "to": [{"operation": {"ports": [str(8000 + number)]}}]}
    return {"selector": {"matchLabels": {"app": f"app-{number % _APPS}"}}, "action": "ALLOW", "rules": [rule]}


def documents() -> str:
    """All manifests as one file: JSON documents, which are YAML and read faster."""
    return "\n---\n".join(json.dumps(one) for one in objects())


def reports() -> Iterator[tuple[str, str, str]]:
    """Namespace, name and address of every pod."""
    for number in range(NAMESPACES):
        for pod in range(PODS_EACH):
            value = _FIRST_ADDRESS + number * PODS_EACH + pod
            yield f"scale-{number}", f"pod-{pod}", ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))


def policies(count: int, namespace: str) -> list[Policy]:
    """As many policies for all workloads of one namespace, ten rules each, none of which matches `stranger`."""
    return [
        Policy(
            namespace,
            f"policy-{number}",
            Scope.NAMESPACE,
            Action.DENY if number % 2 else Action.ALLOW,
            tuple(
                (
                    (Match(principals=(StringMatch("exact", f"cluster.local/ns/client-{number}/sa/app-{rule}"),)),),
                    (Match(destination_ports=(8000 + rule,)),),
                )
                for rule in range(10)
            ),
        )
        for number in range(count)
    ]


def stranger(source: Address, destination: Address) -> Connection:
    """A connection that no policy of `policies` matches."""
    return Connection(source, Identity("cluster.local", "elsewhere", "nobody"), destination, 8080)
