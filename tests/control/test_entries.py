"""ServiceEntries and WorkloadEntries: from the manifest to what a proxy decides."""

from collections import Counter
from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import pytest

from control.describe import describe
from control.entries import entry_services
from control.entry_addresses import ENTRY_RANGES, claimed_addresses, vip_name
from control.examination import Examination
from control.index import Index
from control.topology import Topology
from mesh.delta import DeltaServer, Request, Snapshot
from mesh.manifests import ServiceEntry, parse
from mesh.proto import workload_pb2
from mesh.resources import ADDRESS_TYPE, decode_address, encode_service
from mesh.workload import AppProtocol, BalancingMode, Locality, NetworkMode, Scope, Service, TunnelProtocol, Workload
from tests.control.told import indexed, replace, running, told
from ztunnel.route import Refused, Route, decide
from ztunnel.route import Request as Wish

pytestmark = pytest.mark.unit

BASE = """
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: demo, labels: {app: client}}
spec: {serviceAccountName: client, containers: [{name: c, command: [x]}]}
"""
ENTRY = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: NAME, namespace: demo, MARKS}
spec: {hosts: [HOST], ports: [{number: 80, name: http, targetPort: 8080, protocol: HTTP}], SPEC}
"""
WORKLOAD = """
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: NAME, namespace: demo, labels: {app: db}, MARKS}
spec: {SPEC}
"""
KEY, VIP = "demo/db.example", "240.240.0.9"
VIPS = {vip_name("demo", "db.example"): VIP}
TWO = "resolution: STATIC, endpoints: [{address: 192.0.2.1, weight: 3}, {address: 192.0.2.2, ports: {http: 81}}]"
DNS = "resolution: DNS"
SELECTED = "resolution: STATIC, workloadSelector: {labels: {app: db}}"
WAYPOINT, INGRESS = "istio.io/use-waypoint", "istio.io/ingress-use-waypoint"
STATIC = "resolution: STATIC, endpoints: "
NO_MARKS = "creationTimestamp: ''"


def entry(spec: str = TWO, marks: str = NO_MARKS, name: str = "db", host: str = "db.example") -> str:
    return ENTRY.replace("SPEC", spec).replace("MARKS", marks).replace("NAME", name).replace("HOST", host)


def workload(spec: str, name: str = "vm", marks: str = NO_MARKS) -> str:
    return WORKLOAD.replace("SPEC", spec).replace("MARKS", marks).replace("NAME", name)


def made(manifests: str, vips: Mapping[str, str] = VIPS) -> Index:
    return indexed(BASE + manifests, [running("client", "10.244.1.1")], vips)


def decided(index: Index, address: str = VIP, chance: float = 0.5, port: int = 80) -> Route | Refused:
    inventory = told(index)
    client = inventory.workload_of_pod("demo", "client", "client")
    assert client is not None
    return decide(inventory, "", Wish(client, client.addresses[0], ip_address(address), port), chance)


def outside(index: Index) -> dict[str, Workload]:
    return {uid.partition("io/")[2]: one for uid, one in index.workloads.nouns.items() if "networking" in uid}


def test_listed_endpoints_share_connections_by_their_weights_and_have_their_own_ports() -> None:
    index = made(entry())
    found = index.services.nouns[KEY]
    assert (found.name, found.hostname, found.canonical, found.ports) == ("db", "db.example", True, {80: 8080})
    assert (found.mode, found.preferences) == (BalancingMode.UNSPECIFIED, ())
    assert [str(vip) for vip in found.vips] == [f"/{VIP}"]
    routes = [decided(index, chance=chance / 8) for chance in range(8)]
    places = Counter((str(one.address), one.port, one.protocol) for one in routes if isinstance(one, Route))
    assert places == {("192.0.2.1", 8080, "TCP"): 6, ("192.0.2.2", 81, "TCP"): 2}
    assert set(outside(index)) == {"ServiceEntry/demo/db/192.0.2.1", "ServiceEntry/demo/db/192.0.2.2"}
    first = outside(index)["ServiceEntry/demo/db/192.0.2.1"]
    assert (first.capacity, first.workload_name, first.canonical_name, first.workload_type) == (3, "db", "db", "pod")
    assert first.protocol is TunnelProtocol.NONE and first.service_account == "default"


def test_without_endpoints_dns_says_where_each_host_is() -> None:
    index = made(entry(DNS, host="db.example, other.example"))
    assert {one.hostname: set(one.services) for one in outside(index).values()} == {
        "db.example": {KEY},
        "other.example": {"demo/other.example"},
    }
    route = decided(index)
    assert isinstance(route, Route) and (route.address, route.hostname, route.port) == (None, "db.example", 8080)


def test_each_is_described_with_its_own_object() -> None:
    named = """
