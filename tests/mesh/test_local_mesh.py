"""A node's own configuration of the mesh: Istio's keys read, everything else refused by name; the dump reads back."""

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.dump import dump_policy, dump_service, dump_workload
from mesh.local_mesh import LocalMesh, read_local_mesh
from mesh.policy import Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch
from mesh.workload import GatewayAddress, NamespacedHostname, NetworkAddress, Service, TunnelProtocol, Workload
from tests.mesh.test_resources import policies, services, workloads

pytestmark = pytest.mark.unit

EXAMPLE = """
workloads:
- uid: cluster1//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: default
  workloadIps: ["127.0.0.1", "::1"]
  protocol: HBONE
  node: local
  network: ""
  waypoint: {destination: default/wp.example.com, hboneMtlsPort: 15009}
  services:
    "default/example.com": {80: 8080, 443: 0}
- name: plain
  namespace: default
policies:
- name: deny-9999
  namespace: default
  scope: Namespace
  action: Allow
  rules:
  - - - notDestinationPorts: [9999]
        principals: [{Prefix: cluster.local/}, {Presence: []}]
        sourceIps: [10.0.0.0/8, "fd00::1"]
        serviceAccounts: [{namespace: a, serviceAccount: b}]
    - []
services:
- name: local
  namespace: default
  hostname: example.com
  vips: [/127.10.0.1, remote/127.10.0.2]
  cidrVips: [{cidr: 10.9.0.0/16, network: ""}]
  ports: {80: 8080}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/local]
  canonical: true
"""


