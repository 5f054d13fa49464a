"""ServiceEntry and WorkloadEntry: what is read, written back, and said of mistakes."""

import pytest

from mesh.manifests import EndpointSlice, ServiceEntry, WorkloadEntry, check_references, from_dict, parse
from mesh.workload import Locality

pytestmark = pytest.mark.unit

ENTRY = """
apiVersion: networking.istio.io/VERSION
kind: ServiceEntry
metadata: {name: db, namespace: demo, LABELS}
spec: {hosts: [db.example], SPEC}
"""
PORTS = "ports: [{number: 5432, name: tcp, protocol: TCP}]"
STATIC = f"{PORTS}, resolution: STATIC, endpoints: [{{address: 192.0.2.1}}]"
WORKLOAD = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: demo, labels: {app: db, tier: meta}}
spec: {SPEC}
"""


def entry(spec: str = STATIC, labels: str = "labels: {}", version: str = "v1") -> str:
    return ENTRY.replace("SPEC", spec).replace("LABELS", labels).replace("VERSION", version)


def workload(spec: str) -> str:
    return WORKLOAD.replace("SPEC", spec)


def said(text: str) -> list[tuple[bool, str, str]]:
    return [(problem.warning, problem.field, problem.reason) for problem in parse({"f": text}).problems]


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_a_service_entry(version: str) -> None:
    more = (
        "addresses: [198.51.100.1, 203.0.113.0/24, '2001:db8::/32'], location: MESH_INTERNAL, resolution: DNS, "
        "ports: [{number: 80, name: http, protocol: http, targetPort: 8080}, {number: 443, name: tls}], "
        "endpoints: [{address: one.example, ports: {http: 81}, weight: 3, locality: r/z/s, network: far, serviceAccount: sa},"
        " {network: farther}], exportTo: ['.'], subjectAltNames: ['spiffe://cluster.local/ns/demo/sa/x']"
    )
    (made,) = parse({"f": entry(more, version=version)}).of(ServiceEntry)
    assert [str(one) for one in made.addresses] == ["198.51.100.1/32", "203.0.113.0/24", "2001:db8::/32"]
    assert [(port.port, port.target, port.app_protocol) for port in made.ports] == [(80, 8080, "HTTP"), (443, 443, "TCP")]
    first, second = made.endpoints
    assert (first.ip, first.hostname, first.ports, first.weight) == (None, "one.example", {"http": 81}, 3)
    assert (first.place, second.place, second.network) == (Locality("r", "z", "s"), Locality(), "farther")
    assert made.is_private and made.is_told and not made.is_resolved and not made.gets_addresses("db.example")
    assert from_dict(made.to_dict()) == made


def test_a_workload_entry_has_the_labels_of_both_its_ends() -> None:
    (made,) = parse({"f": workload("address: 192.0.2.9, labels: {tier: spec}, weight: 7, ports: {pg: 5432}")}).of(WorkloadEntry)
    assert made.labels == {"app": "db", "tier": "spec"} and str(made.endpoint.ip) == "192.0.2.9"
    assert from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    ("words", "namespaces", "private"),
    [
        ("[]", (), False),
        ("['*']", (), False),
        ("[demo]", ("demo",), True),
        ("['.']", ("demo",), True),
        ("['.', '*']", (), False),
        ("[other, '.']", ("demo", "other"), False),
        ("[other]", ("other",), False),
    ],
)
def test_to_whom_it_is_shown(words: str, namespaces: tuple[str, ...], private: bool) -> None:
    (made,) = parse({"f": entry(f"{STATIC}, exportTo: {words}")}).of(ServiceEntry)
    assert (made.shown_to, made.is_private, made.is_told) == (namespaces, private, True)
    assert from_dict(made.to_dict()) == made


DYNAMIC = "ports: [{number: 443, name: tls, protocol: TLS}], resolution: DYNAMIC_DNS"


def test_hosts_that_a_waypoint_finds() -> None:
    text = entry(DYNAMIC).replace("[db.example]", "['*.example']")
    (made,) = parse({"f": text}).of(ServiceEntry)
    assert made.gets_addresses("*.example") and not made.is_resolved
    assert from_dict(made.to_dict()) == made
    warned = check_references([made])
    assert [(one.object, one.field, one.warning) for one in warned] == [("ServiceEntry demo/db", "spec.resolution", True)]
    marked = entry(DYNAMIC, "labels: {istio.io/use-waypoint: gw}").replace("[db.example]", "['*.example']")
    assert [one.field for one in check_references(parse({"f": marked}).objects)] == ["metadata.labels[istio.io/use-waypoint]"]


def test_it_may_be_shown_to_nobody() -> None:
    (made,) = parse({"f": entry(f"{STATIC}, exportTo: ['~']")}).of(ServiceEntry)
    assert not made.is_told


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        (entry().replace("[db.example]", "[]"), "spec.hosts", "required: the names by which it is called"),
        (entry().replace("db.example", "192.0.2.1"), "spec.hosts[0]", "'192.0.2.1' is an address, no name: write it under add"),
        (entry().replace("db.example", "'*'"), "spec.hosts[0]", "'*' is no object name"),
        (entry().replace("[db.example]", "[a.b, a.b]"), "spec.hosts", "one host occurs twice"),
        (entry(f"{STATIC}, addresses: [10.0.0.1/8]"), "spec.addresses[0]", "'10.0.0.1/8' is no CIDR"),
        (entry("resolution: NONE"), "spec.ports", "at least one port"),
        (entry("ports: [{number: 1, name: a}, {number: 1, name: b}]"), "spec.ports", "one port occurs twice"),
        (entry("ports: [{number: 1, name: a}, {number: 2, name: a}]"), "spec.ports", "two ports of one name"),
        (entry("ports: [{number: 0, name: a}]"), "spec.ports[0].number", "0 is not between 1 and 65535"),
        (entry("ports: [{number: 1}]"), "spec.ports[0].name", "required"),
        (entry("ports: [{number: 1, name: a, protocol: X}]"), "spec.ports[0].protocol", "'X' is none of TCP, TLS"),
        (entry(f"{PORTS}, resolution: SOMEHOW"), "spec.resolution", "'SOMEHOW' is none of NONE, STATIC, DNS"),
        (entry(f"{PORTS}, endpoints: [{{address: 192.0.2.1}}]"), "spec.resolution", "NONE goes to the address that was dia"),
        (entry(STATIC.replace("192.0.2.1", "a.example")), "spec.endpoints[0].address", "'a.example' is no IP address: write"),
        (entry(f"{STATIC}, workloadSelector: {{labels: {{a: b}}}}"), "spec.workloadSelector", "either endpoints or a workload"),
        (entry(f"{PORTS}, resolution: DNS").replace("db.example", "'*.example'"), "spec.hosts", "'*.example' is nothing that"),
        (entry(f"{STATIC[:-1]}, {{address: 192.0.2.1}}]"), "spec.endpoints", "192.0.2.1 occurs twice: proxies know an endp"),
        (entry(f"{STATIC}, exportTo: ['~', '.']"), "spec.exportTo", "'~' stands alone: it shows the service to nobody"),
        (entry(DYNAMIC), "spec.hosts", "'db.example' has no wildcard: write it into an entry of its own"),
        (
            entry(f"{DYNAMIC}, addresses: [192.0.2.1]").replace("[db.example]", "['*.example']"),
            "spec.addresses",
            "DYNAMIC_DNS is for hosts with a wildcard, wherever their waypoint finds them",
        ),
        (
            entry(f"{DYNAMIC}, endpoints: [{{address: 192.0.2.1}}]").replace("[db.example]", "['*.example']"),
            "spec.endpoints",
            "DYNAMIC_DNS is for hosts with a wildcard, wherever their waypoint finds them",
        ),
        (
            entry(DYNAMIC.replace("TLS", "TCP")).replace("[db.example]", "['*.example']"),
            "spec.ports[0].protocol",
            "TCP does not name its host: HTTP, TLS, GRPC, HTTP2 do",
        ),
        (
            entry(f"{STATIC}, exportTo: [{', '.join(f'n{number}' for number in range(257))}]"),
            "spec.exportTo",
            "257 of them, at most 256 are possible: show it to all ('*')",
        ),
        (entry(f"{STATIC}, exportTo: [a.b]"), "spec.exportTo[0]", "'a.b' is no DNS label"),
        (entry(f"{STATIC}, surprise: 1"), "spec.surprise", "no such field"),
        (workload("weight: 1"), "spec.address", "required, where no network says behind which gateway it is"),
        (workload("address: 'unix:///tmp/x'"), "spec.address", "'unix:///tmp/x': a socket in a file system is reached by"),
        (workload("address: 192.0.2.1, weight: -1"), "spec.weight", "-1 is not between 0 and 4294967295"),
        (workload("address: 192.0.2.1, locality: a//b"), "spec.locality", "'a//b': write REGION, REGION/ZONE or REGION/ZONE/"),
        (workload("address: 192.0.2.1, ports: {http: 70000}"), "spec.ports[http]", "70000 is not between 1 and 65535"),
        (workload("address: 192.0.2.1, ports: {http: web}"), "spec.ports[http]", "expected a whole number, got the text 'web'"),
    ],
)
def test_mistakes(text: str, field: str, reason: str) -> None:
    ((warning, where, what),) = said(text)
    assert (warning, where) == (False, field) and what.startswith(reason), what


def test_what_has_not_the_wanted_effect_is_a_warning() -> None:
    assert said(entry(f"{PORTS}, resolution: STATIC")) == [
        (True, "spec.endpoints", "nobody stands behind it: list endpoints, or select some by workloadSelector")
    ]


def test_a_waypoint_that_is_not_there_is_a_warning() -> None:
    wish = "labels: {istio.io/use-waypoint: gw}"
    found = parse({"a": entry(labels=wish), "b": workload("address: 192.0.2.1").replace("tier: meta", wish[9:-1])})
    assert not found.problems
    assert [problem.object for problem in check_references(found.objects)] == ["ServiceEntry demo/db", "WorkloadEntry demo/vm"]


SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: demo, labels: {LABELS}}
addressType: IPv4
endpoints: [ENDPOINTS]
ports: [{name: pg, port: 5433, protocol: TCP, appProtocol: x}]
"""