---
{apiVersion: v1, kind: Service, metadata: {name: vm, namespace: demo}, spec: {ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: vm-1, namespace: demo, labels: {kubernetes.io/service-name: vm}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.9]}]
"""
    # The WorkloadEntry has a pod's name, one entry the hostname that a Service of its name would have.
    entries = entry() + entry(name="gone", host="gone.demo.svc.cluster.local")
    index = made(entries + workload("address: 192.0.2.7", name="client") + named)
    assert sorted(one["object"] for one in describe(index, "workloads")) == [
        "EndpointSlice demo/vm-1",
        "Pod demo/client",
        "ServiceEntry demo/db",
        "ServiceEntry demo/db",
        "ServiceEntry demo/gone",
        "ServiceEntry demo/gone",
        "WorkloadEntry demo/client",
    ]
    found = [one["object"] for one in describe(index, "services")]
    assert sorted(found) == ["Service demo/vm", "ServiceEntry demo/db", "ServiceEntry demo/gone"]


def test_resolution_none_goes_where_it_was_dialled() -> None:
    index = made(entry("addresses: [198.51.100.0/24]"))
    found = index.services.nouns[KEY]
    assert (found.mode, found.allow_unhealthy) == (BalancingMode.PASSTHROUGH, True)
    assert [str(vip) for vip in found.vips] == ["/198.51.100.0/24"] and not outside(index)
    route = decided(index, "198.51.100.77", port=99)
    assert isinstance(route, Route) and (str(route.address), route.port, route.protocol) == ("198.51.100.77", 99, "TCP")


def test_hosts_that_a_waypoint_finds_are_reached_by_way_of_it_alone() -> None:
    text = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: demo, labels: {WISH}}
spec: {hosts: ['*.example'], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DYNAMIC_DNS}
---
{apiVersion: v1, kind: Service, metadata: {name: gw, namespace: demo}, spec: {selector: {gw: x}, ports: [{port: 15008}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: gw, namespace: demo, labels: {gw: x}}
spec: {serviceAccountName: gw, containers: [{name: c, command: [x]}]}
"""
    vips = {vip_name("demo", "*.example"): "240.240.0.5", "demo/gw": "10.96.0.9"}
    reports = [running("client", "10.244.1.1"), running("gw", "10.244.1.5")]
    index = indexed(BASE + text.replace("WISH", "istio.io/use-waypoint: gw"), reports, vips)
    route = decided(index, "240.240.0.5", port=443)
    assert isinstance(route, Route) and (route.hop, str(route.address), str(route.authority)) == (
        "waypoint", "10.244.1.5", "240.240.0.5:443",
    )  # fmt: skip
    assert not outside(index), "nobody but the waypoint knows where it is"
    replace(index, BASE + text.replace("WISH", ""), vips)
    refused = decided(index, "240.240.0.5", port=443)
    assert isinstance(refused, Refused) and "no healthy upstream" in refused.reason


def test_a_range_of_addresses_leads_to_endpoints() -> None:
    index = made(entry(f"{TWO}, addresses: [198.51.100.0/24, 203.0.113.7]"))
    assert [str(vip) for vip in index.services.nouns[KEY].vips] == ["/198.51.100.0/24", "/203.0.113.7"], "and gets none"
    for address in ("198.51.100.77", "203.0.113.7"):
        route = decided(index, address)
        assert isinstance(route, Route) and str(route.address).startswith("192.0.2.")


