"""weft-control as a whole: a real process, real TLS, manifests in and resources out."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import grpc
import pytest
from cryptography import x509

from mesh.proto import control_pb2
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE, decode_address
from mesh.version import VERSION
from mesh.workload import Service, TunnelProtocol, Workload
from tests.control.conftest import DEADLINE_S
from tests.lab import world
from wire.grpc_tls import Endpoint
from wire.xds import NodeMetadata, Update, XdsClient

pytestmark = pytest.mark.unit

NODES = """
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDRs: [10.244.2.0/24]}}
"""
WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: demo}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, version: v3}}
    spec:
      serviceAccountName: web
      containers: [{name: main, command: [serve], ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
"""
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: demo}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {principals: ["*"]}}]}]}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: all, namespace: demo}
spec: {mtls: {mode: STRICT}}
"""
OUTSIDE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: demo}
spec: {hosts: [db.example], resolution: DNS, ports: [{number: 5432, name: tcp}]}
"""
WEB_0 = {"name": "web-0", "node": "n1", "addresses": ["10.244.1.2", "fd00:244:1::2"]}
UID_0 = "Kubernetes//Pod/demo/web-0"
WEB_KEY = "demo/web.demo.svc.cluster.local"


def open_stream(control: Any, node: str = "n1") -> Any:
    """Subscribe to both types; the first answers are still to be taken."""
    if node not in control.tokens:
        control.token(node)
    stream = control.stream(node)
    stream.send(ADDRESS_TYPE, node=True)
    stream.send(AUTHORIZATION_TYPE, node=True)
    return stream


def both(stream: Any) -> dict[str, Any]:
    """One response of each type, acknowledged, by type."""
    return {response.type_url: response for response in (stream.take(), stream.take())}


def names(response: Any) -> list[str]:
    return [resource.name for resource in response.resources]


def address(response: Any, name: str) -> Workload | Service:
    return decode_address(next(one.resource.value for one in response.resources if one.name == name))


def applied(response: Any) -> dict[str, str]:
    assert not response.problems, response.problems
    return {change.object: change.change for change in response.changes}


def test_from_apply_to_a_node(control: Any) -> None:
    assert applied(control.apply(NODES + "---" + WEB)) == {
        "Node n1": "created",
        "Node n2": "created",
        "Deployment demo/web": "created",
        "Service demo/web": "created",
    }
    stream = open_stream(control)
    first = both(stream)
    assert names(first[ADDRESS_TYPE]) == [WEB_KEY], "no pod is a workload before it is reported"
    assert names(first[AUTHORIZATION_TYPE]) == ["istio-system/istio_converted_static_strict"]
    service = address(first[ADDRESS_TYPE], WEB_KEY)
    assert isinstance(service, Service)
    assert service.ports == {80: 0} and service.canonical and len(service.vips) == 1

    control.report(WEB_0, {"name": "web-1", "node": "n2", "ready": False, "enrolled": False, "addresses": ["10.244.2.2"]})
    pushed = stream.take()
    assert names(pushed) == [UID_0, "Kubernetes//Pod/demo/web-1"]
    workload = address(pushed, UID_0)
    assert isinstance(workload, Workload)
    assert workload.addresses == (ip_address("10.244.1.2"), ip_address("fd00:244:1::2"))
    assert workload.protocol is TunnelProtocol.HBONE and workload.healthy and workload.node == "n1"
    assert (workload.workload_name, workload.canonical_name, workload.canonical_revision) == ("web", "web", "v3")
    assert workload.services == {WEB_KEY: {80: 8080}} and workload.service_account == "web"
    other = address(pushed, "Kubernetes//Pod/demo/web-1")
    assert isinstance(other, Workload) and other.protocol is TunnelProtocol.NONE and not other.healthy

    assert applied(control.apply(DENY)) == {"AuthorizationPolicy demo/nobody": "created"}
    pushed = [stream.take(), stream.take()]
    assert {response.type_url: names(response) for response in pushed} == {
        ADDRESS_TYPE: [UID_0, "Kubernetes//Pod/demo/web-1"],
        AUTHORIZATION_TYPE: ["demo/nobody"],
    }
    control.report(WEB_0)
    assert list(stream.take().removed_resources) == ["Kubernetes//Pod/demo/web-1"]
    assert applied(control.delete(DENY)) == {"AuthorizationPolicy demo/nobody": "deleted"}
    assert {
        url: gone for one in (stream.take(), stream.take()) for url, gone in [(one.type_url, list(one.removed_resources))]
    } == {
        ADDRESS_TYPE: [],
        AUTHORIZATION_TYPE: ["demo/nobody"],
    }


