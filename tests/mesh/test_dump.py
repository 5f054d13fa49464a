"""The config dump is what a real ztunnel says of the same resources."""

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from mesh.dump import dump_endpoints, dump_policy, dump_service, dump_workload
from mesh.inventory import Inventory
from mesh.policy import Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch
from mesh.workload import (
    ApplicationTunnel,
    BalancingMode,
    GatewayAddress,
    IPFamilies,
    Locality,
    NetworkAddress,
    WeightedWaypoint,
    Workload,
)
from mesh.workload import Scope as Preference
from tests.mesh.golden import ANN, S3, WAYPOINT

pytestmark = pytest.mark.unit

GOLDEN_WORKLOAD = (
    '{"authorizationPolicies":["amb2/converted_peer_authentication_portlevel2"],"canonicalName":"ann",'
    '"canonicalRevision":"latest","capacity":1,"clusterId":"Kubernetes","name":"ann","namespace":"amb2",'
    '"networkMode":"Standard","node":"n1","protocol":"HBONE","serviceAccount":"default",'
    '"services":["amb2/s2.amb2.svc.cluster.local","amb2/s3.amb2.svc.cluster.local"],"status":"Healthy",'
    '"trustDomain":"cluster.local","uid":"Kubernetes//Pod/amb2/ann",'
    '"waypoint":{"destination":"amb2/wp.amb2.svc.cluster.local","hboneMtlsPort":15008},"workloadIps":["10.244.1.7"],'
    '"workloadName":"ann","workloadType":"pod"}'
)
GOLDEN_SERVICE = (
    '{"canonical":true,"endpoints":{"Kubernetes//Pod/amb2/ann":{"port":{"80":8080},"status":"Healthy",'
    '"workloadUid":"Kubernetes//Pod/amb2/ann"}},"hostname":"s3.amb2.svc.cluster.local","ipFamilies":"IPv4","name":"s3",'
    '"namespace":"amb2","ports":{"80":8080},"subjectAltNames":[],"vips":["/10.96.74.127"],"visibility":"Public",'
    '"waypoint":{"destination":"amb2/wp.amb2.svc.cluster.local","hboneMtlsPort":15008}}'
)
GOLDEN_POLICY = (
    '{"action":"Deny","dryRun":false,"name":"converted_peer_authentication_portlevel","namespace":"amb",'
    '"rules":[[[{"notPrincipals":[{"Presence":[]}]}],[{"notDestinationPorts":[8080]}],[{"notDestinationPorts":[9090]}]]],'
    '"scope":"WorkloadSelector"}'
)


def compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def test_golden_workload() -> None:
    assert compact(dump_workload(ANN)) == GOLDEN_WORKLOAD


def test_golden_service_with_its_endpoints() -> None:
    inventory = Inventory()
    inventory.apply([ANN, S3], ())
    assert compact(dump_service(S3, inventory.endpoints(S3.key))) == GOLDEN_SERVICE


def test_golden_policy() -> None:
    strict = (Match(not_principals=(StringMatch("presence"),)),)
    ports = tuple((Match(not_destination_ports=(port,)),) for port in (8080, 9090))
    name = "converted_peer_authentication_portlevel"
    policy = Policy("amb", name, Scope.WORKLOAD_SELECTOR, Action.DENY, ((strict, *ports),))
    assert compact(dump_policy(policy)) == GOLDEN_POLICY


def test_staged_endpoints() -> None:
    inventory = Inventory()
    inventory.apply([replace(ANN, healthy=False)], ())
    staged = {key: dump_endpoints(endpoints) for key, endpoints in inventory.staged().items()}
    uid = "Kubernetes//Pod/amb2/ann"
    assert staged["amb2/s2.amb2.svc.cluster.local"] == {uid: {"workloadUid": uid, "port": {"80": 8080}, "status": "Unhealthy"}}


def test_what_few_workloads_have() -> None:
    gateway = GatewayAddress(NetworkAddress("net2", ip_address("192.0.2.200")), 15009)
    shown = dump_workload(
        replace(
            ANN,
            network="net1",
            network_gateway=gateway,
            native_tunnel=True,
            application_tunnel=ApplicationTunnel(True, 15088),
            locality=Locality("r", "z"),
            hostname="h",
            policy_sources={"a/b": "PeerAuthentication a/x"},
            waypoint=None,
            authorization_policies=(),
        )
    )
    assert shown["networkGateway"] == {"destination": "net2/192.0.2.200", "hboneMtlsPort": 15009}
    assert shown["applicationTunnel"] == {"protocol": "PROXY", "port": 15088}
    portless = dump_workload(Workload("u", "n", "ns", application_tunnel=ApplicationTunnel(True, 0)))
    assert portless["applicationTunnel"] == {"protocol": "PROXY", "port": None}
    assert (shown["network"], shown["nativeTunnel"], shown["hostname"]) == ("net1", True, "h")
    assert shown["locality"] == {"region": "r", "zone": "z", "subzone": ""}
    assert shown["policySources"] == {"a/b": "PeerAuthentication a/x"}
    assert not {"waypoint", "authorizationPolicies"} & shown.keys()


def test_what_few_services_have() -> None:
    shown = dump_service(
        replace(
            S3,
            vips=(NetworkAddress("net1", ip_address("10.99.0.0"), 16),),
            preferences=(Preference.NETWORK, Preference.REGION),
            mode=BalancingMode.FAILOVER,
            allow_unhealthy=True,
            weighted_waypoints=(WeightedWaypoint(WAYPOINT, 3),),
            namespace_only=True,
            shown_to=("a", "b"),
            ip_families=IPFamilies.AUTOMATIC,
            ports={80: 0},
        ),
        (),
    )
    assert (shown["vips"], shown["cidrVips"]) == ([], [{"cidr": "10.99.0.0/16", "network": "net1"}])
    assert shown["loadBalancer"] == {
        "routingPreferences": ["Network", "Region"],
        "mode": "Failover",
        "healthPolicy": "AllowAll",
    }
    assert shown["weightedWaypoints"] == [{"destination": {"destination": str(WAYPOINT), "hboneMtlsPort": 15008}, "weight": 3}]
    assert (shown["visibility"], shown["ports"], shown["endpoints"]) == ("Namespace", {"80": 0}, {})
    assert "ipFamilies" not in shown and shown["shownTo"] == ["a", "b"]


def test_every_attribute_of_a_match() -> None:
    match = Match(
        namespaces=(StringMatch("exact", "a"), StringMatch("prefix", "b"), StringMatch("suffix", "c")),
        not_service_accounts=(ServiceAccountMatch("n", "s"),),
        source_ips=(ip_network("10.0.0.0/8"),),
        not_destination_ips=(ip_network("fd00::/8"),),
        destination_ports=(80,),
    )
    policy = Policy("n", "p", Scope.NAMESPACE, Action.ALLOW, (((match,),),), dry_run=True)
    shown = dump_policy(policy)
    assert shown["rules"][0][0][0] == {
        "namespaces": [{"Exact": "a"}, {"Prefix": "b"}, {"Suffix": "c"}],
        "notServiceAccounts": [{"namespace": "n", "serviceAccount": "s"}],
        "sourceIps": ["10.0.0.0/8"],
        "notDestinationIps": ["fd00::/8"],
        "destinationPorts": [80],
    }
    assert (shown["action"], shown["scope"], shown["dryRun"]) == ("Allow", "Namespace", True)