def test_workload_entries_are_selected_by_their_labels_by_both_kinds_of_services() -> None:
    service = """
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: demo},
 spec: {selector: {app: db}, ports: [{name: a, port: 80, targetPort: web}, {name: b, port: 81}]}}
"""
    index = made(
        entry(SELECTED) + service + workload("address: 192.0.2.9, weight: 5, ports: {http: 82, web: 8000, b: 83}, network: ''")
    )
    (found,) = outside(index).values()
    assert found.services == {KEY: {80: 82}, "demo/db.demo.svc.cluster.local": {80: 8000, 81: 81}}
    assert (found.uid, found.name, found.capacity) == (
        "Kubernetes/networking.istio.io/WorkloadEntry/demo/vm",
        "vm",
        5,
    )
    route = decided(index)
    assert isinstance(route, Route) and (str(route.address), route.port) == ("192.0.2.9", 82)
    replace(index, BASE + entry(SELECTED.replace("db", "other")) + service, VIPS)
    assert isinstance(decided(index), Refused) and not outside(index)


def test_a_service_entry_selects_pods() -> None:
    index = made(entry(SELECTED.replace("app: db", "app: client")))
    assert index.workloads.nouns["Kubernetes//Pod/demo/client"].services == {KEY: {80: 8080}}
    route = decided(index)
    assert isinstance(route, Route) and (str(route.address), route.port, route.protocol) == ("10.244.1.1", 15008, "HBONE")
    replace(index, BASE, VIPS)
    assert index.workloads.nouns["Kubernetes//Pod/demo/client"].services == {}
    assert KEY not in index.services.nouns


def test_what_a_workload_entry_says_of_itself() -> None:
    marks = "annotations: {ambient.istio.io/redirection: enabled, istio.io/autoRegistrationGroup: vms}"
    more = "labels: {version: v7, istio.io/use-waypoint: gw}"
    (found,) = outside(made(workload(f"address: vm.example, locality: r/z, serviceAccount: sa, {more}", marks=marks))).values()
    assert (found.protocol, found.native_tunnel, found.workload_name) == (TunnelProtocol.HBONE, False, "vms")
    assert (found.hostname, found.addresses, found.locality) == ("vm.example", (), Locality("r", "z", ""))
    assert (found.service_account, found.canonical_name, found.canonical_revision) == ("sa", "db", "v7")
    assert str(found.waypoint) == "demo/gw.demo.svc.cluster.local"
    (named,) = outside(made(workload("address: 192.0.2.1, labels: {service.istio.io/workload-name: big}"))).values()
    assert (named.workload_name, named.canonical_name) == ("big", "db")
    native = workload("address: 192.0.2.1, labels: {networking.istio.io/tunnel: http}")
    (found,) = outside(made(native)).values()
    assert (found.protocol, found.native_tunnel) == (TunnelProtocol.HBONE, True)


def test_policies_of_its_labels_are_listed() -> None:
    policy = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: demo}
