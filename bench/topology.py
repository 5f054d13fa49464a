"""Where the bench runs: two nodes, and the same pods enrolled, not enrolled, and for the pair of ztunnels. Pure."""

from dataclasses import dataclass

import yaml

PORT = 9000
NODES = {"a": ("10.76.0.0/16", "fd77:1::/64"), "b": ("10.77.0.0/16", "fd77:2::/64")}
MESH, PLAIN, PEER = "bench-mesh", "bench-plain", "bench-ztunnel"
SOURCES = "10.99.0.0/16"
"""Addresses of its own in each client pod: a proxy knows no connection from an address that it has not seen."""
_IMAGE = "none"


@dataclass(frozen=True, slots=True)
class Place:
    """A pod of the bench."""

    namespace: str
    name: str
    node: str
    serves: bool = False

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


PODS = (
    Place(MESH, "client", "a"),
    Place(MESH, "near", "a", serves=True),
    Place(MESH, "far", "b", serves=True),
    Place(MESH, "spare", "a"),
    Place(PLAIN, "client", "a"),
    Place(PLAIN, "near", "a", serves=True),
    Place(PLAIN, "far", "b", serves=True),
    Place(PEER, "client", "a"),
    Place(PEER, "far", "b", serves=True),
)
DENY = "bench-deny"
_CLIENT = {"principals": [f"cluster.local/ns/{MESH}/sa/client"]}


def place(namespace: str, name: str) -> Place:
    """A pod of the bench by its name."""
    return next(one for one in PODS if (one.namespace, one.name) == (namespace, name))


def manifests(server_source: str) -> str:
    """The bench's objects as YAML, a policy that lets the client in among them.

    Servers run the load generator from its source: no file of it need be seen in a pod.
    """
    serve = ["/usr/bin/python3", "-c", server_source, "--port", str(PORT)]
    idle = ["/usr/bin/sleep", "infinity"]
    objects: list[dict[str, object]] = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": list(ranges)}}
        for name, ranges in NODES.items()
    ]
    for namespace, labels in ((MESH, {"istio.io/dataplane-mode": "ambient"}), (PLAIN, {}), (PEER, {})):
        objects.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
    objects.append(_policy("bench-allow", {"action": "ALLOW", "rules": [{"from": [{"source": _CLIENT}]}]}))
    for one in PODS:
        meta = {"name": one.name, "namespace": one.namespace}
        objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        container: dict[str, object] = {"name": "main", "image": _IMAGE, "command": serve if one.serves else idle}
        if one.serves:
            container["ports"] = [{"containerPort": PORT}]
            container["readinessProbe"] = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
        spec = {"nodeName": one.node, "serviceAccountName": one.name, "containers": [container]}
        labels = {"app": one.name}
        objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": {**meta, "labels": labels}, "spec": spec})
    return yaml.safe_dump_all(objects, sort_keys=False)


def crowd(count: int) -> list[dict[str, object]]:
    """Pods of node a that do nothing, as manifests, enrolled."""
    containers = [{"name": "main", "image": _IMAGE, "command": ["/usr/bin/sleep", "infinity"]}]
    spec = {"nodeName": "a", "serviceAccountName": "spare", "containers": containers}
    names = [f"crowd-{number}" for number in range(count)]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": MESH}, "spec": spec} for name in names]


def far_service() -> tuple[str, str]:
    """A service in front of the server on the other node, and its name in DNS."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "far", "namespace": MESH},
        "spec": {"selector": {"app": "far"}, "ports": [{"port": PORT}]},
    }
    return yaml.safe_dump(service), f"far.{MESH}.svc.cluster.local"


def deny_policy() -> str:
    """A policy that forbids the enrolled client to reach the server on the other node."""
    rules = [{"from": [{"source": _CLIENT}]}]
    return yaml.safe_dump(_policy(DENY, {"selector": {"matchLabels": {"app": "far"}}, "action": "DENY", "rules": rules}))


def _policy(name: str, spec: dict[str, object]) -> dict[str, object]:
    meta = {"name": name, "namespace": MESH}
    return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta, "spec": spec}