def test_status_counts_what_there_is_and_says_since_when_and_until_when(new_control: Callable[[], Any]) -> None:
    control, began_s = new_control(), int(time.time())
    control.start()
    control.apply("---".join((NODES, WEB, DENY)))
    control.report(WEB_0)
    control.token("n1")
    status = control.status()
    assert (status.version, status.objects, status.workloads, status.services, status.policies) == (VERSION, 5, 1, 1, 2)
    assert began_s <= status.started_unix_s <= time.time()
    root = x509.load_pem_x509_certificate(control.root_pem.encode())
    assert status.root_expires_unix_s == root.not_valid_after_utc.timestamp()
    assert (status.rotation.phase, status.rotation.until_unix_s, status.rotation.bundle_pem) == ("steady", 0, control.root_pem)


def test_a_refusal_is_kept_and_shown(control: Any) -> None:
    control.apply(NODES + "---" + WEB)
    stream = open_stream(control)
    for response in (stream.receive(), stream.receive()):
        stream.acknowledge(response, "demo/web: no thanks" if response.type_url == ADDRESS_TYPE else "")
    # A nonce that was never given is neither an ACK nor a reason to say anything again.
    stream.send(ADDRESS_TYPE, response_nonce="stale", error_detail={"message": "late\na line of its own"})
    control.report(WEB_0)
    pushed = stream.receive()
    assert names(pushed) == [UID_0], "what was refused is not sent again"
    world.eventually(lambda: "istio.workload.Address: late" in control.status().nodes[0].last_nack)
    [node] = control.status().nodes
    assert (node.node, node.acked, node.synced_resources) == ("n1", False, 3)
    stream.acknowledge(pushed)
    world.eventually(lambda: control.status().nodes[0].acked)
    assert r"late\na line of its own" in control.log.read_text(), "and logged in one"


def test_a_slow_client_is_told_the_newest_state_in_one_piece(control: Any) -> None:
    control.apply(NODES + "---" + WEB)
    stream = open_stream(control)
    first = [stream.receive(), stream.receive()]
    for ready in (True, False, True, False):
        control.report(WEB_0 | {"ready": ready})
    web_1 = {"name": "web-1", "node": "n2", "addresses": ["10.244.2.2"]}
    control.report(web_1)
    for response in first:
        stream.acknowledge(response)
    pushed = stream.take()
    assert names(pushed) == ["Kubernetes//Pod/demo/web-1"] and not pushed.removed_resources, "web-0 came and went unseen"
    control.report(web_1, WEB_0)
    assert names(stream.take()) == [UID_0], "and nothing was left in a queue"


def test_the_meshs_own_client(control: Any, tmp_path: Any, eventually: Any) -> None:
    control.apply(NODES + "---" + WEB)
    control.report(WEB_0)
    (tmp_path / "token").write_text(control.token("n1"))
    (tmp_path / "root.pem").write_text(control.root_pem)
    endpoint = Endpoint(control.address(), tmp_path / "root.pem", tmp_path / "token", "Kubernetes")
    seen: dict[str, Workload | Service] = {}

    async def take(update: Update) -> dict[str, str]:
        if update.type_url == ADDRESS_TYPE:
            seen.update({one.name: decode_address(one.value) for one in update.upserts})
            for name in update.removals:
                del seen[name]
        return {}

    async def follow() -> None:
        node = NodeMetadata("ztunnel", "ztunnel-n1", "weft", "10.0.0.1", "n1", "Kubernetes")
        client = XdsClient(endpoint, node, [ADDRESS_TYPE, AUTHORIZATION_TYPE], take)
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(client.run())
            await eventually(lambda: client.ready)
            assert set(seen) == {UID_0, WEB_KEY}
            await asyncio.to_thread(control.report)
            await eventually(lambda: UID_0 not in seen)
            running.cancel()

    asyncio.run(follow())