spec: {selector: {matchLabels: {app: db}}, rules: [{}]}
"""
    vm = workload("address: 192.0.2.9")
    index = made(vm)
    for texts, keys in ((vm + policy, ("demo/p",)), (vm, ())):
        replace(index, BASE + texts, VIPS)
        assert [one.authorization_policies for one in outside(index).values()] == [keys]


def test_another_network_is_reached_through_its_gateway_and_names_who_answers() -> None:
    gateway = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: far, namespace: demo, labels: {topology.istio.io/network: far}}
spec:
  gatewayClassName: istio-remote
  addresses: [{value: 192.0.2.7}]
  listeners: [{name: l, port: 15009, protocol: HBONE}]
"""
    index = made(gateway + entry("resolution: STATIC, endpoints: [{network: far, serviceAccount: db}]"))
    assert index.services.nouns[KEY].subject_alt_names == ("spiffe://cluster.local/ns/demo/sa/db",)
    assert [uid.rpartition("/")[2] for uid in outside(index)] == ["far"], "who has no address is called by the network"
    route = decided(index)
    assert isinstance(route, Route) and (route.protocol, str(route.address), route.port) == ("DOUBLEHBONE", "192.0.2.7", 15009)
    vm = workload("address: 10.9.9.9, network: far, serviceAccount: vm")
    replace(index, BASE + gateway + entry(SELECTED) + vm, VIPS)
    assert index.services.nouns[KEY].subject_alt_names == ("spiffe://cluster.local/ns/demo/sa/vm",)
    assert isinstance(route := decided(index), Route) and route.protocol == "DOUBLEHBONE"
    for nameless in (entry(SELECTED) + workload("address: 10.9.9.9, network: far"), entry(f"{STATIC}[{{network: far}}]")):
        replace(index, BASE + gateway + nameless, VIPS)
        assert index.services.nouns[KEY].subject_alt_names == ("spiffe://cluster.local/ns/demo/sa/default",)


def test_who_answers_for_a_host_is_named_in_one_order_those_that_are_written_first() -> None:
    """Else a control plane that starts anew would send every host again."""
    (written,) = parse({"x": entry("resolution: STATIC, subjectAltNames: [z, spiffe://b]")}).of(ServiceEntry)
    behind = ["spiffe://d", "spiffe://b", "spiffe://c", "spiffe://a"]
    (found,) = entry_services(written, {}, {"db.example": 1}, None, Topology(), behind)
    assert found.subject_alt_names == ("z", "spiffe://b", "spiffe://a", "spiffe://c", "spiffe://d")


def test_who_names_no_network_is_on_the_meshs_own() -> None:
    root = "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: istio-system, labels: {topology.istio.io/network: near}}}"
    index = made(root + entry(f"{STATIC}[{{network: far}}, {{address: 192.0.2.1}}]") + workload("address: 192.0.2.2"))
    assert sorted((one.network, *map(str, one.addresses)) for one in outside(index).values()) == [
        ("far",),
        ("near", "192.0.2.1"),
        ("near", "192.0.2.2"),
    ]


def test_a_waypoint_is_not_gone_past() -> None:
    index = made(entry(marks="labels: {istio.io/use-waypoint: gw, istio.io/ingress-use-waypoint: 'true'}"))
    found = index.services.nouns[KEY]
    assert str(found.waypoint) == "demo/gw.demo.svc.cluster.local" and found.ingress_use_waypoint
    refused = decided(index)
    assert isinstance(refused, Refused) and refused.reason.startswith("unknown waypoint: demo/gw.demo")


@pytest.mark.parametrize(
    ("own", "inherited", "waypoint", "second", "ingress"),
    [
        ("a: b", f"{WAYPOINT}: gw", "demo/gw.demo.svc.cluster.local", False, False),
        ("a: b", f"{WAYPOINT}: gw, {INGRESS}: 'true'", "demo/gw.demo.svc.cluster.local", False, True),
        (f"{WAYPOINT}: own", f"{WAYPOINT}: gw", "demo/own.demo.svc.cluster.local", False, False),
        (f"{WAYPOINT}: none", f"{WAYPOINT}: gw, {INGRESS}: 'true'", "None", False, False),
        (f"{WAYPOINT}: gw, {WAYPOINT}-canary: new", "a: b", "demo/gw.demo.svc.cluster.local", True, False),
        ("a: b", f"{WAYPOINT}: gw, {WAYPOINT}-canary: new", "demo/gw.demo.svc.cluster.local", True, False),
        (f"{WAYPOINT}-canary: new", "a: b", "None", False, False),
    ],
)
def test_an_entrys_waypoints_are_its_own_or_its_namespaces(
    own: str, inherited: str, waypoint: str, second: bool, ingress: bool
) -> None:
    names = "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: demo, MARKS}}"
    new = "\n---\n{apiVersion: v1, kind: Service, metadata: {name: new, namespace: demo}, spec: {ports: [{port: 15008}]}}"
    share = f"annotations: {{{WAYPOINT}-canary-weight: '25'}}"
    index = made(entry(marks=f"labels: {{{own}}}, {share}") + new + names.replace("MARKS", f"labels: {{{inherited}}}"))
    found = index.services.nouns[KEY]
    assert (str(found.waypoint), found.ingress_use_waypoint) == (waypoint, ingress)
    assert [one.weight for one in found.weighted_waypoints] == ([75, 25] if second else [])