def test_local_client() -> None:
    mesh = read_local_mesh(EXAMPLE)
    addresses = (ip_address("127.0.0.1"), ip_address("::1"))
    waypoint = GatewayAddress(NamespacedHostname("default", "wp.example.com"), 15009)
    served = {"default/example.com": {80: 8080, 443: 0}}
    local = Workload("cluster1//v1/Pod/default/local", "local", "default", addresses, services=served, waypoint=waypoint)
    plain = Workload("Kubernetes//Pod/default/plain", "plain", "default")
    assert mesh.workloads == (replace(local, protocol=TunnelProtocol.HBONE, node="local"), plain)
    [service] = mesh.services
    assert [str(vip) for vip in service.vips] == ["/127.10.0.1", "remote/127.10.0.2", "/10.9.0.0/16"]
    assert (service.ports, service.canonical, service.key) == ({80: 8080}, True, "default/example.com")
    match = Match(
        principals=(StringMatch("prefix", "cluster.local/"), StringMatch("presence")),
        source_ips=(ip_network("10.0.0.0/8"), ip_network("fd00::1/128")),
        not_destination_ports=(9999,),
        service_accounts=(ServiceAccountMatch("a", "b"),),
    )
    assert mesh.policies == (Policy("default", "deny-9999", Scope.NAMESPACE, Action.ALLOW, (((match,), ()),)),)
    tagged = EXAMPLE.replace("[{Prefix: cluster.local/}, {Presence: []}]", "[!Prefix cluster.local/, !Presence []]")
    assert tagged != EXAMPLE and read_local_mesh(tagged) == mesh, "the only form that Istio's ztunnel reads"
    assert read_local_mesh("") == read_local_mesh("workloads: []") == LocalMesh()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("workload: []", "workload: no such field"),
        ("workloads: {}", "workloads: expected a list"),
        ("[]", "no mapping: write the lists"),
        (
            "workloads: [{name: a, namespace: b, protocoll: HBONE}]",
            "workloads[0].protocoll: workload b/a has no such key: it has",
        ),
        ("workloads: [{name: a}]", "workloads[0].namespace: required"),
        ("workloads: [{name: a, namespace: b, protocol: QUIC}]", "workloads[0].protocol: 'QUIC' is none of TCP, HBONE"),
        ("workloads: [{name: a, namespace: b, workloadIps: [1.2.3]}]", "workloads[0].workloadIps[0]: '1.2.3' does not appear"),
        ("workloads: [{name: a, namespace: b}, {name: a, namespace: b}]", "workloads[1]: Kubernetes//Pod/b/a occurs twice"),
        (
            "workloads: [{name: a, namespace: b, services: {x: {}}}]",
            "workloads[0].services[x]: no service: write NAMESPACE/HOST",
        ),
        ("workloads: [{name: a, namespace: b, services: {n/x: {http: 80}}}]", "services[n/x].http: no port: write a number"),
        ("workloads: [{name: a, namespace: b, waypoint: {destination: wp}}]", "waypoint.destination: 'wp' is no destination"),
        (
            "services: [{name: a, namespace: b, hostname: c, vips: [1.2.3.4]}]",
            "vips[0]: '1.2.3.4' is no address: write NETWORK/",
        ),
        ("services: [{name: a, namespace: b, hostname: c, ports: {70000: 1}}]", "services[0].ports.70000: no port"),
        ("services: [{name: a, namespace: b, hostname: c, loadBalancer: {mode: Often}}]", "loadBalancer.mode: 'Often' is none"),
        (
            "policies: [{name: a, namespace: b, scope: Global, action: Maybe}]",
            "policies[0].action: 'Maybe' is none of Allow, De",
        ),
        (
            "policies: [{name: a, namespace: b, scope: Global, action: Deny, rules: [{}]}]",
            "rules[0]: expected a list, got a map",
        ),
        (
            "policies: [{name: a, namespace: b, scope: Global, action: Deny, rules: [[[{port: 1}]]]}]",
            "policies[0].rules[0][0][0].port: a match has no such key: it has destinationIps",
        ),
        (
            "policies: [{name: a, namespace: b, scope: Global, action: Deny, rules: [[[{principals: [{}]}]]]}]",
            "rules[0][0][0].principals[0]: write one of Exact, Prefix, Suffix",
        ),
        ("{}\n---\n{}", "2 documents: write all lists into one"),
        ("workloads: [", "no valid YAML"),
        ("x: " + "a" * (8 << 20), "more than 8388608 in one file"),
        ("services: [{}, {}, {}]", "; and 6 more"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        read_local_mesh(text)
    assert words in str(refusal.value) and len(str(refusal.value)) < 2000


def exact(gateway: GatewayAddress | None) -> GatewayAddress | None:
    """A gateway is no range: the strategies of the wire's resources do not know that."""
    if gateway is None or not isinstance(gateway.destination, NetworkAddress):
        return gateway
    return replace(gateway, destination=replace(gateway.destination, prefix=None))


@given(workloads.filter(lambda one: bool(one.name and one.namespace and one.uid)))
def test_a_dumped_workload_reads_back(drawn: Workload) -> None:
    workload = replace(drawn, waypoint=exact(drawn.waypoint), network_gateway=exact(drawn.network_gateway))
    shown = dump_workload(workload) | {"services": workload.services}
    assert read_local_mesh(json.dumps({"workloads": [shown]})).workloads == (workload,)


@given(services.filter(lambda one: bool(one.name and one.namespace and one.hostname)))
def test_a_dumped_service_reads_back(drawn: Service) -> None:
    weighted = tuple(replace(one, destination=exact(one.destination)) for one in drawn.weighted_waypoints)  # type: ignore[arg-type]
    vips = tuple(sorted(drawn.vips, key=lambda vip: vip.prefix is not None))
    service = replace(drawn, waypoint=exact(drawn.waypoint), weighted_waypoints=weighted, vips=vips)
    assert read_local_mesh(json.dumps({"services": [dump_service(service, ())]})).services == (service,)


@given(policies)
def test_a_dumped_policy_reads_back(policy: Policy) -> None:
    assert read_local_mesh(json.dumps({"policies": [dump_policy(policy)]})).policies == (policy,)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_local_mesh(text)
    except ValueError as refusal:
        assert str(refusal)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.sampled_from(["", "a", "a/b", "/1.2.3.4", "HBONE", "Deny"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["name", "namespace", "hostname", "vips", "cidrVips", "cidr", "ports", "80", "x", "waypoint", "destination", "rules",
         "principals", "Exact", "Presence", "action", "scope", "services", "a/b", "loadBalancer", "weightedWaypoints"]), inner,
        max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["workloads", "services", "policies"]), st.lists(values, max_size=3)))
def test_any_shape_is_read_or_refused(value: object) -> None:
    try:
        read_local_mesh(json.dumps(value))
    except ValueError as refusal:
        assert str(refusal)


def test_an_address_of_a_network_is_kept() -> None:
    text = "services: [{name: a, namespace: b, hostname: c, waypoint: {destination: net1/10.0.0.1, hboneMtlsPort: 15008}}]"
    [service] = read_local_mesh(text).services
    assert service.waypoint == GatewayAddress(NetworkAddress("net1", ip_address("10.0.0.1")), 15008)
