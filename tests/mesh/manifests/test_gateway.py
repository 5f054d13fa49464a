"""Gateways, as far as the L4 mesh has a use for them, and second waypoints: what is read, and what is said of mistakes."""

from typing import Any

import pytest

from mesh.manifests import Gateway, check_references, parse
from mesh.workload import ApplicationTunnel

pytestmark = pytest.mark.unit

GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  {name: gw, namespace: demo, labels: {LABELS}, annotations: {ANNOTATIONS}}
spec: {gatewayClassName: CLASS, MORE}
"""
WAY = "addresses: [{value: 192.0.2.1}], listeners: [{name: l, port: 15009, protocol: HBONE, tls: {mode: Terminate}}]"
BINDING = "ambient.istio.io/waypoint-inbound-binding"


def manifest(labels: str = "", annotations: str = "", kind: str = "istio-waypoint", more: str = "") -> str:
    text = GATEWAY.replace("LABELS", labels).replace("ANNOTATIONS", annotations)
    return text.replace("CLASS", kind).replace("MORE", more)


def said(text: str) -> list[tuple[bool, str, str]]:
    return [(problem.warning, problem.field, problem.reason) for problem in parse({"f": text}).problems]


def read(*arguments: Any, **fields: Any) -> Gateway:
    found = parse({"f": manifest(*arguments, **fields)})
    assert not found.problems
    (made,) = found.of(Gateway)
    return made


def test_a_way_to_another_network() -> None:
    made = read("topology.istio.io/network: net2", kind="istio-remote", more=WAY)
    assert (made.network, made.addresses, made.hbone_port) == ("net2", (("IPAddress", "192.0.2.1"),), 15009)
    assert made.service_account == "gw-istio-remote"
    near = read("topology.istio.io/network: net2", "gateway.istio.io/service-account: other", "istio-east-west", WAY)
    assert near.service_account == "other" and read(kind="istio-east-west", labels="topology.istio.io/network: n", more=WAY)


@pytest.mark.parametrize(
    ("text", "tunnel"),
    [
        ("PROXY", ApplicationTunnel(True, 0)),
        ("PROXY/15088", ApplicationTunnel(True, 15088)),
        ("NONE/80", ApplicationTunnel(False, 80)),
    ],
)
def test_how_a_waypoint_wants_connections(text: str, tunnel: ApplicationTunnel) -> None:
    assert read("", f"{BINDING}: {text}").application_tunnel == tunnel
    assert read().application_tunnel is None


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        (manifest("", f"{BINDING}: HTTP/80"), f"metadata.annotations[{BINDING}]", "'HTTP/80': write PROXY or NONE"),
        (manifest("", f"{BINDING}: PROXY/0"), f"metadata.annotations[{BINDING}]", "'PROXY/0': write PROXY or NONE"),
        (manifest("", f"{BINDING}: PROXY/0655359"), f"metadata.annotations[{BINDING}]", "'PROXY/0655359': write PROXY or"),
        (manifest("", f"{BINDING}: PROXY/"), f"metadata.annotations[{BINDING}]", "'PROXY/': write PROXY or NONE"),
        (
            manifest("istio.io/waypoint-for: pods"),
            "metadata.labels[istio.io/waypoint-for]",
            "'pods' is none of service, workload",
        ),
        (manifest(more="addresses: [{value: nine}]"), "spec.addresses[0].value", "'nine' is no IP address"),
        (manifest(more="listeners: [{name: a, port: 0, protocol: HBONE}]"), "spec.listeners[0].port", "0 is not between"),
        ("{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: g}}", "spec", "required"),
    ],
)
def test_mistakes(text: str, field: str, reason: str) -> None:
    ((warning, where, what),) = said(text)
    assert (warning, where) == (False, field) and what.startswith(reason)


def test_a_way_that_leads_nowhere_is_a_warning() -> None:
    (first,) = said(manifest(kind="istio-remote", more=WAY))
    assert first == (True, "metadata.labels[topology.istio.io/network]", "missing: nobody knows to which network it leads")
    (second,) = said(manifest("topology.istio.io/network: n", kind="istio-east-west"))
    assert second[0] and second[1] == "spec" and "nobody reaches network 'n'" in second[2]
    network = "topology.istio.io/network: n"
    (third,) = said(manifest(network, kind="istio-eastwest", more=WAY))
    what = "'istio-eastwest': no way to network 'n': that is what istio-remote and istio-east-west are"
    assert third == (True, "spec.gatewayClassName", what)
    assert said(manifest(network, kind="istio-waypoint", more=WAY)) == []


SERVICE = "{apiVersion: v1, kind: Service, metadata: {name: NAME, labels: {LABELS}, NOTES}, spec: {ports: [{port: 15008}]}}"


def canary(labels: str, weight: str = "", of_namespace: str = "a: b") -> list[str]:
    notes = f"annotations: {{istio.io/use-waypoint-canary-weight: {weight!r}}}" if weight else "creationTimestamp: ''"
    texts = [
        SERVICE.replace("NAME", name).replace("LABELS", said_of).replace("NOTES", noted)
        for name, said_of, noted in (("web", labels, notes), ("gw", "a: b", notes), ("new", "a: b", notes))
    ]
    texts.append(f"{{apiVersion: v1, kind: Namespace, metadata: {{name: default, labels: {{{of_namespace}}}}}}}")
    found = check_references(parse({"f": "\n---\n".join(texts)}).objects)
    assert all(problem.warning and problem.object == "Service default/web" for problem in found)
    return [problem.reason for problem in found]


def test_a_second_waypoint() -> None:
    both = "istio.io/use-waypoint: gw, istio.io/use-waypoint-canary: {}"
    assert canary(both.format("new"), "25") == [] and canary(both.format("new")) == []
    assert canary(both.format("none"), "25") == []
    for wrong in ("101", "-1", "half", "²"):
        assert canary(both.format("new"), wrong)[0].endswith("from 0 to 100; the first waypoint gets all")
    assert canary(both.format("gw"), "25") == ["no effect: it is the first waypoint"]
    assert canary("istio.io/use-waypoint-canary: new", "25") == [
        "no effect without a first waypoint (label istio.io/use-waypoint)"
    ]
    nothing = "istio.io/use-waypoint: '', istio.io/use-waypoint-canary: new"
    assert canary(nothing, "25", "istio.io/use-waypoint: gw") == [], "who says nothing has its namespace's"
    assert canary(both.format("gone"), "25")[0].startswith("there is no Service default/gone")
    assert canary(both.format("gone"), "0") == [], "nobody is sent there"