def test_to_whom_it_is_shown_and_how_it_is_preferred() -> None:
    near = "annotations: {networking.istio.io/traffic-distribution: PreferClose}"
    index = made(entry(f"{TWO}, exportTo: ['.'], subjectAltNames: [x]", near))
    found = index.services.nouns[KEY]
    assert found.namespace_only and not found.shown_to and found.subject_alt_names == ("x",)
    assert (found.mode, found.preferences) == (BalancingMode.FAILOVER, (Scope.NETWORK, Scope.REGION, Scope.ZONE))
    replace(index, BASE + entry(f"{TWO}, exportTo: ['~']"), VIPS)
    assert not index.services.nouns and not outside(index)


def test_it_may_be_shown_to_some_namespaces() -> None:
    index = made(entry(f"{TWO}, exportTo: ['.', other]"))
    found = decode_address(encode_service(index.services.nouns[KEY]))
    assert isinstance(found, Service) and found.shown_to == ("demo", "other") and not found.namespace_only
    assert [found.is_shown_to(one) for one in ("demo", "other", "third", "")] == [True, True, False, True]
    assert isinstance(decided(index), Route)
    told = workload_pb2.Address.FromString(encode_service(found)).service
    assert told.visibility == workload_pb2.PUBLIC, "who does not know of such lists shows it to all, as Istio does"


def test_a_host_is_canonical_where_nobody_else_has_it_and_it_is_not_of_kubernetes() -> None:
    other = entry().replace("namespace: demo", "namespace: other")
    index = made(entry() + other)
    assert [one.canonical for one in index.services.nouns.values()] == [False, False]
    replace(index, BASE + entry(), VIPS)
    assert [one.canonical for one in index.services.nouns.values()] == [True]
    unrelated = "\n---\n{apiVersion: v1, kind: Service, metadata: {name: web, namespace: third}, spec: {clusterIP: None}}"
    replace(index, BASE + entry() + other + unrelated, VIPS)
    entries = [one for one in index.services.nouns.values() if one.namespace != "third"]
    assert [one.canonical for one in entries] == [False, False], "whatever else changes along with it"
    assert not made(entry(host="web.shop.svc.cluster.local")).services.nouns["demo/web.shop.svc.cluster.local"].canonical


@pytest.mark.parametrize(
    ("port", "protocol"),
    [
        ("{number: 80, name: a, protocol: gRPC}", AppProtocol.GRPC),
        ("{number: 80, name: a, protocol: HTTPS}", AppProtocol.TLS),
        ("{number: 80, name: a, protocol: MYSQL}", AppProtocol.UNKNOWN),
    ],
)
def test_what_a_port_speaks_is_said_on_the_wire(port: str, protocol: AppProtocol) -> None:
    text = entry().replace("{number: 80, name: http, targetPort: 8080, protocol: HTTP}", port)
    message = workload_pb2.Address.FromString(encode_service(made(text).services.nouns[KEY])).service
    assert [one.app_protocol for one in message.ports] == [protocol]


RANGES = (ip_network("10.96.0.0/16"), ip_network("fd00:96::/112"))


def examined(text: str, held: Mapping[str, tuple[str, ...]] | None = None) -> tuple[list[str], dict[str, list[str]]]:
    found = parse({"x": text})
    assert not found.problems
    kept = {name: tuple(map(ip_address, several)) for name, several in (held or {}).items()}
    findings = Examination("istio-system", RANGES, kept).examine(found.objects)
    addresses = {name: [str(one) for one in several] for name, several in findings.addresses.items()}
    return [f"{one.object}: {one.field}: {one.reason}" for one in findings.problems], addresses


