"""Networks, gateways between them, second waypoints, tunnels to applications: from a label to a proxy's decision."""

from dataclasses import replace as changed
from ipaddress import ip_address

import pytest

from control.describe import describe
from control.index import Index
from control.lookup import workload_aliases
from mesh.workload import ApplicationTunnel, BalancingMode, Scope, TunnelProtocol, Workload
from tests.control.told import indexed, replace, running, told
from ztunnel.route import Refused, Request, Route, decide

pytestmark = pytest.mark.unit

NODES = """
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {topology.istio.io/network: far}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: istio-system, labels: {topology.istio.io/network: near}}}
"""
POD = """
---
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: demo, labels: {app: NAME, LABELS}}
spec: {serviceAccountName: NAME-account, containers: [{name: c, command: [x]}]}
"""
SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: demo, MARKS}
spec: {selector: {app: NAME}, ports: [{port: PORT}]}
"""
GATEWAY = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: NAME, namespace: demo, labels: {LABELS}, annotations: {NOTES}}
spec: {gatewayClassName: CLASS, listeners: [{name: l, port: 15009, protocol: HBONE}], addresses: [ADDRESS]}
"""
REPORTS = [
    running("client", "10.244.1.1"),
    running("web", "10.244.2.1", "n2"),
    running("gw", "10.244.1.2"),
    running("new", "10.244.1.3"),
]
VIPS = {"demo/web": "10.96.0.9", "demo/gw": "10.96.0.10", "demo/new": "10.96.0.11"}
WEB = "demo/web.demo.svc.cluster.local"


def pod(name: str, labels: str = "a: b") -> str:
    return POD.replace("NAME", name).replace("LABELS", labels)


def service(name: str, marks: str = "creationTimestamp: ''", port: int = 80) -> str:
    return SERVICE.replace("NAME", name).replace("MARKS", marks).replace("PORT", str(port))


def gateway(name: str, labels: str = "a: b", notes: str = "a: b", kind: str = "istio-waypoint", address: str = "") -> str:
    text = GATEWAY.replace("NAME", name).replace("LABELS", labels).replace("NOTES", notes)
    return text.replace("CLASS", kind).replace("ADDRESS", address)


def namespace(marks: str) -> str:
    return f"\n---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: demo, {marks}}}}}\n"


FAR = gateway("far", "topology.istio.io/network: far", kind="istio-remote", address="{value: 192.0.2.7}")
BASE = NODES + pod("client") + pod("web") + service("web")


def made(manifests: str) -> Index:
    return indexed(manifests, REPORTS, VIPS)


def workload(index: Index, name: str) -> Workload:
    return index.workloads.nouns[f"Kubernetes//Pod/demo/{name}"]


def decided(index: Index, chance: float = 0.5, network: str = "near") -> Route | Refused:
    inventory = told(index)
    client = inventory.workload_of_pod("demo", "client", "client-account")
    assert client is not None
    return decide(inventory, network, Request(client, client.addresses[0], ip_address("10.96.0.9"), 80), chance)


def test_a_pod_is_on_the_network_of_its_label_its_node_or_the_mesh() -> None:
    index = made(BASE + pod("gw", "topology.istio.io/network: own"))
    assert [workload(index, name).network for name in ("client", "web", "gw")] == ["near", "far", "own"]
    assert [str(vip) for vip in index.services.nouns[WEB].vips] == [
        "/10.96.0.9",
        "far/10.96.0.9",
        "near/10.96.0.9",
        "own/10.96.0.9",
    ]
    replace(index, BASE.replace("near", "here"), VIPS)
    assert workload(index, "client").network == "here"
    assert [str(vip) for vip in index.services.nouns[WEB].vips] == ["/10.96.0.9", "far/10.96.0.9", "here/10.96.0.9"]


def test_a_mesh_of_one_network_names_nobody() -> None:
    index = made(pod("web").removeprefix("\n---") + service("web"))
    found = index.services.nouns[WEB]
    assert [str(vip) for vip in found.vips] == ["/10.96.0.9"] and found.subject_alt_names == ()