def endpoint_slice(endpoints: str, labels: str = "kubernetes.io/service-name: db") -> str:
    return SLICE.replace("ENDPOINTS", endpoints).replace("LABELS", labels)


def test_an_endpoint_slice() -> None:
    text = "{addresses: [192.0.2.1], nodeName: x}, {addresses: [192.0.2.2], conditions: {ready: false, serving: true}}"
    (made,) = parse({"f": endpoint_slice(text)})
    assert isinstance(made, EndpointSlice) and made.service == "db" and made.ports == (("pg", 5433, "TCP"),)
    assert [(str(one.addresses[0]), one.is_ready) for one in made.endpoints] == [("192.0.2.1", True), ("192.0.2.2", False)]
    assert from_dict(made.to_dict()) == made and not made.pods
    named = "{addresses: [192.0.2.1], targetRef: {kind: Pod, name: p, uid: u, namespace: demo}}"
    found = parse({"f": endpoint_slice(named)})
    (made,) = found
    assert not found.problems and isinstance(made, EndpointSlice) and made.pods == {"p"}
    assert from_dict(made.to_dict()) == made


def test_whom_a_slice_names_and_nobody_has_written_is_a_warning() -> None:
    """The service's pods are then fewer than its author means, and each connection would only say that nobody is there."""
    wanted = endpoint_slice("{addresses: [192.0.2.1], targetRef: {kind: Pod, name: p}}, {addresses: [192.0.2.2]}")
    found = check_references(parse({"f": wanted}).objects)
    assert all(one.warning and one.object == "EndpointSlice demo/db-1" for one in found)
    assert [(one.field, one.reason) for one in found] == [
        ("metadata.labels[kubernetes.io/service-name]", "there is no Service demo/db: it stands behind nobody until there is"),
        ("endpoints[0].targetRef.name", "there is no Pod demo/p: it is left out until there is"),
    ]
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: demo}, spec: {containers: [{name: x, command: [x]}]}}"
    service = "{apiVersion: v1, kind: Service, metadata: {name: db, namespace: demo}, spec: {ports: [{port: 1}]}}"
    whole = parse({"f": wanted, "pod": pod, "service": service})
    assert not whole.problems and not check_references(whole.objects)