def test_hosts_without_addresses_are_given_some_and_keep_them() -> None:
    _, first = examined(entry(DNS, host="db.example, other.example"))
    assert set(first) == {"demo//db.example", "demo//other.example"}
    for several in first.values():
        assert all(ip_address(one) in kept for one, kept in zip(several, ENTRY_RANGES, strict=True))
    held = {"demo//db.example": ("240.240.7.7", "2001:2::7")}
    assert examined(entry(), held)[1] == {"demo//db.example": ["240.240.7.7", "2001:2::7"]}
    for without in ("resolution: NONE", f"{TWO}, addresses: [192.0.2.3]", f"{TWO}, exportTo: ['~']"):
        assert not examined(entry(without), held)[1]
    assert set(examined(entry(host="db.example, '*.wild.example'"))[1]) == {"demo//db.example"}


NODES = """
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDRs: [10.244.2.0/24, 'fd00:2::/64']}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}
"""


@pytest.mark.parametrize(
    ("resolution", "address", "reason"),
    [
        ("NONE", "10.96.0.7", "10.96.0.7/32 is in the service range 10.96.0.0/16, whose addresses are of Services alone"),
        ("DNS", "fd00:96::/113", "fd00:96::/113 is in the service range fd00:96::/112, whose addresses are of Services alone"),
        ("NONE", "10.0.0.0/8", ""),
        (
            "DNS",
            "10.244.1.9",
            "10.244.1.9/32 holds addresses of pods, of Node n1: they would be reached at its endpoints instead",
        ),
        (
            "DNS",
            "10.244.0.0/16",
            "10.244.0.0/16 holds addresses of pods, of Node n2: they would be reached at its endpoints instead",
        ),
        (
            "DNS",
            "10.244.2.255",
            "10.244.2.255/32 holds addresses of pods, of Node n2: they would be reached at its endpoints instead",
        ),
        (
            "DNS",
            "10.244.1.0",
            "10.244.1.0/32 holds addresses of pods, of Node n1: they would be reached at its endpoints instead",
        ),
        ("DNS", "'::/0'", "::/0 holds addresses of pods, of Node n2: they would be reached at its endpoints instead"),
        ("NONE", "10.244.1.9", ""),
        ("DNS", "10.244.3.0/24", ""),
        ("DNS", "10.243.255.255", ""),
        ("DNS", "'fd00:3::'", ""),
        ("DNS", "10.96.0.0/15", ""),
    ],
)
def test_addresses_of_services_and_pods_are_not_an_entrys_to_have(resolution: str, address: str, reason: str) -> None:
    problems, _ = examined(NODES + entry(f"resolution: {resolution}, addresses: [{address}]"))
    assert problems == ([f"ServiceEntry demo/db: spec.addresses: {reason}"] if reason else [])


def test_an_entry_may_have_more_than_the_service_range_wherever_in_it_that_is() -> None:
    wide = parse({"x": entry("resolution: NONE, addresses: [10.96.0.0/15]")}).objects
    for inside in ("10.96.0.0/16", "10.97.0.0/16", "10.96.128.0/17"):
        assert not [*claimed_addresses(wide, [ip_network(inside)])]
    assert len([*claimed_addresses(wide, [ip_network("10.97.0.0/16"), ip_network("10.96.0.0/15")])]) == 1


def test_an_address_that_a_host_was_given_is_not_anothers_to_name() -> None:
    other = entry(f"{TWO}, addresses: [240.240.7.7]", name="other", host="other.example")
    held = {"demo//db.example": ("240.240.7.7", "2001:2::7")}
    problems, _ = examined(entry() + other, held)
    assert problems == ["ServiceEntry demo/other: spec.addresses: 240.240.7.7 is given to host demo/db.example: choose another"]
    assert not examined(entry() + other, {"demo//db.example": ("240.240.7.8", "2001:2::7")})[0]