def test_double_hbone_to_another_network() -> None:
    index = made(BASE + FAR)
    route = decided(index)
    assert isinstance(route, Route), route
    assert (route.protocol, str(route.address), route.port) == ("DOUBLEHBONE", "192.0.2.7", 15009)
    assert index.workloads.nouns["NetworkGateway/far/192.0.2.7/15009"].hostname == ""
    assert str(route.authority) == "web.demo.svc.cluster.local:80"
    assert route.expected == {"spiffe://cluster.local/ns/demo/sa/far-istio-remote"}
    assert route.inner_expected == {"spiffe://cluster.local/ns/demo/sa/web-account"}


def test_a_proxy_that_has_not_heard_of_its_networks_name_goes_past_no_waypoint() -> None:
    near, wish = NODES.replace("far", "near"), "labels: {istio.io/use-waypoint: gw}"
    index = made(near + pod("client") + pod("web") + service("web", wish) + pod("gw") + service("gw", port=15008))
    route = decided(index, network="")
    assert isinstance(route, Route) and (route.hop, str(route.address)) == ("waypoint", "10.244.1.2")


def test_a_gateway_may_have_a_hostname_and_is_asked_for_by_it() -> None:
    named = FAR.replace("{value: 192.0.2.7}", "{type: Hostname, value: far.example}")
    index = made(BASE + named)
    found = index.workloads.nouns["NetworkGateway/far/far.example/15009"]
    assert (found.hostname, workload_aliases(found)) == ("far.example", ("demo/far.example",))
    assert str(workload(index, "web").network_gateway) == "demo/far.example"


@pytest.mark.parametrize(
    ("said", "instead"), [("istio-remote", "istio-waypoint"), ("network: far", "other: far"), ("HBONE", "TLS")]
)
def test_a_gateway_that_is_a_waypoint_or_says_no_network_or_takes_no_tunnels_leads_nowhere(said: str, instead: str) -> None:
    index = made(BASE + FAR.replace(said, instead))
    assert index.topology.gateways == () and workload(index, "web").network_gateway is None
    assert isinstance(decided(index), Refused)


def test_who_says_no_network_is_on_the_meshs_own_and_makes_no_other() -> None:
    entry = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: demo}
