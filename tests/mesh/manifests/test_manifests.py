"""Manifests become objects with defaults, or problems that name file, document, object, field and reason."""

import json
import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from mesh.manifests import (
    KINDS,
    AuthorizationPolicy,
    Deployment,
    ManifestSet,
    Mode,
    Namespace,
    Node,
    Object,
    PeerAuthentication,
    Pod,
    Problem,
    Service,
    check_references,
    from_dict,
    is_enrolled,
    parse,
    pods_of,
    selects,
    service_selects,
)

pytestmark = pytest.mark.unit

CONTAINER = {"name": "app", "command": ["/bin/true"]}


def manifest(kind: str, name: str = "x", spec: Any = None, **metadata: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"apiVersion": KINDS[kind].API_VERSIONS[0], "kind": kind, "metadata": {"name": name, **metadata}}
    if spec is not None:
        made["spec"] = spec
    return made


def pod(name: str = "x", *, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return manifest("Pod", name, {"containers": [CONTAINER], **spec}, labels=labels or {})


def container(**fields: Any) -> dict[str, Any]:
    return pod(containers=[{**CONTAINER, **fields}])


def deployment(name: str = "web", replicas: int = 2, **spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [CONTAINER], **spec}}
    return manifest(
        "Deployment", name, {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
    )


def policy(*rules: Any, **spec: Any) -> dict[str, Any]:
    return manifest("AuthorizationPolicy", spec={"rules": list(rules), **spec})


def read(*objects: Any) -> ManifestSet:
    return parse({"f.yaml": "\n---\n".join(json.dumps(one) for one in objects)})


def only(value: dict[str, Any]) -> Any:
    result = read(value)
    assert result.problems == []
    (made,) = result.objects
    return made


def mistakes(value: Any) -> list[tuple[str, str]]:
    result = read(value)
    refused = [(problem.field, problem.reason) for problem in result.problems if not problem.warning]
    assert bool(refused) == (result.objects == [])
    return refused


def warnings(value: Any) -> list[tuple[str, str]]:
    result = read(value)
    assert not result.refused, result.problems
    return [(problem.field, problem.reason) for problem in result.problems]


# --- what is accepted


def test_a_node() -> None:
    node = only(manifest("Node", "n1", {"podCIDRs": ["10.1.0.0/24", "fd00:1::/64"], "podCIDR": "10.1.0.0/24"}))
    assert node.pod_cidrs == (ip_network("10.1.0.0/24"), ip_network("fd00:1::/64"))
    assert only(manifest("Node", "n1", {"podCIDR": "10.1.0.0/24"})).pod_cidrs == (ip_network("10.1.0.0/24"),)
    assert (node.title, node.file_name) == ("Node n1", "node..n1.yaml")


def test_a_pod_with_everything() -> None:
    made = only(
        manifest(
            "Pod",
            "redis",
            {
                "containers": [
                    {
                        "name": "redis",
                        "image": "ignored",
                        "command": ["redis-server"],
                        "args": ["--port", "$(PORT)", "--announce-ip", "$(POD_IP)", "$(UNKNOWN)", "$$(PORT)"],
                        "env": [
                            {"name": "PORT", "value": "6379"},
                            {"name": "URL", "value": "redis://$(POD_IP):$(PORT)"},
                            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        ],
                        "workingDir": "/data",
                        "ports": [{"name": "redis", "containerPort": 6379}],
                        "readinessProbe": {"tcpSocket": {"port": "redis"}, "periodSeconds": 2},
                        "securityContext": {"runAsUser": 1000},
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }
                ],
                "volumes": [{"name": "data", "emptyDir": {}}],
                "serviceAccountName": "cache",
                "nodeName": "n1",
                "restartPolicy": "OnFailure",
                "securityContext": {"runAsGroup": 7},
            },
            namespace="demo",
            labels={"app.kubernetes.io/name": "redis"},
        )
    )
    assert (made.title, made.file_name) == ("Pod demo/redis", "pod.demo.redis.yaml")
    assert (made.spec.service_account, made.spec.node_name, made.spec.restart_policy) == ("cache", "n1", "OnFailure")
    assert (made.spec.volumes, made.spec.run_as_group, made.spec.grace_period_s) == (("data",), 7, 30)
    (app,) = made.spec.containers
    assert (app.readiness.tcp_port, app.readiness.period_s, app.readiness.failure_threshold) == (6379, 2, 3)
    assert (app.run_as_user, app.mounts[0].path, app.working_directory) == (1000, "/data", "/data")
    assert made.spec.port_named("redis") == 6379
    assert made.spec.port_named("other") is None
    environment = app.environment({"status.podIP": "10.0.0.1"})
    assert environment == {"POD_IP": "10.0.0.1", "PORT": "6379", "URL": "redis://10.0.0.1:6379"}
    assert app.argv(environment) == ["redis-server", "--port", "6379", "--announce-ip", "10.0.0.1", "$(UNKNOWN)", "$(PORT)"]


def test_defaults() -> None:
    made = only(pod())
    assert (made.namespace, made.spec.service_account, made.spec.restart_policy) == ("default", "default", "Always")
    assert (made.spec.host_network, made.workload_name, made.deployment) == (False, "x", "")
    service = only(manifest("Service", "s", {"ports": [{"port": 80}]}))
    assert (service.ports[0].target, service.ports[0].protocol, service.headless) == (80, "TCP", False)
    authentication = only(manifest("PeerAuthentication"))
    assert (authentication.mode, authentication.port_modes) == (Mode.UNSET, {})
    assert only(manifest("AuthorizationPolicy")).rules == ()


def test_probes() -> None:
    http = {"httpGet": {"port": 8080, "path": "/ok", "httpHeaders": [{"name": "Host", "value": "h"}]}}
    probe = only(container(readinessProbe=http)).spec.containers[0].readiness
    assert (probe.http_port, probe.http_path, probe.http_host, probe.timeout_s) == (8080, "/ok", "h", 1)
    probe = only(container(readinessProbe={"exec": {"command": ["true"]}})).spec.containers[0].readiness
    assert probe.command == ("true",)


def test_services() -> None:
    made = only(
        manifest(
            "Service",
            "web",
            {
                "clusterIPs": ["10.96.0.9", "fd00::9"],
                "clusterIP": "10.96.0.9",
                "ports": [{"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 81, "protocol": "UDP"}],
                "selector": {"app": "web"},
                "ipFamilies": ["IPv6", "IPv4"],
                "ipFamilyPolicy": "RequireDualStack",
                "publishNotReadyAddresses": True,
                "internalTrafficPolicy": "Local",
            },
        )
    )
    assert made.cluster_ips == (ip_address("10.96.0.9"), ip_address("fd00::9"))
    assert [(port.port, port.target, port.protocol) for port in made.ports] == [(80, "http", "TCP"), (81, 81, "UDP")]
    assert (made.ip_families, made.publish_not_ready, made.internal_traffic_local) == (("IPv6", "IPv4"), True, True)
    assert only(manifest("Service", "h", {"clusterIP": "None"})).headless


def test_policies() -> None:
    made = only(
        policy(
            {
                "from": [{"source": {"principals": ["cluster.local/ns/a/sa/b"], "notNamespaces": ["x-*"]}}],
                "to": [{"operation": {"ports": ["8080"]}}],
                "when": [{"key": "source.ip", "values": ["10.0.0.0/8"], "notValues": ["10.0.0.1"]}],
            },
            selector={"matchLabels": {"app": "web"}},
            action="DENY",
        )
    )
    (rule,) = made.rules
    assert (rule.sources[0].principals, rule.sources[0].not_namespaces) == (("cluster.local/ns/a/sa/b",), ("x-*",))
    assert (rule.operations[0].ports, rule.conditions[0].not_values) == (("8080",), ("10.0.0.1",))
    assert (made.action, made.selector, made.dry_run) == ("DENY", {"app": "web"}, False)
    authentication = only(
        manifest(
            "PeerAuthentication",
            spec={
                "mtls": {"mode": "STRICT"},
                "selector": {"matchLabels": {"a": "b"}},
                "portLevelMtls": {"8080": {"mode": "DISABLE"}},
            },
        )
    )
    assert (authentication.mode, authentication.port_modes) == (Mode.STRICT, {8080: Mode.DISABLE})


ALL_KINDS = [
    manifest("Node", "n", {"podCIDRs": ["10.0.0.0/24"], "unschedulable": True}),
    manifest("Namespace", "n", labels={"a": "b"}, annotations={"c/d": "e f"}),
    manifest("ServiceAccount", "n", namespace="ns"),
    pod(hostNetwork=True, nodeSelector={"a": "b"}, initContainers=[{"name": "i", "command": ["a"]}]),
    container(
        env=[{"name": "A", "value": ""}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        ports=[{"containerPort": 1, "protocol": "UDP"}],
        readinessProbe={"httpGet": {"port": 1, "httpHeaders": [{"name": "Host", "value": "h"}]}},
        securityContext={"runAsUser": 0},
    ),
    deployment(replicas=0),
    manifest("Service", "h", {"clusterIP": "None", "publishNotReadyAddresses": True, "trafficDistribution": "PreferClose"}),
    manifest("Service", "s", {"clusterIP": "fd00::1", "ports": [{"port": 1, "targetPort": "p", "appProtocol": "http"}]}),
    manifest(
        "Gateway",
        "g",
        {
            "gatewayClassName": "istio-remote",
            "addresses": [{"value": "192.0.2.1"}, {"type": "Hostname", "value": "gw.example"}],
            "listeners": [{"name": "cross", "port": 15008, "protocol": "HBONE"}],
        },
        labels={"topology.istio.io/network": "net2"},
    ),
    policy({"to": [{"operation": {"notPorts": ["1"], "hosts": ["h"]}}]}, selector={"matchLabels": {}}),
    policy(action="CUSTOM", provider={"name": "p"}, targetRefs=[{"group": "g", "kind": "K", "name": "n"}]),
    manifest("PeerAuthentication", spec={"mtls": {"mode": "DISABLE"}, "selector": {"matchLabels": {}}}),
]


@pytest.mark.parametrize("value", ALL_KINDS, ids=lambda value: value["kind"])
def test_objects_are_written_as_they_are_read(value: dict[str, Any]) -> None:
    made: Object = only(value)
    written = json.loads(json.dumps(made.to_dict()))
    assert from_dict(written) == made
    assert type(made).from_dict(written) == made
    assert only(written) == made


def test_pods_of_deployments_too() -> None:
    (made, _) = pods_of(read(deployment()))
    assert Pod.from_dict(made.to_dict()) == made


def test_older_versions_of_the_security_kinds() -> None:
    for kind in ("AuthorizationPolicy", "PeerAuthentication"):
        assert only(manifest(kind) | {"apiVersion": "security.istio.io/v1beta1"}).kind == kind


def test_lists_are_opened() -> None:
    result = read({"apiVersion": "v1", "kind": "List", "items": [manifest("Namespace", "a"), manifest("Namespace", "b")]})
    assert [one.title for one in result] == ["Namespace a", "Namespace b"]


def test_what_a_cluster_adds_to_an_object_does_no_harm() -> None:
    value = manifest("Namespace", "a", {"finalizers": ["kubernetes"]}, uid="u", resourceVersion="5", managedFields=[{}])
    assert only(value | {"status": {"phase": "Active"}}).name == "a"


# --- what is refused


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        (manifest("Pod"), "spec", "required"),
        (pod(containers=[]), "spec.containers", "at least one container"),
        (pod(containers=[{"name": "a"}]), "spec.containers[0].command", "required: images are not run here"),
        (pod(containers=[CONTAINER, CONTAINER]), "spec.containers", "two containers of one name"),
        (pod(containers={"a": 1}), "spec.containers", "expected a list, got a mapping"),
        (pod(containers=[5]), "spec.containers[0]", "expected a mapping, got the value '5'"),
        (pod(hostNetwork="yes"), "spec.hostNetwork", "expected true or false, got the text 'yes'"),
        (pod(restartPolicy="Sometimes"), "spec.restartPolicy", "'Sometimes' is none of Always, OnFailure, Never"),
        (pod(containerz=[]), "spec.containerz", "no such field: containers is the nearest"),
        (pod(nodeName="N1"), "spec.nodeName", "'N1' is no object name"),
        (pod("Bad_Name"), "metadata.name", "'Bad_Name' is no object name"),
        (pod("x" * 254), "metadata.name", "is no object name"),
        (pod(labels={"a b": "c"}), "metadata.labels[a b]", "'a b' is no key"),
        (pod(labels={"a": "c d"}), "metadata.labels[a]", "'c d' is no label value"),
        (container(name="A"), "spec.containers[0].name", "'A' is no DNS label"),
        (container(command=["a\0b"]), "spec.containers[0].command[0]", "NUL character"),
        (container(args=[80]), "spec.containers[0].args[0]", "expected text, got the value '80': put it in quotes"),
        (container(env=[{"name": "A=B", "value": "c"}]), "spec.containers[0].env[0].name", "is no name of an environment"),
        (container(env=[{"name": "A", "value": 5}]), "spec.containers[0].env[0].value", "put it in quotes"),
        (
            container(env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath",
            "'spec.x' is none of metadata.name",
        ),
        (container(ports=[{"containerPort": 0}]), "spec.containers[0].ports[0].containerPort", "0 is not between 1 and 65535"),
        (container(ports=[{"containerPort": True}]), "spec.containers[0].ports[0].containerPort", "expected a whole number"),
        (
            container(ports=[{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]),
            "spec.containers[0].ports",
            "two ports of one name",
        ),
        (container(readinessProbe={}), "spec.containers[0].readinessProbe", "exactly one of httpGet, tcpSocket, exec"),
        (
            container(readinessProbe={"tcpSocket": {"port": "web"}}),
            "spec.containers[0].readinessProbe.tcpSocket.port",
            "no port named 'web' in this container",
        ),
        (
            container(readinessProbe={"httpGet": {"port": 1, "scheme": "HTTPS"}}),
            "spec.containers[0].readinessProbe.httpGet.scheme",
            "probes speak HTTP only",
        ),
        (
            container(readinessProbe={"exec": {"command": ["a"]}, "periodSeconds": 0}),
            "spec.containers[0].readinessProbe.periodSeconds",
            "0 is not between 1 and 86400",
        ),
        (container(securityContext={"runAsUser": -1}), "spec.containers[0].securityContext.runAsUser", "not between"),
        (
            container(volumeMounts=[{"name": "v", "mountPath": "/a"}]),
            "spec.containers[0].volumeMounts[0]",
            "no volume named 'v' in this pod",
        ),
        (
            pod(
                volumes=[{"name": "v", "emptyDir": {}}],
                containers=[{**CONTAINER, "volumeMounts": [{"name": "v", "mountPath": "/a/../b"}]}],
            ),
            "spec.containers[0].volumeMounts[0].mountPath",
            "is no mount path",
        ),
        (pod(volumes=[{"name": "v", "emptyDir": {}}] * 2), "spec.volumes[1].name", "two volumes named 'v'"),
        (deployment(replicas=-1), "spec.replicas", "-1 is not between 0 and 10000"),
        (deployment(restartPolicy="Never"), "spec.template.spec.restartPolicy", "must be Always"),
        (manifest("Deployment", spec={"selector": {"matchLabels": {}}}), "spec.template.spec", "required"),
        (
            manifest(
                "Deployment", spec={"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [CONTAINER]}}}
            ),
            "spec.selector",
            "does not select the template's labels",
        ),
        (manifest("Node", spec={"podCIDRs": ["10.0.0.1/24"]}), "spec.podCIDRs[0]", "has host bits set"),
        (manifest("Node", spec={"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}), "spec.podCIDRs", "at most one CIDR of each"),
        (manifest("Node", namespace="a"), "metadata.namespace", "a Node has no namespace"),
        (manifest("Namespace", "a.b"), "metadata.name", "'a.b' is no DNS label"),
        (manifest("Namespace", ""), "metadata.name", "required"),
        (manifest("Service", "1web", {"ports": [{"port": 1}]}), "metadata.name", "'1web' is no service name"),
        (manifest("Service", spec={}), "spec.ports", "at least one port"),
        (manifest("Service", spec={"ports": [{"port": 1}, {"port": 2}]}), "spec.ports", "each needs a name"),
        (
            manifest("Service", spec={"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 1}]}),
            "spec.ports",
            "one port occurs twice",
        ),
        (manifest("Service", spec={"ports": [{"port": 1, "targetPort": "1-"}]}), "spec.ports[0].targetPort", "is no port name"),
        (manifest("Service", spec={"ports": [{"port": 70000}]}), "spec.ports[0].port", "70000 is not between"),
        (manifest("Service", spec={"clusterIP": "10.0.0"}), "spec.clusterIP", "'10.0.0' is no IP address"),
        (
            manifest("Service", spec={"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"], "ports": [{"port": 1}]}),
            "spec.clusterIPs",
            "must begin with clusterIP, 10.0.0.1",
        ),
        (manifest("Service", spec={"ipFamilies": ["IPv5"], "ports": [{"port": 1}]}), "spec.ipFamilies", "IPv5: IPv4 and"),
        (manifest("Service", spec={"ipFamilies": ["IPv4", "IPv4"], "ports": [{"port": 1}]}), "spec.ipFamilies", "at most once"),
        (policy({"form": []}), "spec.rules[0].form", "no such field"),
        (policy({"from": []}), "spec.rules[0].from", "an empty list"),
        (policy({"from": [{"source": {}}]}), "spec.rules[0].from[0].source", "an empty entry matches nothing"),
        (
            policy({"from": [{"source": {"principal": ["a"]}}]}),
            "spec.rules[0].from[0].source.principal",
            "principals is the nearest",
        ),
        (
            policy({"from": [{"source": {"principals": ["spiffe://td/ns/a/sa/b"]}}]}),
            "spec.rules[0].from[0].source.principals[0]",
            "written without spiffe://",
        ),
        (
            policy({"from": [{"source": {"principals": ["admin"]}}]}),
            "spec.rules[0].from[0].source.principals[0]",
            "never matches",
        ),
        (policy({"from": [{"source": {"namespaces": ["a*b"]}}]}), "spec.rules[0].from[0].source.namespaces[0]", "stands alone"),
        (
            policy({"from": [{"source": {"namespaces": [""]}}]}),
            "spec.rules[0].from[0].source.namespaces[0]",
            "must not be empty",
        ),
        (
            policy({"from": [{"source": {"serviceAccounts": ["a/b/c"]}}]}),
            "spec.rules[0].from[0].source.serviceAccounts[0]",
            "'a/b' is no DNS label",
        ),
        (
            policy({"from": [{"source": {"ipBlocks": ["10.0.0.1/8"]}}]}),
            "spec.rules[0].from[0].source.ipBlocks[0]",
            "is no CIDR",
        ),
        (policy({"to": [{"operation": {"ports": ["http"]}}]}), "spec.rules[0].to[0].operation.ports[0]", "'http' is no port"),
        (policy({"to": [{"operation": {"ports": ["65536"]}}]}), "spec.rules[0].to[0].operation.ports[0]", "is no port"),
        (policy({"to": [{"operation": {"ports": ["00655361"]}}]}), "spec.rules[0].to[0].operation.ports[0]", "is no port"),
        (
            policy({"when": [{"key": "destination.port", "values": ["000001" + "0" * 5000]}]}),
            "spec.rules[0].when[0].values[0]",
            "no port",
        ),
        (
            policy({"from": [{"source": {"notIpBlocks": ["::ffff:10.0.0.0/104"]}}]}),
            "spec.rules[0].from[0].source.notIpBlocks[0]",
            "write IPv4 addresses as such, 10.0.0.0",
        ),
        (
            policy({"when": [{"key": "source.ip", "values": ["fe80::1%eth0"]}]}),
            "spec.rules[0].when[0].values[0]",
            "leave %eth0 out",
        ),
        (manifest("WorkloadEntry", spec={"address": "::ffff:10.0.0.1"}), "spec.address", "write IPv4 addresses as such"),
        (manifest("Service", spec={"clusterIP": "::ffff:10.0.0.1", "ports": [{"port": 1}]}), "spec.clusterIP", "IPv4"),
        (policy({"to": [{"operation": {"ports": [80]}}]}), "spec.rules[0].to[0].operation.ports[0]", "put it in quotes"),
        (policy({"when": [{"key": "source.ipp", "values": ["a"]}]}), "spec.rules[0].when[0].key", "is no attribute"),
        (policy({"when": [{"key": "source.ip"}]}), "spec.rules[0].when[0]", "needs values or notValues"),
        (policy(action="PERMIT"), "spec.action", "'PERMIT' is none of ALLOW, DENY"),
        (policy(action="CUSTOM"), "spec.provider", "goes with action CUSTOM"),
        (
            policy(selector={"matchLabels": {"a": "b"}}, targetRefs=[{"kind": "Gateway", "name": "g"}]),
            "spec.targetRefs",
            "either selector or targetRefs",
        ),
        (policy(selector={"matchExpressions": []}), "spec.selector.matchExpressions", "no such field"),
        (manifest("PeerAuthentication", spec={"mtls": {"mode": "strict"}}), "spec.mtls.mode", "'strict' is none of UNSET"),
        (
            manifest("PeerAuthentication", spec={"portLevelMtls": {"80": {"mode": "STRICT"}}}),
            "spec.portLevelMtls",
            "needs a selector",
        ),
        (
            manifest("PeerAuthentication", spec={"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"0": {}}}),
            "spec.portLevelMtls[0]",
            "'0' is no port",
        ),
        (
            manifest(
                "PeerAuthentication",
                spec={"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"00655361": {"mode": "STRICT"}}},
            ),
            "spec.portLevelMtls[00655361]",
            "'00655361' is no port",
        ),
        (
            manifest(
                "PeerAuthentication",
                spec={
                    "selector": {"matchLabels": {"a": "b"}},
                    "portLevelMtls": {"80": {"mode": "STRICT"}, "080": {"mode": "DISABLE"}},
                },
            ),
            "spec.portLevelMtls[080]",
            "one port occurs twice",
        ),
    ],
)
def test_mistakes(value: dict[str, Any], field: str, reason: str) -> None:
    found = mistakes(value)
    assert any(at == field and reason in why for at, why in found), found


def test_dry_run_is_true_or_false() -> None:
    value = manifest("AuthorizationPolicy", annotations={"istio.io/dry-run": "perhaps"})
    assert mistakes(value) == [("metadata.annotations[istio.io/dry-run]", 'expected "true" or "false"')]
    assert only(manifest("AuthorizationPolicy", annotations={"istio.io/dry-run": "true"})).dry_run is True


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- 1", Problem("f", 1, "", "", "expected an object with apiVersion, kind and metadata")),
        ("kind: Pod", Problem("f", 1, "Pod", "apiVersion", "required, as text")),
        ("apiVersion: v1\nmetadata: {name: a}", Problem("f", 1, "a", "kind", "required, as text")),
        ("a: 1\na: 2", Problem("f", 1, "", "", "line 2: key 'a' occurs twice")),
        (
            "apiVersion: v1\nkind: Pood\nmetadata: {name: a, namespace: b}",
            Problem("f", 1, "Pood b/a", "kind", f"unknown kind 'Pood' of 'v1': known are {', '.join(KINDS)}"),
        ),
        (
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}",
            Problem("f", 1, "Service a", "kind", "unknown kind 'Service' of 'serving.knative.dev/v1': known of v1"),
        ),
        (
            "apiVersion: apps/v1beta1\nkind: Deployment\nmetadata: {name: a}",
            Problem("f", 1, "Deployment a", "apiVersion", "'apps/v1beta1' is not known for a Deployment: write apps/v1"),
        ),
        ("apiVersion: v1\nkind: Namespace", Problem("f", 1, "Namespace", "metadata", "required")),
        ("apiVersion: v1\nkind: List\nitems: {kind: Namespace}", Problem("f", 1, "List", "items", "expected a list")),
    ],
)
def test_what_is_no_object(text: str, problem: Problem) -> None:
    result = parse({"f": text})
    assert result.objects == []
    assert result.problems[0] == problem


def test_all_mistakes_of_an_object_at_once_and_the_others_are_kept() -> None:
    result = read(manifest("Namespace", "good"), pod("Bad", containers=[{"name": "b", "command": [1]}], nonsense=1))
    assert [one.title for one in result] == ["Namespace good"]
    assert [(problem.document, problem.object) for problem in result.problems] == [(2, "Pod default/Bad")] * 3


def test_duplicates_are_refused_across_files() -> None:
    one = json.dumps(manifest("Namespace", "a"))
    result = parse({"first.yaml": one, "second.yaml": "# \n---\n" + one})
    assert [problem for problem in result.problems] == [
        Problem("second.yaml", 1, "Namespace a", "metadata.name", "defined twice: first in first.yaml, document 1")
    ]
    assert result.origins["Namespace a"] == ("first.yaml", 1)
    same_name = read(
        manifest("ServiceAccount", "a"), manifest("ServiceAccount", "a", namespace="other"), manifest("Namespace", "a")
    )
    assert same_name.problems == []


# --- what is ignored, with a warning


def test_kinds_that_weft_has_no_use_for_are_skipped_once_each() -> None:
    others = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "n"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "c"}},
        {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "d"}},
    ]
    result = read(*others)
    assert [problem.object for problem in result.problems] == ["ConfigMap n/a", "HTTPRoute c", "VirtualService d"]
    assert all(problem.warning for problem in result.problems)
    assert not result.refused


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (pod(tolerations=[]), "spec.tolerations"),
        (container(livenessProbe={}), "spec.containers[0].livenessProbe"),
        (container(readinessProbe={"grpc": {"port": 1}}), "spec.containers[0].readinessProbe.grpc"),
        (container(securityContext={"privileged": True}), "spec.containers[0].securityContext.privileged"),
        (container(env=[{"name": "A", "valueFrom": {"secretKeyRef": {}}}]), "spec.containers[0].env[0].valueFrom.secretKeyRef"),
        (manifest("Service", spec={"ports": [{"port": 1, "nodePort": 30000}], "type": "NodePort"}), "spec.type"),
        (manifest("Service", spec={"type": "ExternalName", "externalName": "a.example"}), "spec.type"),
        (manifest("Node", spec={"taints": [{}]}), "spec.taints"),
        (policy(action="DENY"), "spec.rules"),
    ],
)
def test_what_has_no_effect_is_said(value: dict[str, Any], field: str) -> None:
    assert [at for at, _ in warnings(value)] == [field]


def test_volumes_that_weft_does_not_have_are_not_mounted() -> None:
    mounts = [{"name": "v", "mountPath": "/v"}, {"name": "e", "mountPath": "/e"}]
    value = pod(
        volumes=[{"name": "v", "configMap": {"name": "c"}}, {"name": "e", "emptyDir": {"medium": "Memory"}}],
        containers=[{**CONTAINER, "volumeMounts": mounts}],
    )
    assert [at for at, _ in warnings(value)] == ["spec.volumes[0].configMap", "spec.containers[0].volumeMounts[0]"]
    (made,) = read(value).of(Pod)
    assert [mount.name for mount in made.spec.containers[0].mounts] == ["e"]


def test_an_external_name_makes_no_object() -> None:
    assert read(manifest("Service", spec={"type": "ExternalName"})).objects == []


# --- what objects mean to each other


def test_pods_of() -> None:
    pods = pods_of(read(pod("alone"), deployment("web", 3)))
    assert [(one.title, one.workload_name, one.labels) for one in pods] == [
        ("Pod default/alone", "alone", {}),
        ("Pod default/web-0", "web", {"app": "web"}),
        ("Pod default/web-1", "web", {"app": "web"}),
        ("Pod default/web-2", "web", {"app": "web"}),
    ]


MODE = "istio.io/dataplane-mode"


@pytest.mark.parametrize(
    ("own", "namespaces", "enrolled"),
    [
        (None, None, False),
        (None, "ambient", True),
        (None, "none", False),
        ("ambient", None, True),
        ("ambient", "none", True),
        ("none", "ambient", False),
        ("other", "ambient", True),
        ("other", None, False),
    ],
)
def test_enrolment(own: str | None, namespaces: str | None, enrolled: bool) -> None:
    one: Pod = only(pod(labels={MODE: own} if own else {}))
    namespace: Namespace = only(manifest("Namespace", "default", labels={MODE: namespaces} if namespaces else {}))
    assert is_enrolled(one, namespace) is enrolled
    assert is_enrolled(one, None) is (own == "ambient")


def test_never_enrolled() -> None:
    ambient = only(manifest("Namespace", "default", labels={MODE: "ambient"}))
    on_host = only(pod(hostNetwork=True, labels={MODE: "ambient"}))
    with_sidecar = only(manifest("Pod", "x", {"containers": [CONTAINER]}, annotations={"sidecar.istio.io/status": "{}"}))
    assert not is_enrolled(on_host, ambient)
    assert not is_enrolled(with_sidecar, ambient)


def test_selectors() -> None:
    assert selects({"a": "1"}, {"a": "1", "b": "2"})
    assert not selects({"a": "1", "b": "3"}, {"a": "1", "b": "2"})
    assert selects({}, {"a": "1"}) and selects(None, {})
    service: Service = only(manifest("Service", "s", {"ports": [{"port": 1}], "selector": {"app": "web"}}))
    everything: Service = only(manifest("Service", "s", {"ports": [{"port": 1}]}))
    web, other = (
        only(pod(labels={"app": "web"})),
        only(manifest("Pod", "x", {"containers": [CONTAINER]}, namespace="other", labels={"app": "web"})),
    )
    assert [service_selects(service, web), service_selects(service, other), service_selects(everything, web)] == [
        True,
        False,
        False,
    ]


def test_what_cannot_be_together() -> None:
    result = read(
        manifest("Node", "n1", {"podCIDRs": ["10.0.0.0/16", "fd00::/64"]}),
        manifest("Node", "n2", {"podCIDRs": ["10.0.1.0/24", "fd01::/64"]}),
        manifest("Node", "n3", {"podCIDRs": ["10.0.200.0/24"]}),
        pod("web-0", nodeName="n9"),
        deployment("web", nodeName="n1"),
        manifest("Service", "a", {"clusterIP": "10.96.0.1", "ports": [{"port": 1}]}),
        manifest("Service", "b", {"clusterIP": "10.96.0.1", "ports": [{"port": 1}]}),
    )
    assert result.problems == []
    assert [str(problem) for problem in check_references(result)] == [
        "Node n2: spec.podCIDRs: 10.0.1.0/24 overlaps 10.0.0.0/16 of Node n1",
        "Node n3: spec.podCIDRs: 10.0.200.0/24 overlaps 10.0.0.0/16 of Node n1",
        "Pod default/web-0: metadata.name: this name belongs to Pod default/web-0 and to Deployment/web",
        "Pod default/web-0: spec.nodeName: there is no Node n9",
        "Service default/b: spec.clusterIP: 10.96.0.1 belongs to Service default/a",
    ]


def test_a_waypoint_that_is_not_there_is_a_warning() -> None:
    """Whoever asks for it: a service, a pod, a pod of a deployment, a namespace; and one that no proxy can dial."""
    wish = {"istio.io/use-waypoint": "gw"}
    ports = {"ports": [{"port": 80}]}
    asking = [
        manifest("Namespace", "demo", labels=wish | {"istio.io/use-waypoint-namespace": "infra"}),
        manifest("Service", "web", ports, labels=wish),
        manifest("Service", "free", ports, labels={"istio.io/use-waypoint": "none"}),
        pod("one", labels=wish),
    ]
    missing = "there is no Service {}/gw: who is behind that waypoint is not reached until there is"
    problems = check_references(read(*asking))
    assert all(problem.warning for problem in problems)
    assert [(problem.object, problem.reason) for problem in problems] == [
        ("Namespace demo", missing.format("infra")),
        ("Service default/web", missing.format("default")),
        ("Pod default/one", missing.format("default")),
    ]
    there = manifest("Service", "gw", {"ports": [{"port": 15008}]})
    assert [problem.object for problem in check_references(read(*asking, there))] == ["Namespace demo"]
    (useless, *_) = check_references(read(asking[1], manifest("Service", "gw", ports)))
    assert useless.reason.startswith("Service default/gw has no port 15008")


def test_from_dict_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="unknown kind 'ConfigMap'"):
        from_dict({"kind": "ConfigMap", "apiVersion": "v1"})
    with pytest.raises(ValueError, match="expected a Node, got v1 Pod"):
        Node.from_dict(pod())
    with pytest.raises(ValueError, match=r"Pod default/x: spec\.foo: no such field; "):
        from_dict(pod(foo=1, bar=2))


def test_kinds_have_one_name_each() -> None:
    assert list(KINDS) == [kind.KIND for kind in KINDS.values()]
    assert {Deployment, AuthorizationPolicy, PeerAuthentication} < set(KINDS.values())


def test_a_mistake_is_named_once() -> None:
    wrong = policy({"from": [{"source": {"principal": ["a"]}}], "to": [{"operation": {"ports": ["99999"]}}]})
    fields = [problem.field for problem in parse({"f": json.dumps(wrong)}).problems]
    assert fields == ["spec.rules[0].from[0].source.principal", "spec.rules[0].to[0].operation.ports[0]"]


def test_the_examples_of_the_readme_are_manifests() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text()
    examples = [re.sub("^    ", "", one, flags=re.MULTILINE) for one in re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)]
    examples = [one for one in examples if one.startswith("apiVersion:")]
    assert len(examples) > 1
    for example in examples:
        found = parse({"README.md": example})
        assert len(found.objects) == 1 and not found.problems
