"""Whatever stands where in a manifest: it is read or refused with a path, and what was read is written and read back alike."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.authorization import convert
from mesh.manifests import AuthorizationPolicy, PeerAuthentication, check_references, from_dict, is_enrolled, parse, pods_of
from mesh.resources import decode_authorization, encode_policy

pytestmark = pytest.mark.unit

SEEDS = """
{apiVersion: v1, kind: Node, metadata: {name: n, labels: {a: b}}, spec: {podCIDRs: [10.0.0.0/24, "fd00::/64"]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: n, annotations: {a: b}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: demo, labels: {istio.io/use-waypoint: gw}}
spec:
  hosts: [db.example]
  addresses: [192.0.2.1, 198.51.100.0/24]
  ports: [{number: 5432, name: tcp, protocol: TCP, targetPort: 5433}]
  resolution: DNS
  location: MESH_EXTERNAL
  endpoints: [{address: a.example, ports: {tcp: 1}, weight: 2, locality: r/z, network: n, serviceAccount: s, labels: {a: b}}]
  exportTo: ["."]
  subjectAltNames: [x]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: demo}
spec: {address: 192.0.2.9, labels: {app: db}, weight: 2}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: demo}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      volumes: [{name: v, emptyDir: {}}]
      initContainers: [{name: i, command: ["true"]}]
      containers:
      - name: web
        command: [nginx]
        args: [a]
        env: [{name: A, value: b}, {name: C, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
        ports: [{name: http, containerPort: 80, protocol: TCP}]
        readinessProbe: {httpGet: {port: http, path: /, httpHeaders: [{name: Host, value: h}]}, periodSeconds: 5}
        securityContext: {runAsUser: 5}
        volumeMounts: [{name: v, mountPath: /v, readOnly: true}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIPs: [10.96.0.1, "fd00::1"], ports: [{name: a, port: 80, targetPort: http}], selector: {a: b}, ipFamilies: [IPv4]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  {name: g, labels: {topology.istio.io/network: n}, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/80}}
spec:
  gatewayClassName: istio-east-west
  addresses: [{type: IPAddress, value: 10.0.0.1}]
  listeners: [{name: l, port: 15008, protocol: HBONE, tls: {mode: Terminate}, allowedRoutes: {namespaces: {from: All}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: demo, annotations: {istio.io/dry-run: "true"}}
spec:
  action: DENY
  selector: {matchLabels: {a: b}}
  rules:
  - from: [{source: {principals: [td/ns/a/sa/b, "*"], ipBlocks: [10.0.0.0/8], serviceAccounts: [a/b], requestPrincipals: [x]}}]
    to: [{operation: {ports: ["80"], notPorts: ["81"], methods: [GET]}}]
    when: [{key: source.ip, values: [10.0.0.1], notValues: ["fd00::/8"]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p, namespace: demo}
spec: {mtls: {mode: STRICT}, selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: DISABLE}}}
"""
OBJECTS = [one.to_dict() for one in parse({"seeds": SEEDS}).objects]
assert len(OBJECTS) == 9

oddities = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["*", "a/b", "10.0.0.1", "8080"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["name", "spec"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        found += places(one, (*path, key))
    return found


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    value = copy.deepcopy(draw(st.sampled_from(OBJECTS)))
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(places(value) or [("kind",)]))
        at = value
        for key in way:
            at = at[key]
        if isinstance(at, dict) and draw(st.booleans()):
            at[draw(st.text(max_size=5))] = draw(oddities)
        else:
            at[last] = draw(oddities)
    return value


@settings(max_examples=300)
@given(damaged())
def test_damaged_objects(value: Any) -> None:
    result = parse({"f": json.dumps(value)})
    assert result.objects or result.problems
    for problem in result.problems:
        assert (problem.file, problem.document) == ("f", 1)
        assert problem.reason
    for one in result.objects:
        assert from_dict(json.loads(json.dumps(one.to_dict()))) == one
    for pod in pods_of(result)[:2]:
        is_enrolled(pod, None)
    check_references(result)
    conversion = convert(result.of(AuthorizationPolicy), result.of(PeerAuthentication))
    for policy in conversion.policies:
        assert decode_authorization(policy.key, encode_policy(policy)) == policy