def test_when_all_addresses_are_given_away_the_next_entry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.examination.ENTRY_RANGES", (ip_network("240.240.0.0/30"), ip_network("2001:2::/64")))
    first, second = entry(host="a.example, b.example"), entry(name="next", host="c.example")
    assert not examined(first)[0]
    problems, _ = examined(first + second)
    assert len(problems) == 1 and problems[0].startswith(
        "ServiceEntry demo/next: spec.addresses: all addresses of 240.240.0.0/30"
    )


def test_two_of_one_host_in_a_namespace_are_refused() -> None:
    service = "---\n{apiVersion: v1, kind: Service, metadata: {name: web, namespace: demo}, spec: {clusterIP: None}}"
    problems, _ = examined(entry() + entry(name="again"))
    assert problems == [
        "ServiceEntry demo/again: spec.hosts: db.example is the name of ServiceEntry demo/db: take it out of one of them"
    ]
    problems, _ = examined(entry(host="web.demo.svc.cluster.local") + service)
    assert len(problems) == 1 and "is the name of Service demo/web" in problems[0]


def test_a_service_and_an_entry_may_take_each_others_host_in_one_change() -> None:
    service = "\n---\n{apiVersion: v1, kind: Service, metadata: {name: web, namespace: demo}, spec: {ports: [{port: 80}]}}"
    host, vips = "web.demo.svc.cluster.local", {"demo/web": "10.96.0.7", vip_name("demo", "web.demo.svc.cluster.local"): VIP}
    index = made(entry(host=host), vips)
    for manifests, ports in ((service, {80: 80}), (entry(host=host), {80: 8080}), (service, {80: 80})):
        replace(index, BASE + manifests, vips)
        found = [one for one in told(index).services() if one.hostname == host]
        assert [one.ports for one in found] == [ports], "who has the host now is told of, and nobody else"


def test_a_service_says_what_its_ports_speak_and_whether_gateways_go_by_its_waypoint() -> None:
    ports = "[{name: http-a, port: 1}, {name: grpc, port: 2}, {name: x, port: 3, appProtocol: kubernetes.io/h2c}"
    ports += ", {name: y, port: 4}]"
    text = f"---\n{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: demo, LABELS}}, spec: {{ports: {ports}}}}}"
    marks = "labels: {istio.io/use-waypoint: gw}"

    def of(more: str) -> Service:
        return made(text.replace("LABELS", marks) + more).services.nouns["demo/web.demo.svc.cluster.local"]

    found = of("")
    assert found.app_protocols == {1: AppProtocol.HTTP11, 2: AppProtocol.GRPC, 3: AppProtocol.HTTP2}
    assert not found.ingress_use_waypoint
    wish = "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: demo, labels: {istio.io/ingress-use-waypoint: 'true'}}}"
    assert of(wish).ingress_use_waypoint


SELECTING_NOBODY = """
---
{apiVersion: v1, kind: Service, metadata: {name: pg, namespace: demo}, spec: {ports: [{name: p, port: PORT}]}}
"""
HAND_WRITTEN = """
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pg-1, namespace: demo, labels: {kubernetes.io/service-name: pg}}
addressType: IPv4
endpoints: [ENDPOINTS]
ports: [{name: p, port: 5433}]
"""
PG, PG_VIP = "demo/pg.demo.svc.cluster.local", "10.96.0.7"


def test_who_stands_behind_a_service_without_selector() -> None:
    service, vips = SELECTING_NOBODY.replace("PORT", "80"), {"demo/pg": PG_VIP}
    two = "{addresses: [192.0.2.1], conditions: {ready: false}}, {addresses: [192.0.2.2]}"
    hand_written = HAND_WRITTEN.replace("ENDPOINTS", two)
    index = indexed(BASE + hand_written, [running("client", "10.244.1.1")], vips)
    assert not [uid for uid in index.workloads.nouns if "EndpointSlice" in uid], "without its Service it is nobody's"
    replace(index, BASE + hand_written + service, vips)
    found = {uid: one for uid, one in index.workloads.nouns.items() if "EndpointSlice" in uid}
    where = "Kubernetes/discovery.k8s.io/EndpointSlice/demo/pg-1/192.0.2."
    assert {uid: one.healthy for uid, one in found.items()} == {f"{where}1": False, f"{where}2": True}
    assert {one.network_mode for one in found.values()} == {NetworkMode.HOST_NETWORK}
    route = decided(index, PG_VIP)
    assert isinstance(route, Route) and (str(route.address), route.port, route.protocol) == ("192.0.2.2", 5433, "TCP")
    replace(index, BASE + service, vips)
    assert isinstance(decided(index, PG_VIP), Refused)