def test_nodes_are_told_the_same_and_keep_what_they_have(control: Any) -> None:
    control.apply(NODES + "---" + WEB)
    control.report(WEB_0)
    first, second = open_stream(control, "n1"), open_stream(control, "n2")
    held = {}
    for stream in (first, second):
        responses = both(stream)
        assert names(responses[ADDRESS_TYPE]) == [UID_0, WEB_KEY]
        held = {resource.name: resource.version for resource in responses[ADDRESS_TYPE].resources}
    assert [node.node for node in control.status().nodes] == ["n1", "n2"]
    second.close()
    again = control.stream("n2")
    again.send(ADDRESS_TYPE, node=True, initial_resource_versions=held | {"gone": "1", WEB_KEY: "older"})
    response = again.take()
    assert (names(response), list(response.removed_resources)) == ([WEB_KEY], ["gone"])


@pytest.mark.parametrize(
    ("token", "request_fields", "code", "reason"),
    [
        ("", {"node": True}, grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure"),
        ("weft-" + "0" * 64, {"node": True}, grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure"),
        (None, {}, grpc.StatusCode.INVALID_ARGUMENT, "missing node information"),
        (
            None,
            {"node": True, "node_name": "n2"},
            grpc.StatusCode.PERMISSION_DENIED,
            "NODE_NAME 'n2' is not the node of this credential: 'n1'",
        ),
        (None, {"node": True, "type_url": "x/y.Z"}, grpc.StatusCode.INVALID_ARGUMENT, "type 'x/y.Z' is not served here"),
    ],
)
def test_who_may_not_listen(
    control: Any, token: str | None, request_fields: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    control.apply(NODES)
    control.token("n1")
    stream = control.stream("n1", token=token)
    stream.send(**{"type_url": ADDRESS_TYPE} | request_fields)
    assert stream.status() == (code, reason)
    assert not control.status().nodes
    other = open_stream(control)
    assert set(both(other)) == {ADDRESS_TYPE, AUTHORIZATION_TYPE}, "it serves others all the same"


@pytest.mark.parametrize("cluster", ["", "other"])
def test_a_stream_names_this_cluster(control: Any, cluster: str) -> None:
    control.apply(NODES)
    control.token("n1")
    stream = control.stream("n1", cluster=cluster)
    stream.send(ADDRESS_TYPE, node=True)
    code, reason = stream.status()
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert reason == "request authenticate failure: header clusterid must be 'Kubernetes': set CLUSTER_ID to it"


def test_a_removed_node_is_cut_off(control: Any) -> None:
    control.apply(NODES)
    stream = open_stream(control, "n2")
    stream.take()
    stream.take()
    control.delete("{apiVersion: v1, kind: Node, metadata: {name: n2}}")
    assert stream.status() == (grpc.StatusCode.PERMISSION_DENIED, "node n2 is no longer part of the mesh")
    control.apply(NODES)
    assert open_stream(control, "n2").status()[0] is grpc.StatusCode.UNAUTHENTICATED, "its token went with it"
    control.token("n2")
    assert set(both(open_stream(control, "n2"))) == {ADDRESS_TYPE, AUTHORIZATION_TYPE}
    with pytest.raises(grpc.RpcError) as refused:
        control.token("n9")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_bad_change_changes_nothing(control: Any) -> None:
    control.apply(NODES + "---" + WEB)
    before = control.status().revision
    response = control.apply(
        DENY + "---\n{apiVersion: v1, kind: Servic, metadata: {name: x}}\n---\n" + DENY.replace("DENY", "MAYBE")
    )
    assert not response.changes
    assert [(one.document, one.object, one.field) for one in response.problems if not one.warning] == [
        (2, "Servic x", "kind"),
        (3, "AuthorizationPolicy demo/nobody", "spec.action"),
    ]
    several = [control_pb2.ManifestFile(name=name, yaml="kind: x") for name in ("-", "-", "- (2)", "-")]
    problems = control.stub.Apply(control_pb2.ApplyRequest(files=several)).problems
    assert [one.file for one in problems] == ["-", "- (2)", "- (2) (2)", "- (3)"], "standard input may be named again"
    both = "{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIP: 192.0.2.1, ports: [{port: 80}]}}"
    [problem] = control.apply("{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n" + both, name="b.yaml").problems
    assert (problem.file, problem.document, problem.object, problem.field) == (
        "b.yaml",
        2,
        "Service default/b",
        "spec.clusterIP",
    )
    assert "192.0.2.1 is not in a service range" in problem.reason
    [problem] = control.delete("{apiVersion: v1, kind: Node, metadata: {name: n1}}").problems or [None]
    assert problem is None, "nothing needs this node by name"
    assert control.status().objects == 3
    assert control.status().revision == before + 1
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: n2, containers: [{name: c, command: [x]}]}}"
    assert applied(control.apply(pod, dry_run=True)) == {"Pod default/p": "created"}
    assert control.status().objects == 3
    control.apply(pod)
    assert applied(control.delete(pod, dry_run=True)) == {"Pod default/p": "deleted"}
    [problem] = control.delete("{apiVersion: v1, kind: Node, metadata: {name: n2}}").problems
    assert (problem.object, problem.reason) == ("Pod default/p", "there is no Node n2")


def test_a_bad_file_leaves_the_last_good_state_in_force(control: Any) -> None:
    control.apply(NODES + "---" + WEB)
    stream = open_stream(control)
    stream.take()
    stream.take()
    by_hand = control.manifests / "by-hand.yaml"
    by_hand.write_text(DENY + "---\nkind: [\n")
    control.wait_for_log("the last good state stays in force")
    [problem] = control.status().problems
    assert (problem.file, problem.document) == ("by-hand.yaml", 2) and "no valid YAML" in problem.reason
    refused = control.apply(DENY)
    assert [one.file for one in refused.problems] == ["by-hand.yaml"] and not refused.changes
    control.report(WEB_0)
    assert names(stream.take()) == [UID_0], "pods come and go meanwhile"
    by_hand.write_text(DENY)
    pushed = {response.type_url: names(response) for response in (stream.take(), stream.take())}
    assert pushed == {ADDRESS_TYPE: [UID_0], AUTHORIZATION_TYPE: ["demo/nobody"]}
    assert not control.status().problems
    [problem] = control.delete(DENY).problems
    assert "it stands in by-hand.yaml, document 1" in problem.reason
    assert control.log.read_text().count("no valid YAML") == 1, "said once"
    by_hand.unlink()
    assert {url for one in (stream.take(), stream.take()) for url in [one.type_url]} == {ADDRESS_TYPE, AUTHORIZATION_TYPE}


def test_a_file_whose_name_is_no_text_is_named_all_the_same(control: Any) -> None:
    with open(os.fsencode(control.manifests) + b"/\xff.yaml", "w") as file:
        file.write(DENY + "---\nkind: [\n")
    control.wait_for_log("no valid YAML")
    [problem] = control.status().problems
    assert (problem.file, problem.document) == (r"\udcff.yaml", 2)
    assert [one.file for one in control.apply(NODES).problems] == [r"\udcff.yaml"]


def test_nothing_is_told_before_the_first_good_state(new_control: Callable[[], Any]) -> None:
    control = new_control()
    control.start()
    control.apply(NODES + "---" + WEB)
    control.report(WEB_0)
    control.token("n1")
    control.stop()
    bad = control.manifests / "bad.yaml"
    bad.write_text("{apiVersion: v1, kind: Node}")
    control.start()
    stream = open_stream(control)
    code, reason = stream.status()
    unavailable = (grpc.StatusCode.UNAVAILABLE, "the mesh has no valid set of manifests yet: see weft status")
    assert (code, reason) == unavailable
    for refused in (control.report, lambda: control.token("n1"), lambda: next(control.watch())):
        with pytest.raises(grpc.RpcError) as error:
            refused()
        assert (error.value.code(), error.value.details()) == unavailable
    bad.unlink()
    control.wait_for_log("objects in force")
    assert names(both(open_stream(control))[ADDRESS_TYPE]) == [UID_0, WEB_KEY]


def test_a_restart_forgets_nothing(new_control: Callable[[], Any]) -> None:
    control = new_control()
    control.start("--service-cidr", "10.97.0.0/16")
    control.apply(NODES + "---" + WEB + "---" + OUTSIDE)
    control.report(WEB_0)
    stream = open_stream(control)
    first = both(stream)
    root = control.root_pem
    control.stop()
    assert not (control.run / "control.sock").exists()
    control.start("--service-cidr", "10.97.0.0/16")
    again = open_stream(control)
    second = both(again)
    assert {UID_0, WEB_KEY, "demo/db.example"} < set(names(second[ADDRESS_TYPE])), "reported pods stay until they are anew"
    for type_url, response in first.items():
        assert list(second[type_url].resources) == list(response.resources)
    control.token("n1")
    assert control.root_pem == root
    control.report()
    assert list(again.take().removed_resources) == [UID_0]


def test_objects_are_watched(control: Any) -> None:
    watch = control.watch("Service", "Node")
    first = next(watch)
    assert not first.objects_json
    control.apply(NODES + "---" + WEB)
    second = next(watch)
    objects = {one["metadata"]["name"]: one for one in map(json.loads, second.objects_json)}
    assert second.revision > first.revision and set(objects) == {"n1", "n2", "web"}
    vip = objects["web"]["spec"]["clusterIP"]
    assert objects["web"]["spec"]["clusterIPs"] == [vip] and vip.startswith("10.96.")
    watch.cancel()


def test_reports_are_checked(control: Any) -> None:
    control.apply(NODES + "---" + WEB)

    def refusal(*pods: dict[str, object], reporter: str = "lab") -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as refused:
            control.report(*pods, reporter=reporter)
        return refused.value.code(), refused.value.details()

    assert refusal(WEB_0, {"name": "web-1", "node": "n1", "addresses": ["here"]}) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "pod demo/web-1: 'here' does not appear to be an IPv4 or IPv6 address",
    )
    assert refusal(WEB_0, WEB_0)[1] == "pod demo/web-0 is reported twice"
    assert refusal(WEB_0, reporter="")[1] == refusal(WEB_0, reporter="x" * 254)[1] == "reporter: 1 to 253 characters"
    control.report(reporter="x" * 253)
    assert control.status().workloads == 0
    code, reason = refusal(WEB_0, {"name": "web-1", "node": "n1", "addresses": ["10.244.2.9"]})
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert reason == (
        "not taken: pod demo/web-1: 10.244.2.9 is outside the podCIDRs of node n1 (10.244.1.0/24, fd00:244:1::/64)"
    )
    status = control.status()
    assert status.workloads == 1 and [problem.object for problem in status.problems] == ["Pod demo/web-1"]
    many = [{"name": f"web-{last}", "node": "n1", "addresses": [f"10.244.2.{last}"]} for last in range(1, 24)]
    code, reason = refusal(*many)
    assert reason.count("is outside the podCIDRs") == 20 and reason.endswith("; and 3 more"), "a word to a person, not a list"
    assert len(control.status().problems) == 20
    control.report(WEB_0 | {"phase": ""})  # as of one that has just been made
    assert not control.status().problems


