"""A mesh that is a file (LOCAL_XDS_PATH): what Istio's ztunnel makes of it is what weft's makes of it."""

import json
from pathlib import Path

import pytest

from mesh.dump import dump_policy, dump_service, dump_workload
from mesh.inventory import Inventory
from mesh.local_mesh import read_local_mesh
from tests.peer.standalone import standalone

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]

MESH = """
workloads:
- {uid: c//Pod/shop/client, name: client, namespace: shop, serviceAccount: client, workloadIps: [10.197.0.1, "fd00::1"],
   protocol: HBONE, node: n1, network: "", workloadName: clients, workloadType: deployment, canonicalName: cn,
   canonicalRevision: v1, clusterId: c, trustDomain: cluster.local, nativeTunnel: true, capacity: 7,
   authorizationPolicies: [shop/one, shop/two], locality: {region: r, zone: z, subzone: s},
   services: {shop/web.shop: {80: 8081}}}
- {uid: c//Pod/shop/web, name: web, namespace: shop, serviceAccount: web, workloadIps: [10.197.0.2], network: net1,
   clusterId: c, trustDomain: other, services: {shop/web.shop: {80: 8080}, shop/gone.shop: {1: 2}}, status: Unhealthy,
   hostname: web.host, waypoint: {destination: shop/wp.shop, hboneMtlsPort: 15008}, networkMode: HostNetwork,
   networkGateway: {destination: net1/10.9.9.9, hboneMtlsPort: 15009}, workloadType: cronjob, protocol: TCP,
   applicationTunnel: {protocol: PROXY, port: 15088}}
services:
- {name: web, namespace: shop, hostname: web.shop, vips: [/10.197.1.1, "net1/fd00::9"], ports: {80: 8080, 81: 0},
   canonical: true, cidrVips: [{cidr: 10.5.0.0/16, network: net1}], subjectAltNames: ["spiffe://a/ns/b/sa/c"], ipFamilies: Dual,
   waypoint: {destination: shop/wp.shop, hboneMtlsPort: 15008}, visibility: Namespace, loadBalancer: {mode: Failover,
   routingPreferences: [Network, Region, Zone, Subzone, Node, Cluster], healthPolicy: AllowAll},
   weightedWaypoints: [{destination: {destination: shop/wp.shop, hboneMtlsPort: 15008}, weight: 3},
                       {destination: {destination: net1/10.1.2.3, hboneMtlsPort: 1}, weight: 0}]}
- {name: self, namespace: shop, hostname: self.shop, vips: [/10.197.1.2], ports: {80: 8081}, ipFamilies: IPv6,
   loadBalancer: {routingPreferences: [], mode: Passthrough, healthPolicy: OnlyHealthy}}
policies:
- {name: one, namespace: shop, scope: WorkloadSelector, action: Allow, dryRun: false, rules: [[[{
   principals: [!Exact a, !Prefix b], notPrincipals: [!Presence []], namespaces: [!Suffix x], notNamespaces: [!Exact ""],
   sourceIps: [10.0.0.0/8], notSourceIps: [1.2.3.4/32], destinationIps: ["fd00::/8"], notDestinationIps: ["::1/128"],
   destinationPorts: [80], notDestinationPorts: [81], serviceAccounts: [{namespace: a, serviceAccount: b}],
   notServiceAccounts: [{namespace: c, serviceAccount: d}]}]]]}
- {name: two, namespace: shop, scope: Global, action: Deny, rules: [], dryRun: true}
- {name: three, namespace: shop, scope: Namespace, action: Deny, dryRun: false, rules: [[], [[]], [[{}]]]}
"""


def test_a_file_tells_both_the_same(ztunnel: str, tmp_path: Path) -> None:
    with standalone(ztunnel, MESH, tmp_path) as proxy:
        dump = json.loads(proxy.fetch("/config_dump"))
    mesh, inventory = read_local_mesh(MESH), Inventory()
    inventory.apply([*mesh.workloads, *mesh.services], [])
    ours = {
        "workloads": {one.uid: dump_workload(one) for one in mesh.workloads},
        "services": {one.hostname: dump_service(one, inventory.endpoints(one.key)) for one in mesh.services},
        "policies": {one.name: dump_policy(one) for one in mesh.policies},
    }
    for kind, name in (("workloads", "uid"), ("services", "hostname"), ("policies", "name")):
        theirs = {one[name]: one for one in dump[kind]}
        assert theirs.keys() == ours[kind].keys()
        for key, one in theirs.items():
            assert {field: ours[kind][key].get(field) for field in one} == one, key