def test_of_a_slices_ports_those_for_connections_count() -> None:
    service = SELECTING_NOBODY.replace("{name: p, port: PORT}", "{name: p, port: 80}, {name: q, port: 53, protocol: UDP}")
    slices = HAND_WRITTEN.replace("ENDPOINTS", "{addresses: [192.0.2.1]}")
    for ports, served in (
        ("{name: p, port: 5433, protocol: UDP}", {}),
        ("{name: p, port: 5433}, {name: q, port: 5353}", {80: 5433}),
        ("{name: p, port: 5433}, {name: q, port: 5353, protocol: UDP}", {80: 5433}),
    ):
        index = made(service + slices.replace("{name: p, port: 5433}", ports), {"demo/pg": PG_VIP})
        assert [one.services[PG] for one in index.workloads.nouns.values() if PG in one.services] == [served]


def test_a_slice_may_name_pods() -> None:
    spec = "{containers: [{name: c, command: [x]}]}"
    pods = "".join(
        f"\n---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: demo}}, spec: {spec}}}"
        for name in ("one", "two")
    )
    first = "{addresses: [10.244.1.8], targetRef: {kind: Pod, name: one}}"
    second = "{addresses: [10.244.1.9], targetRef: {kind: Pod, name: two}, conditions: {ready: false}}"
    hand_written, vips = HAND_WRITTEN.replace("ENDPOINTS", f"{first}, {second}"), {"demo/pg": PG_VIP}
    reports = [running("client", "10.244.1.1"), running("one", "10.244.1.8"), running("two", "10.244.1.9")]
    index = indexed(BASE + pods + hand_written, reports, vips)

    def served(manifests: str) -> dict[str, dict[int, int]]:
        replace(index, BASE + pods + manifests, vips)
        return {one.name: one.services[PG] for one in index.workloads.nouns.values() if PG in one.services}

    assert not served(hand_written), "without its Service it is nobody's"
    assert served(hand_written + SELECTING_NOBODY.replace("PORT", "80")) == {"one": {80: 5433}}
    assert not [uid for uid in index.workloads.nouns if "EndpointSlice" in uid]
    route = decided(index, PG_VIP)
    assert isinstance(route, Route) and (str(route.address), route.port, route.protocol) == ("10.244.1.8", 15008, "HBONE")
    service = SELECTING_NOBODY.replace("PORT", "81")
    assert served(hand_written + service) == {"one": {81: 5433}}
    assert served(hand_written.replace("name: one", "name: two") + service) == {"two": {81: 5433}}
    assert not served(service) and isinstance(decided(index, PG_VIP), Refused)


@pytest.mark.parametrize("asked", [KEY, f"/{VIP}", "/198.51.100.7"])
def test_on_demand_a_service_brings_whoever_stands_behind_it(asked: str) -> None:
    """Also where its one endpoint is called as it is itself: what is sent is not said to be gone."""
    index = made(entry(DNS) if asked != "/198.51.100.7" else entry(f"{DNS}, addresses: [198.51.100.0/24]"))
    server = DeltaServer([ADDRESS_TYPE], home="@n2")
    server.receive(Request(ADDRESS_TYPE, (asked,)))
    told = server.push(ADDRESS_TYPE, Snapshot(index.take()[ADDRESS_TYPE]), "1")
    assert told is not None
    names = {one.name for one in told.resources}
    assert names == {KEY, "Kubernetes/networking.istio.io/ServiceEntry/demo/db/db.example"}
    assert not names & set(told.removed)
