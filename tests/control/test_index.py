import random
from ipaddress import ip_address, ip_network

import pytest

from control import index as index_module
from control.describe import describe
from control.examination import Examination
from control.index import TYPE_URLS, Index
from control.reports import PodReport
from control.workloads import MeshNames
from mesh.manifests import Object, parse
from mesh.resources import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.workload import AppProtocol, BalancingMode, IPFamilies, Locality, NetworkMode, Scope, TunnelProtocol

pytestmark = pytest.mark.unit

RANGES = (ip_network("10.96.0.0/16"), ip_network("fd00:96::/112"))
NODE = (
    "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/region: r,"
    " topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}}}"
)
POD = """
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: demo, labels: {app: web, LABEL}}
spec: {containers: [{name: main, command: [x], ports: [{name: http, containerPort: 8080}]}]}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: demo}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}, {name: raw, port: 81}], MORE}
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: NAME, namespace: NS}
spec: {selector: {matchLabels: {app: web}}, rules: [{}]}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: s, namespace: demo}
spec: {mtls: {mode: STRICT}}
"""
ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: demo}
spec: {hosts: [outside.example], resolution: STATIC, ports: [{number: 80, name: http}], SPEC}
"""
VM = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: demo, labels: {app: web, tier: back}}
spec: {address: 192.0.2.9, network: far}
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: slice, namespace: demo, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [192.0.2.5]}]
ports: [{name: raw, port: 81}]
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: NAME, namespace: demo, labels: {LABELS}}
spec: {gatewayClassName: CLASS, listeners: [{name: l, port: 15008, protocol: HBONE}], addresses: [{value: 192.0.2.7}]}
"""
NOTE = "networking.istio.io/traffic-distribution"
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: demo}
spec:
  replicas: NUMBER
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, command: [x]}]}}
"""
UID = "Kubernetes//Pod/demo/web-0"
KEY = "demo/web.demo.svc.cluster.local"


def objects(*texts: str) -> list[Object]:
    found = parse({str(number): text for number, text in enumerate(texts)})
    assert not found.refused, found.problems
    return found.objects


def pod(name: str = "web-0", label: str = "tier: front") -> str:
    return POD.replace("NAME", name).replace("LABEL", label)


def service(more: str = "clusterIP: ''") -> str:
    return SERVICE.replace("MORE", more)


def policy(name: str, namespace: str = "demo") -> str:
    return POLICY.replace("NAME", name).replace("NS", namespace)


def report(name: str = "web-0", address: str = "10.244.1.2", **fields: object) -> PodReport:
    settings = {"ready": True, "enrolled": True, "phase": "Running"} | fields
    return PodReport("demo", name, "lab", f"uid-{name}", "n1", (ip_address(address),) if address else (), **settings)  # type: ignore[arg-type]


def index_of(texts: list[str], reports: list[PodReport]) -> Index:
    made = Index(MeshNames(), RANGES)
    made.replace_reports({one.key: one for one in reports}, ())
    made.replace_objects(objects(*texts), {"demo/web": (ip_address("10.96.0.9"),)})
    return made


def test_a_workload_is_filled_in_as_istiod_does() -> None:
    workload = index_of([NODE, pod(), service()], [report()]).workloads.nouns[UID]
    assert (workload.name, workload.namespace, workload.node, workload.service_account) == ("web-0", "demo", "n1", "default")
    assert (workload.workload_name, workload.canonical_name, workload.canonical_revision) == ("web-0", "web", "latest")
    assert workload.locality == Locality("r", "z", "s")
    assert workload.services == {KEY: {80: 8080, 81: 81}}
    assert (workload.workload_type, workload.cluster_id, workload.network_mode) == ("pod", "Kubernetes", NetworkMode.STANDARD)
    labelled = index_of([NODE, pod(label="service.istio.io/canonical-name: c, app.kubernetes.io/version: r7")], [report()])
    assert labelled.workloads.nouns[UID].canonical_name == "c"
    assert labelled.workloads.nouns[UID].canonical_revision == "r7"


@pytest.mark.parametrize(
    ("told", "exists"),
    [
        ([], False),
        ([report(address="")], False),
        ([report(phase="Succeeded")], False),
        ([report(phase="Failed")], False),
        ([report(phase="Pending", ready=False)], True),
        ([report("other")], False),
    ],
)
def test_a_workload_exists_while_its_pod_runs_somewhere(told: list[PodReport], exists: bool) -> None:
    assert (UID in index_of([NODE, pod()], told).workloads.nouns) is exists
    assert not index_of([pod()], told).workloads.nouns, "nor without its node"


def test_a_pod_on_its_nodes_network_has_no_tunnel() -> None:
    shared = pod().replace("spec: {", "spec: {hostNetwork: true, ")
    workload = index_of([NODE, shared], [report(address="172.30.0.1")]).workloads.nouns[UID]
    assert (workload.protocol, workload.network_mode) == (TunnelProtocol.NONE, NetworkMode.HOST_NETWORK)


def test_a_named_port_that_a_pod_lacks_is_left_out() -> None:
    bare = pod().replace(", ports: [{name: http, containerPort: 8080}]", "")
    assert index_of([NODE, bare, service()], [report()]).workloads.nouns[UID].services == {KEY: {81: 81}}


@pytest.mark.parametrize(
    ("more", "mode", "preferences", "families", "unhealthy"),
    [
        ("clusterIP: ''", BalancingMode.UNSPECIFIED, (), IPFamilies.IPV4_ONLY, False),
        ("publishNotReadyAddresses: true", BalancingMode.UNSPECIFIED, (), IPFamilies.IPV4_ONLY, True),
        (
            "internalTrafficPolicy: Local, trafficDistribution: PreferClose",
            BalancingMode.STRICT,
            (4,),
            IPFamilies.IPV4_ONLY,
            False,
        ),
        ("trafficDistribution: PreferClose", BalancingMode.FAILOVER, (6, 1, 2), IPFamilies.IPV4_ONLY, False),
        ("trafficDistribution: PreferSameNode", BalancingMode.FAILOVER, (6, 1, 2, 3, 4), IPFamilies.IPV4_ONLY, False),
        ("ipFamilies: [IPv6]", BalancingMode.UNSPECIFIED, (), IPFamilies.IPV6_ONLY, False),
        ("ipFamilyPolicy: PreferDualStack", BalancingMode.UNSPECIFIED, (), IPFamilies.DUAL, False),
        ("ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6]", BalancingMode.UNSPECIFIED, (), IPFamilies.DUAL, False),
        ("ipFamilyPolicy: SingleStack", BalancingMode.UNSPECIFIED, (), IPFamilies.IPV4_ONLY, False),
    ],
)
def test_a_service_is_filled_in_as_istiod_does(
    more: str, mode: BalancingMode, preferences: tuple[int, ...], families: IPFamilies, unhealthy: bool
) -> None:
    made = index_of([service(more)], []).services.nouns[KEY]
    assert made.ports == {80: 0, 81: 81} and made.canonical and [str(vip) for vip in made.vips] == ["/10.96.0.9"]
    assert (made.mode, made.preferences, made.ip_families, made.allow_unhealthy) == (
        mode,
        tuple(map(Scope, preferences)),
        families,
        unhealthy,
    )


@pytest.mark.parametrize("turn", [1, -1])
def test_of_two_ports_of_one_number_that_of_tcp_counts(turn: int) -> None:
    ports = [
        "{name: datagrams, protocol: UDP, port: 53, targetPort: 5353}",
        "{name: tcp-dns, port: 53, targetPort: 5354}",
        "{name: named, protocol: UDP, port: 54, targetPort: udp}",
        "{name: http, port: 54, targetPort: absent}",
        "{name: tls, protocol: UDP, port: 55}",
    ]
    named = pod().replace("containerPort: 8080}", "containerPort: 8080}, {name: udp, containerPort: 9, protocol: UDP}")
    text = service().replace("{name: http, port: 80, targetPort: http}, {name: raw, port: 81}", ", ".join(ports[::turn]))
    made = index_of([NODE, text, named], [report()])
    assert made.services.nouns[KEY].ports == {53: 5354, 54: 0, 55: 55}
    assert made.services.nouns[KEY].app_protocols == {53: AppProtocol.TCP, 54: AppProtocol.HTTP11, 55: AppProtocol.TLS}
    (workload,) = made.workloads.nouns.values()
    assert workload.services[KEY] == {53: 5354, 55: 55}


def test_a_workload_lists_the_policies_that_select_it() -> None:
    made = index_of(
        [NODE, pod(), policy("b"), policy("a"), policy("root", "istio-system"), policy("x", "other"), STRICT], [report()]
    )
    workload = made.workloads.nouns[UID]
    strict = "istio-system/istio_converted_static_strict"
    assert workload.authorization_policies == ("demo/a", "demo/b", "istio-system/root", strict)
    assert workload.policy_sources == {strict: "PeerAuthentication demo/s"}
    assert set(made.policies.nouns) == {"demo/a", "demo/b", "istio-system/root", "other/x", strict}


def test_policies_name_every_trust_domain_of_the_mesh() -> None:
    made = Index(MeshNames(trust_domain_aliases=frozenset({"old.org"})), RANGES)
    made.replace_objects(
        objects(
            "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, namespace: demo},"
            " spec: {rules: [{from: [{source: {principals: [cluster.local/ns/demo/sa/web]}}]}]}}"
        ),
        {},
    )
    (((match,),),) = made.policies.nouns["demo/a"].rules
    assert [one.value for one in match.principals] == ["cluster.local/ns/demo/sa/web", "old.org/ns/demo/sa/web"]


def test_services_are_called_by_the_clusters_own_domain() -> None:
    names, domain = MeshNames(cluster_domain="k8s.example"), "demo.svc.k8s.example"
    other = service().replace("name: web, n", "name: other, n").replace("selector: {app: web}, ", "")
    naming = SLICE.replace("192.0.2.5]", "10.244.1.2], targetRef: {kind: Pod, name: web-0}").replace(
        "name: web}", "name: other}"
    )
    naming = naming.replace("name: slice", "name: naming").replace("service-name: web", "service-name: other")
    entry = ENTRY.replace("outside.example", f"far.{domain}, near.demo.svc.cluster.local").replace("SPEC", "endpoints: []")
    written = objects(NODE, pod(label="istio.io/use-waypoint: gate"), service(), other, entry, VM, SLICE, naming)
    made = Index(names, RANGES)
    made.replace_reports({one.key: one for one in [report()]}, ())
    made.replace_objects(written, {})
    web, other = f"demo/web.{domain}", f"demo/other.{domain}"
    assert set(made.services.nouns) == {web, other, f"demo/far.{domain}", "demo/near.demo.svc.cluster.local"}
    assert [key for key, one in made.services.nouns.items() if not one.canonical] == [f"demo/far.{domain}"]
    assert {one["object"] for one in describe(made, "services")} == {
        "Service demo/web",
        "Service demo/other",
        "ServiceEntry demo/outside",
    }
    mine = made.workloads.nouns[UID]
    assert set(mine.services) == {web, other} and mine.waypoint is not None
    assert str(mine.waypoint.destination) == f"demo/gate.{domain}"
    assert [set(one.services) for uid, one in made.workloads.nouns.items() if uid != UID] == [{web}] * 2
    same = ENTRY.replace("outside.example", f"web.{domain}").replace("outside", "same").replace("SPEC", "endpoints: []")
    problems = Examination("istio-system", RANGES, {}, names.cluster_domain).examine([*written, *objects(same)]).problems
    assert [one.reason for one in problems if not one.warning] == [
        f"web.{domain} is the name of Service demo/web: take it out of one of them"
    ]


def test_runs_on() -> None:
    made = index_of([NODE, pod(), pod("done")], [report(address=""), report("done", phase="Failed"), report("ghost")])
    assert made.runs_on("n1", "demo", "default"), "also before it has an address"
    assert not made.runs_on("n2", "demo", "default") and not made.runs_on("n1", "demo", "web")
    assert not index_of([NODE, pod("done")], [report("done", phase="Failed")]).runs_on("n1", "demo", "default")
    assert not index_of([NODE], [report("ghost")]).runs_on("n1", "demo", "default"), "a report is no pod"


def test_a_deployments_pods_are_pods_and_one_of_their_names_that_is_written_for_itself_stays() -> None:
    made = index_of([NODE, DEPLOYMENT.replace("NUMBER", "2")], [report(), report("web-1", "10.244.1.3")])
    written = pod("web-1")
    for texts, known in (
        ([DEPLOYMENT.replace("NUMBER", "2")], {"web-0": "web", "web-1": "web"}),
        ([written, DEPLOYMENT.replace("NUMBER", "1")], {"web-0": "web", "web-1": "web-1"}),
        ([written], {"web-1": "web-1"}),
        ([], {}),
    ):
        made.replace_objects(objects(NODE, *texts), {})
        assert {one.name: one.workload_name for one in made.workloads.nouns.values()} == known


def test_one_pod_costs_one_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = index_module.encode_workload
    monkeypatch.setattr(index_module, "encode_workload", lambda workload: encoded.append(workload.name) or encode(workload))
    names = [f"web-{number}" for number in range(50)]
    reports = {one.key: one for one in (report(name, f"10.244.1.{10 + number}") for number, name in enumerate(names))}
    made = index_of([NODE, service(), *map(pod, names)], list(reports.values()))
    assert sorted(encoded) == sorted(names)
    assert set(made.take()) == set(TYPE_URLS)
    encoded.clear()
    changed = report("web-7", "10.244.1.17", ready=False)
    made.replace_reports(reports | {changed.key: changed}, [changed.key])
    assert encoded == ["web-7"] and set(made.take()) == {ADDRESS_TYPE}
    encoded.clear()
    texts = [
        NODE,
        service(),
        *map(pod, names[:-1]),
        pod(names[-1], "tier: back"),
        policy("p").replace("app: web", "tier: back"),
    ]
    made.replace_objects(objects(*texts), {"demo/web": (ip_address("10.96.0.9"),)})
    assert encoded == [names[-1]], "equal objects cost nothing, read anew or not"
    assert set(made.take()) == {ADDRESS_TYPE, AUTHORIZATION_TYPE}
    made.replace_objects(objects(*texts), {"demo/web": (ip_address("10.96.0.9"),)})
    assert encoded == [names[-1]] and made.take() == {}


@pytest.mark.parametrize("names", [MeshNames(), MeshNames(waypoint_policies=True)])
def test_every_way_to_a_state_leads_to_the_same_resources(names: MeshNames) -> None:
    """Objects, addresses and reports come and go, mostly one by one; a fresh index of the last state must agree each time."""
    dice = random.Random(7)
    pool = [
        NODE,
        NODE.replace("zone: z", "zone: other"),
        service(),
        service("publishNotReadyAddresses: true"),
        service().replace("name: web,", "name: web, labels: {istio.io/use-waypoint: gw},"),
        service().replace("name: web,", "name: web, labels: {istio.io/use-waypoint: gw, istio.io/use-waypoint-canary: new},"),
        *(service().replace("name: web", f"name: {name}").replace("81}", "15008}") for name in ("gw", "new")),
        namespace("istio.io/use-waypoint: new"),
        "{apiVersion: v1, kind: Namespace, metadata: {name: demo, annotations: {NOTE: PreferClose}}}".replace("NOTE", NOTE),
        service("clusterIP: None").replace("app: web", "tier: front"),
        policy("a"),
        policy("a").replace("app: web", "tier: back"),
        policy("root", "istio-system"),
        STRICT,
        *(pod(f"web-{number}", label) for number in range(4) for label in ("tier: front", "tier: back")),
        POD.replace("NAME", "web-9").replace("LABEL", "x: y"),
        ENTRY.replace("SPEC", "workloadSelector: {labels: {app: web}}"),
        ENTRY.replace("SPEC", "workloadSelector: {labels: {tier: back}}, exportTo: ['.']"),
        ENTRY.replace("SPEC", "endpoints: [{address: 192.0.2.1}], exportTo: [other]"),
        ENTRY.replace("SPEC", "endpoints: [{address: 192.0.2.1}, {network: far}]").replace("demo", "other"),
        SLICE,
        SLICE.replace("192.0.2.5", "192.0.2.6"),
        SLICE.replace("192.0.2.5]", "192.0.2.5], targetRef: {kind: Pod, name: web-0}"),
        SLICE.replace("192.0.2.5]", "192.0.2.7], targetRef: {kind: Pod, name: api-1}").replace("name: slice", "name: other"),
        SLICE.replace("192.0.2.5]", "192.0.2.7], targetRef: {kind: Pod, name: web-0}")
        .replace("name: slice", "name: more")
        .replace("port: 81", "port: 82"),
        SLICE.replace("192.0.2.5]", "192.0.2.7], conditions: {ready: false}, targetRef: {kind: Pod, name: web-1}"),
        SLICE.replace("192.0.2.5]", "192.0.2.7], targetRef: {kind: Pod, name: web-9}").replace("-name: web}", "-name: gw}"),
        VM,
        VM.replace("tier: back", "tier: front").replace("192.0.2.9", "192.0.2.8"),
        DEPLOYMENT.replace("name: web,", "name: api,").replace("NUMBER", "3"),
        NODE.replace("labels: {", "labels: {topology.istio.io/network: far, "),
        "{apiVersion: v1, kind: Namespace, metadata: {name: istio-system, labels: {topology.istio.io/network: near}}}",
        GATEWAY.replace("NAME", "east").replace("LABELS", "topology.istio.io/network: far").replace("CLASS", "istio-remote"),
        GATEWAY.replace("NAME", "gw").replace("LABELS", "istio.io/waypoint-for: workload").replace("CLASS", "istio-waypoint"),
        GATEWAY.replace("NAME", "gw").replace("LABELS", "istio.io/waypoint-for: all").replace("CLASS", "istio-waypoint"),
        pod("web-1").replace("spec: {", "spec: {serviceAccountName: another, "),
        pod("web-2", "istio.io/use-waypoint: gw"),
    ]
    pods = [*(f"web-{number}" for number in range(4)), "web-9", "api-0", "api-1", "api-2"]
    walked = Index(names, RANGES)
    current: dict[str, Object] = {}
    reports: dict[tuple[str, str], PodReport] = {}
    published: dict[str, dict[str, object]] = {}
    for _ in range(500):
        if dice.random() < 0.6:
            if dice.random() < 0.1:
                current = {one.title: one for text in dice.sample(pool, dice.randint(0, len(pool))) for one in objects(text)}
            else:  # one object comes, changes or goes
                current = dict(current)
                for one in objects(dice.choice(pool)):
                    known = current.pop(one.title, None)
                    current |= {one.title: one} if known != one else {}
            addresses = {"demo/web": (ip_address(f"10.96.0.{dice.randint(1, 3)}"),)} if dice.random() < 0.7 else {}
            addresses |= {f"{one.namespace}//outside.example": (ip_address("240.240.0.1"),) for one in current.values()}
            walked.replace_objects(list(current.values()), addresses)
        else:
            name = dice.choice(pods)
            reports = dict(reports)
            known = reports.pop(("demo", name), None)
            if known is None or dice.random() < 0.5:
                reports["demo", name] = report(name, f"10.244.1.{dice.randint(1, 9)}", ready=dice.random() < 0.5)
            walked.replace_reports(reports, [("demo", name)])
        published |= walked.take()
        fresh = Index(names, RANGES)
        fresh.replace_reports(reports, ())
        fresh.replace_objects(list(current.values()), walked._addresses)
        assert published == fresh.take()
        listed = {key for workload in walked.workloads.nouns.values() for key in workload.authorization_policies}
        assert listed <= walked.policies.nouns.keys(), "what is listed and not there forbids nothing"
        assert walked.workloads.nouns == fresh.workloads.nouns and walked.services.nouns == fresh.services.nouns


def test_of_slices_that_differ_about_a_port_the_last_by_name_counts() -> None:
    """Not whichever came last: a control plane that starts anew would say something else."""
    first = SLICE.replace("192.0.2.5]", "192.0.2.5], targetRef: {kind: Pod, name: web-0}")
    last = first.replace("name: slice", "name: then").replace("port: 81", "port: 82")
    others = [NODE, pod(label="tier: back"), service().replace("app: web", "tier: front")]
    for arrivals in ([first, last], [last, first]):
        index = index_of([*others, arrivals[0]], [report()])
        index.replace_objects(objects(*others, *arrivals), {})
        assert index.workloads.nouns[UID].services == {KEY: {81: 82}}
    index.replace_objects(objects(NODE, pod(), service(), first), {})
    assert index.workloads.nouns[UID].services == {KEY: {80: 8080, 81: 81}}, "by whom it is selected knows it better"


def namespace(labels: str) -> str:
    return f"{{apiVersion: v1, kind: Namespace, metadata: {{name: demo, labels: {{{labels}}}}}}}"


def test_who_asks_for_a_waypoint_is_not_reached_past_it() -> None:
    elsewhere = "istio.io/use-waypoint: gw, istio.io/use-waypoint-namespace: infra"
    index = index_of([NODE, pod(), service(), namespace("a: b")], [report()])
    assert index.services.nouns[KEY].waypoint is None and index.workloads.nouns[UID].waypoint is None
    steps = [
        (service(), "istio.io/use-waypoint: gw", "demo/gw.demo.svc.cluster.local"),
        (service(), elsewhere, "infra/gw.infra.svc.cluster.local"),
        (service().replace("name: web,", "name: web, labels: {istio.io/use-waypoint: none},"), elsewhere, "None"),
        (service().replace("name: web,", "name: web, labels: {istio.io/use-waypoint: own},"), "a: b", "demo/own.demo"),
    ]
    for written, labels, expected in steps:
        index.replace_objects(objects(NODE, pod(), written, namespace(labels)), {"demo/web": (ip_address("10.96.0.9"),)})
        assert str(index.services.nouns[KEY].waypoint).startswith(expected)
        assert index.workloads.nouns[UID].waypoint is None, "a namespace speaks of its services"
    index.replace_objects(objects(NODE, pod(), service(), namespace("istio.io/use-waypoint: web")), {})
    assert index.services.nouns[KEY].waypoint is None, "it is that waypoint"
    own = objects(NODE, pod(label="istio.io/use-waypoint: gw"), service())
    index.replace_objects(own, {})
    assert str(index.workloads.nouns[UID].waypoint) == "demo/gw.demo.svc.cluster.local"
    assert index.services.nouns[KEY].waypoint is None
