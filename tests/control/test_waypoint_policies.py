"""Who is behind a waypoint lets it in, and nobody else but whom a policy allows, where control is told to see to that."""

from ipaddress import ip_address

import pytest

from control.index import Index
from control.waypoint_policies import waypoint_policy
from control.workloads import MeshNames
from mesh.identity import Identity
from mesh.manifests import parse
from mesh.matching import Connection
from mesh.policy_set import evaluate
from mesh.policy_store import PolicyStore
from mesh.resources import decode_authorization, encode_policy
from mesh.workload import Workload
from tests.control.told import running

pytestmark = pytest.mark.unit

MESH = """
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: demo, labels: {istio.io/use-waypoint: gw}},
 spec: {selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: gw, namespace: demo}, spec: {selector: {app: gw}, ports: [{port: 15008}]}}
"""
POD = """
---
{apiVersion: v1, kind: Pod, metadata: {name: NAME, namespace: demo, labels: {app: NAME}},
 spec: {serviceAccountName: NAME-account, containers: [{name: c, command: [x]}]}}
"""
ALLOW = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends, namespace: demo}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {serviceAccounts: [friend]}}]}]}
"""
KEY = "demo/istio_allow_waypoint_demo_gw"


def pods(*names: str) -> str:
    return "".join(POD.replace("NAME", name) for name in names)


def made(manifests: str, wanted: bool = True) -> Index:
    index = Index(MeshNames(waypoint_policies=wanted, trust_domain_aliases=frozenset({"old.org"})))
    reports = [running("web", "10.244.1.1"), running("gw", "10.244.1.2")]
    index.replace_reports({one.key: one for one in reports}, ())
    index.replace_objects(parse({"x": manifests}).objects, {})
    return index


def workload(index: Index, name: str) -> Workload:
    return index.workloads.nouns[f"Kubernetes//Pod/demo/{name}"]


def lets_in(index: Index, account: str | None, domain: str = "cluster.local") -> bool:
    store = PolicyStore()
    sent = index.policies.nouns.items()
    store.apply([decode_authorization(key, encode_policy(one)) for key, one in sent], [])
    peer = Identity(domain, "demo", account) if account is not None else None
    connection = Connection(ip_address("10.244.1.9"), peer, ip_address("10.244.1.1"), 80)
    return evaluate(store.applicable(workload(index, "web")), connection).allowed


def test_the_waypoint_is_let_in_and_nobody_else() -> None:
    index = made(MESH + pods("web", "gw"))
    assert workload(index, "web").authorization_policies == (KEY,)
    assert workload(index, "web").policy_sources == {KEY: "Service demo/gw"}
    assert workload(index, "gw").authorization_policies == (), "it is the waypoint itself"
    assert lets_in(index, "gw-account") and lets_in(index, "gw-account", "old.org")
    assert not lets_in(index, "friend") and not lets_in(index, None)


def test_a_waypoint_that_asks_for_itself_is_not_kept_to_itself() -> None:
    own = pods("gw").replace("app: gw", "app: gw, istio.io/use-waypoint: gw")
    index = made(MESH + pods("web") + own)
    assert workload(index, "gw").authorization_policies == () and workload(index, "web").authorization_policies == (KEY,)


def test_whom_a_policy_allows_is_let_in_beside_it() -> None:
    index = made(MESH + pods("web", "gw") + ALLOW)
    assert workload(index, "web").authorization_policies == ("demo/friends", KEY)
    assert lets_in(index, "gw-account") and lets_in(index, "friend") and not lets_in(index, "stranger")


def test_unless_it_is_wanted_everybody_is_let_in() -> None:
    index = made(MESH + pods("web", "gw"), wanted=False)
    assert workload(index, "web").authorization_policies == () and KEY not in index.policies.nouns
    assert lets_in(index, None)


@pytest.mark.parametrize("there", [pods("web"), pods("web", "gw")])
def test_a_waypoint_that_nobody_stands_behind_or_that_is_not_there_lets_nobody_in(there: str) -> None:
    gone = MESH.replace("name: gw, namespace", "name: other, namespace") if "gw" in there else MESH
    index = made(gone + there)
    assert index.policies.nouns[KEY] == waypoint_policy(("demo", "gw"), ())
    assert not lets_in(index, "gw-account") and not lets_in(index, None)
    index.replace_objects(parse({"x": MESH + pods("web", "gw")}).objects, {})
    assert lets_in(index, "gw-account"), "as soon as somebody does"


def test_the_waypoints_of_pods_and_of_a_second_share_are_let_in_too() -> None:
    both = "labels: {istio.io/use-waypoint: gw, istio.io/use-waypoint-canary: new}"
    both += ", annotations: {istio.io/use-waypoint-canary-weight: '5'}"
    second = "---" + MESH.split("---")[2].replace("gw", "new")
    own = pods("web").replace("app: web", "app: web, istio.io/use-waypoint: mine")
    index = made(MESH.replace("labels: {istio.io/use-waypoint: gw}", both) + second + own + pods("gw", "new"))
    wanted = [f"demo/istio_allow_waypoint_demo_{name}" for name in ("gw", "mine", "new")]
    assert workload(index, "web").authorization_policies == tuple(wanted)
    assert set(wanted) <= index.policies.nouns.keys()
    assert lets_in(index, "gw-account") and lets_in(index, "new-account") and not lets_in(index, "web-account")
    plain = MESH.replace("labels: {istio.io/use-waypoint: gw}", "creationTimestamp: ''")
    index.replace_objects(parse({"x": plain + pods("web")}).objects, {})
    assert not index.policies.nouns.keys() & set(wanted) and lets_in(index, None), "nobody asks for one any more"


def test_the_waypoint_of_an_endpoint_that_is_listed_has_its_policy_too() -> None:
    """A list of policies that nobody knows would let everybody in."""
    entry = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: demo}
spec:
  hosts: [db.example]
  ports: [{number: 80, name: http}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.1, labels: {istio.io/use-waypoint: mine}}]
"""
    index = made(MESH + entry)
    (found,) = (one for one in index.workloads.nouns.values() if one.name == "db")
    assert found.authorization_policies == ("demo/istio_allow_waypoint_demo_mine",)
    assert set(found.authorization_policies) <= index.policies.nouns.keys()
