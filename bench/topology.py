"""Where the bench runs: two nodes, and the same pods twice, enrolled and not. Pure."""

from dataclasses import dataclass

import yaml

PORT = 9000
NODES = {"a": ("10.77.1.0/24", "fd77:1::/64"), "b": ("10.77.2.0/24", "fd77:2::/64")}
MESH, PLAIN = "bench-mesh", "bench-plain"
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
)
DENY = "bench-deny"


def manifests(load_source: str) -> str:
    """The bench's objects as YAML. Servers run the load generator from its source: no file of it need be seen in a pod."""
    serve = ["/usr/bin/python3", "-c", load_source, "serve", "--port", str(PORT)]
    idle = ["/usr/bin/sleep", "infinity"]
    objects: list[dict[str, object]] = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": list(ranges)}}
        for name, ranges in NODES.items()
    ]
    for namespace, labels in ((MESH, {"istio.io/dataplane-mode": "ambient"}), (PLAIN, {})):
        objects.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
    for place in PODS:
        meta = {"name": place.name, "namespace": place.namespace}
        objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        container: dict[str, object] = {"name": "main", "image": _IMAGE, "command": serve if place.serves else idle}
        if place.serves:
            container["ports"] = [{"containerPort": PORT}]
            container["readinessProbe"] = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
        spec = {"nodeName": place.node, "serviceAccountName": place.name, "containers": [container]}
        labels = {"app": place.name}
        objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": {**meta, "labels": labels}, "spec": spec})
    return yaml.safe_dump_all(objects, sort_keys=False)


def deny_policy() -> str:
    """A policy that forbids the enrolled client to reach the server on the other node."""
    source = {"principals": [f"cluster.local/ns/{MESH}/sa/client"]}
    return yaml.safe_dump(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": DENY, "namespace": MESH},
            "spec": {
                "selector": {"matchLabels": {"app": "far"}},
                "action": "DENY",
                "rules": [{"from": [{"source": source}]}],
            },
        }
    )
