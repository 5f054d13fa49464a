import itertools
from textwrap import dedent

import pytest

from lab.desired import Desired, desired
from lab.ledger import Ledger
from mesh.manifests import parse

pytestmark = pytest.mark.unit

NODES = """
apiVersion: v1
kind: Node
metadata: {name: a}
---
apiVersion: v1
kind: Node
metadata: {name: b, labels: {disk: ssd}}
"""
WEB = """
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, command: [%s]}]}
"""


@pytest.mark.parametrize("name", ["fabric", "control"])
def test_no_node_is_called_as_a_part_of_the_lab(name: str) -> None:
    objects = parse({"x": f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}"}).objects
    result = desired(objects, Ledger(), True, str, "cluster.local")
    assert not result.nodes and f"Node {name}: no node of a lab is called {name}" in result.problems[0]


def pod(spec: str, name: str = "p", labels: str = "") -> str:
    return dedent(f"""
        ---
        apiVersion: v1
        kind: Pod
        metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}
        spec: {{containers: [{{name: c, command: [sleep]}}]{spec}}}
        """)


class Lab:
    """A ledger and ids that count up."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._uids = itertools.count(1)

    def place(self, text: str, mesh: bool = True) -> Desired:
        read = parse({"x": text})
        assert not read.problems
        return desired(read.objects, self.ledger, mesh, lambda: f"uid{next(self._uids)}", "cluster.local")


def placed(result: Desired) -> dict[str, tuple[str, str]]:
    return {key: (wish.node, wish.uid) for key, wish in result.pods.items()}


def test_pods_spread_evenly_and_stay_where_they_are() -> None:
    lab = Lab()
    four = placed(lab.place(NODES + WEB % (4, "sleep")))
    assert sorted(node for node, _ in four.values()) == ["a", "a", "b", "b"]
    assert placed(lab.place(NODES + WEB % (4, "sleep"))) == four
    assert placed(lab.place(NODES + WEB % (2, "sleep"))) == {key: four[key] for key in ("shop/web-0", "shop/web-1")}


def test_another_spec_is_another_life_on_the_same_node() -> None:
    lab = Lab()
    before = lab.place(NODES + WEB % (1, "sleep")).pods["shop/web-0"]
    after = lab.place(NODES + WEB % (1, "yes")).pods["shop/web-0"]
    assert after.node == before.node and after.uid != before.uid and after.addresses == before.addresses
    assert after.life != before.life


def test_labels_alone_are_the_same_life() -> None:
    lab = Lab()
    before = lab.place(NODES + pod("", labels="x: y")).pods["shop/p"]
    after = lab.place(NODES + pod("", labels="x: z")).pods["shop/p"]
    assert after.life == before.life and after.pod.labels != before.pod.labels


def test_a_pod_follows_its_node_name_and_its_node_selector() -> None:
    lab = Lab()
    result = lab.place(NODES + pod(", nodeName: b", "named") + pod(", nodeSelector: {disk: ssd}", "chosen") + pod("", "free"))
    assert {key: wish.node for key, wish in result.pods.items()} == {"shop/named": "b", "shop/chosen": "b", "shop/free": "a"}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (", nodeName: z", "spec.nodeName: there is no node 'z': add a Node of this name"),
        (", nodeSelector: {disk: tape}", "there is no node with the labels of its nodeSelector to run it on: add a Node"),
    ],
)
def test_a_pod_without_a_place_waits_with_its_reason(spec: str, reason: str) -> None:
    lab = Lab()
    result = lab.place(NODES + pod(spec))
    assert result.waiting == {"shop/p": reason} and result.pods == {}
    assert lab.ledger.pods == {}


def test_a_pod_moves_when_its_node_goes() -> None:
    lab = Lab()
    alone = NODES.partition("---")[0]
    assert lab.place(alone + pod("")).pods["shop/p"].node == "a"
    moved = lab.place(NODES.replace("name: a}", "name: a}\nspec: {unschedulable: true}").partition("---")[2] + pod(""))
    assert moved.pods["shop/p"].node == "b" and moved.pods["shop/p"].uid == "uid2"


def test_an_unschedulable_node_takes_no_new_pods() -> None:
    nodes = NODES.replace("name: a}", "name: a}\nspec: {unschedulable: true}")
    assert {wish.node for wish in Lab().place(nodes + WEB % (3, "sleep")).pods.values()} == {"b"}


def test_enrolment_follows_labels_and_the_mesh() -> None:
    namespace = "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n"
    text = NODES + namespace + pod("") + pod("", "out", "istio.io/dataplane-mode: none") + pod(", hostNetwork: true", "host")
    assert {key for key, wish in Lab().place(text).pods.items() if wish.enrol} == {"shop/p"}
    assert not any(wish.enrol for wish in Lab().place(text, mesh=False).pods.values())


def test_a_host_network_pod_has_its_nodes_addresses() -> None:
    wish = Lab().place(NODES + pod(", hostNetwork: true, nodeName: b")).pods["shop/p"]
    assert wish.addresses == () and wish.own_addresses == wish.underlay
    assert wish.address_texts == ["172.30.0.12", "fd00:30::c"]


def test_overlapping_nodes_are_a_problem_and_the_rest_runs() -> None:
    text = (
        NODES + "---\napiVersion: v1\nkind: Node\nmetadata: {name: c}\nspec: {podCIDRs: [10.1.0.0/25]}\n" + WEB % (1, "sleep")
    )
    result = Lab().place(text)
    assert result.problems == ["Node c: podCIDR 10.1.0.0/25 overlaps 10.1.0.0/24 of Node a"]
    assert sorted(result.nodes) == ["a", "b"] and list(result.pods) == ["shop/web-0"]


def test_a_node_is_on_the_network_of_its_label_or_on_that_of_the_mesh() -> None:
    near = "---\napiVersion: v1\nkind: Node\nmetadata: {name: c, labels: {topology.istio.io/network: near}}\n"
    root = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: far}}\n"
    assert Lab().place(NODES + near).networks == {"a": "", "b": "", "c": "near"}
    assert Lab().place(NODES + near + root).networks == {"a": "far", "b": "far", "c": "near"}


def test_a_node_may_have_another_proxy() -> None:
    text = "apiVersion: v1\nkind: Node\nmetadata: {name: %s, annotations: {lab.weft/ztunnel: %s}}\n---\n"
    result = Lab().place(NODES + "---\n" + text % ("c", "\"env A='b c' /opt/ztunnel proxy\""))
    assert result.proxies == {"a": (), "b": (), "c": ("env", "A=b c", "/opt/ztunnel", "proxy")}
    for command, reason in (("'a \"b'", "No closing quotation: quote it as for a shell"), ("' '", "is empty: name a program")):
        result = Lab().place(text % ("c", command))
        assert result.nodes == {} and reason in result.problems[0] and "annotation lab.weft/ztunnel" in result.problems[0]