def test_resources_are_described_with_the_users_object(control: Any) -> None:
    control.apply(NODES + "---" + WEB + "---" + STRICT)
    control.report(WEB_0)

    def described(kind: str) -> list[Any]:
        return [
            json.loads(one)
            for one in control.stub.Describe(control_pb2.DescribeRequest(kind=kind), timeout=DEADLINE_S).resources_json
        ]

    [workload] = described("workloads")
    assert workload["uid"] == UID_0 and workload["object"] == "Deployment demo/web"
    assert workload["policySources"] == {"istio-system/istio_converted_static_strict": "PeerAuthentication demo/all"}
    [service] = described("services")
    assert service["object"] == "Service demo/web" and list(service["endpoints"]) == [UID_0]
    [policy] = described("policies")
    assert policy["object"] == "PeerAuthentication demo/all"
    with pytest.raises(grpc.RpcError, match="none of workloads, services, policies"):
        described("pods")


def test_manifests_in_one_file(new_control: Callable[[], Any], tmp_path: Any) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text(NODES + "---" + WEB)
    control = new_control()
    control.start("--manifests", str(path))
    assert control.status().objects == 4
    [problem] = control.apply(DENY).problems
    assert f"control reads the one file {path}" in problem.reason
    path.write_text(NODES)
    control.wait_for_log("2 objects in force")


def test_a_second_control_plane_is_refused(control: Any, tmp_path: Any) -> None:
    command = [sys.executable, "-m", "control", "--listen", control.address()]
    environment = {"WEFT_RUN_DIR": str(control.run), "WEFT_STATE_DIR": str(control.state)}
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert second.returncode == 1 and "another weft-control" in second.stderr
    environment = {"WEFT_RUN_DIR": str(tmp_path / "run"), "WEFT_STATE_DIR": str(tmp_path / "state")}
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert second.returncode == 1 and f"cannot listen on {control.address()}" in second.stderr
    environment["WEFT_RUN_DIR"] = str(control.run)
    second = subprocess.run(
        [*command[:-1], "127.0.0.1:0"], env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert second.returncode == 1 and "another process serves on" in second.stderr
    assert control.status().revision == 1, "the first one never noticed"