spec: {hosts: [db.example], resolution: STATIC, ports: [{number: 80, name: http}], endpoints: [{address: 192.0.2.1ONE}]}
"""
    assert made(NODES.replace("far", "near") + pod("web") + entry.replace("ONE", "")).topology.networks == ("near",)
    assert made(NODES + pod("web") + entry.replace("ONE", ", network: own")).topology.networks == ("far", "near", "own")


def test_a_network_without_gateway_is_not_reached() -> None:
    index = made(BASE + FAR)
    assert next(iter(describe(index, "workloads")))["object"]
    replace(index, BASE, VIPS)
    assert not [uid for uid in index.workloads.nouns if uid.startswith("NetworkGateway")]
    outcome = decided(index)
    assert isinstance(outcome, Refused) and "1 are on network far, to which no gateway is known" in outcome.reason


def test_a_service_names_who_answers_for_it_as_pods_come_and_go() -> None:
    index = made(BASE + FAR)
    more = pod("gw", "a: b").replace("app: gw", "app: web")
    replace(index, BASE + FAR + more, VIPS)
    names = index.services.nouns[WEB].subject_alt_names
    assert names == ("spiffe://cluster.local/ns/demo/sa/gw-account", "spiffe://cluster.local/ns/demo/sa/web-account")
    replace(index, BASE + FAR, VIPS)
    assert index.services.nouns[WEB].subject_alt_names == names[1:]
    fresh = made(BASE + FAR)
    assert fresh.services.nouns == index.services.nouns and fresh.workloads.nouns == index.workloads.nouns


WAYPOINTS = "".join(pod(name) + service(name, port=15008) for name in ("gw", "new"))
WISH = "labels: {istio.io/use-waypoint: gw, istio.io/use-waypoint-canary: new}"


def wished(share: str) -> str:
    return f"{WISH}, annotations: {{istio.io/use-waypoint-canary-weight: '{share}'}}"


@pytest.mark.parametrize("inherited", [False, True])
def test_weighted_waypoints(inherited: bool) -> None:
    marks = wished("25")
    mesh = NODES.replace("far", "near") + pod("client") + pod("web") + WAYPOINTS
    index = made(mesh + (service("web") + namespace(marks) if inherited else service("web", marks)))
    shares = [(str(one.destination), one.weight) for one in index.services.nouns[WEB].weighted_waypoints]
    assert shares == [("demo/gw.demo.svc.cluster.local", 75), ("demo/new.demo.svc.cluster.local", 25)]
    outcomes = [decided(index, chance) for chance in (0.1, 0.7, 0.8, 0.99)]
    assert [str(one.address) for one in outcomes if isinstance(one, Route)] == ["10.244.1.2"] * 2 + ["10.244.1.3"] * 2


def test_a_second_waypoint_counts_while_it_is_there() -> None:
    mesh = NODES.replace("far", "near") + pod("client") + pod("web") + service("web", wished("25")) + pod("gw")
    first, second = service("gw", port=15008), pod("new") + service("new", port=15008)
    index = made(mesh + first)
    for there in (False, True, False):
        replace(index, mesh + first + (second if there else ""), VIPS)
        assert len(index.services.nouns[WEB].weighted_waypoints) == (2 if there else 0)
        outcomes = [decided(index, chance) for chance in (0.1, 0.9)]
        addresses = [str(one.address) for one in outcomes if isinstance(one, Route)]
        assert addresses == ["10.244.1.2", "10.244.1.3" if there else "10.244.1.2"]
    replace(index, mesh, VIPS)
    outcome = decided(index)
    assert isinstance(outcome, Refused) and outcome.reason.startswith("unknown waypoint: demo/gw."), "never past the first"


def test_a_second_waypoint_that_is_the_first_is_none() -> None:
    own = service("web", wished("25").replace("canary: new", "canary: gw"))
    found = made(NODES + pod("web") + own + WAYPOINTS).services.nouns[WEB]
    assert str(found.waypoint) == "demo/gw.demo.svc.cluster.local" and found.weighted_waypoints == ()


def test_a_service_that_names_its_waypoint_does_not_inherit_a_second_one() -> None:
    own = service("web", "labels: {istio.io/use-waypoint: gw}")
    found = made(NODES + pod("web") + own + WAYPOINTS + namespace(wished("25"))).services.nouns[WEB]
    assert str(found.waypoint) == "demo/gw.demo.svc.cluster.local" and found.weighted_waypoints == ()
    wrong = made(NODES + pod("web") + service("web", wished("most")) + WAYPOINTS).services.nouns[WEB]
    assert wrong.waypoint is not None and wrong.weighted_waypoints == ()


def test_the_pods_of_a_waypoint_get_connections_as_its_gateway_says() -> None:
    member = pod("gw", "gateway.networking.k8s.io/gateway-name: gw")
    bound = gateway("gw", notes="ambient.istio.io/waypoint-inbound-binding: PROXY/15088")
    index = made(NODES + member + pod("web") + bound)
    assert workload(index, "gw").application_tunnel == ApplicationTunnel(True, 15088)
    assert workload(index, "web").application_tunnel is None
    replace(index, NODES + member + pod("web") + gateway("gw"), VIPS)
    assert workload(index, "gw").application_tunnel is None


@pytest.mark.parametrize(
    ("purpose", "for_service", "for_pod"),
    [("service", True, False), ("workload", False, True), ("all", True, True), ("none", False, False), ("", True, False)],
)
def test_whom_a_namespaces_waypoint_is_for(purpose: str, for_service: bool, for_pod: bool) -> None:
    wish = namespace("labels: {istio.io/use-waypoint: gw}")
    index = made(BASE + wish + (gateway("gw", f"istio.io/waypoint-for: {purpose}") if purpose else ""))
    assert (index.services.nouns[WEB].waypoint is not None, workload(index, "web").waypoint is not None) == (
        for_service,
        for_pod,
    )


def test_a_pod_that_speaks_tunnels_itself() -> None:
    reported = changed(running("web", "10.244.2.1"), enrolled=False)  # nobody else carries its connections
    index = indexed(NODES + pod("web", "networking.istio.io/tunnel: http"), [reported], {})
    found = workload(index, "web")
    assert (found.native_tunnel, found.protocol) == (True, TunnelProtocol.HBONE)


def test_how_traffic_is_distributed_may_be_noted_at_a_service_or_its_namespace() -> None:
    note = "annotations: {networking.istio.io/traffic-distribution: PreferClose}"
    for text in (service("web", note), service("web") + namespace(note)):
        found = made(NODES + pod("web") + text).services.nouns[WEB]
        assert (found.mode, found.preferences) == (BalancingMode.FAILOVER, (Scope.NETWORK, Scope.REGION, Scope.ZONE))