@pytest.mark.parametrize(
    ("text", "warning", "field", "reason"),
    [
        (endpoint_slice("{addresses: []}"), False, "endpoints[0].addresses", "required: where it is"),
        (
            endpoint_slice("{addresses: ['::1']}"),
            False,
            "endpoints[0].addresses",
            "an address that is not of IPv4, the slice's",
        ),
        (
            endpoint_slice(f"{{addresses: [{', '.join(f'192.0.2.{last}' for last in range(101))}]}}"),
            False,
            "endpoints[0].addresses",
            "101 of them, at most 100 are possible",
        ),
        (endpoint_slice("{addresses: [x]}"), False, "endpoints[0].addresses[0]", "'x' is no IP address"),
        (endpoint_slice("{addresses: [192.0.2.1]}, {addresses: [192.0.2.1]}"), False, "endpoints", "one address occurs twice"),
        (endpoint_slice("").replace("5433", "0"), False, "ports[0].port", "0 is not between 1 and 65535"),
        (
            endpoint_slice("", "a: b"),
            True,
            "metadata.labels[kubernetes.io/service-name]",
            "missing: it stands behind no Service",
        ),
        (endpoint_slice("").replace("IPv4", "FQDN"), True, "addressType", "FQDN has no effect: write a ServiceEntry with"),
        (
            endpoint_slice("{addresses: [192.0.2.1], targetRef: {kind: Pod, name: p, namespace: other}}"),
            False,
            "endpoints[0].targetRef.namespace",
            "a pod of another namespace stands behind no Service of demo",
        ),
    ],
)
def test_mistakes_in_slices(text: str, warning: bool, field: str, reason: str) -> None:
    ((found, where, what),) = said(text)
    assert (found, where) == (warning, field) and what.startswith(reason), what
