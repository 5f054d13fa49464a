"""A wish for a waypoint, from the author's label to the proxy's decision: carried, or refused by name."""

from ipaddress import ip_address

import pytest

from tests.control.told import indexed, running, told
from ztunnel.route import Refused, Request, Route, decide

pytestmark = pytest.mark.unit

WEB = """
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: demo, labels: {istio.io/use-waypoint: gw}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: demo}, spec: {containers: [{name: c, command: [x]}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: gw-1, namespace: demo, labels: {app: gw}}
spec: {containers: [{name: c, command: [x]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: demo}, spec: {selector: {app: web}, ports: [{port: 80}]}}
"""
GATEWAY = """
---
{apiVersion: v1, kind: Service, metadata: {name: gw, namespace: demo}, spec: {selector: {app: gw}, ports: [{port: 15008}]}}
"""


def decided(manifests: str) -> Route | Refused:
    reports = [running("client", "10.244.1.1"), running("gw-1", "10.244.1.2")]
    inventory = told(indexed(manifests, reports, {"demo/web": "10.96.0.9", "demo/gw": "10.96.0.10"}))
    client = inventory.workload_of_pod("demo", "client", "default")
    assert client is not None
    return decide(inventory, "", Request(client, client.addresses[0], ip_address("10.96.0.9"), 80), 0.5)


def test_a_waypoint_that_is_not_there_is_refused_by_name() -> None:
    outcome = decided(WEB)
    assert isinstance(outcome, Refused)
    assert outcome.reason == (
        "unknown waypoint: demo/gw.demo.svc.cluster.local, wanted by service demo/web.demo.svc.cluster.local, is not known; "
        "create that waypoint, or take the wish for it away (label istio.io/use-waypoint)"
    )


def test_a_waypoint_that_is_there_is_taken() -> None:
    outcome = decided(WEB + GATEWAY)
    assert isinstance(outcome, Route), outcome
    assert (outcome.hop, str(outcome.address), outcome.port, str(outcome.authority)) == (
        *("waypoint", "10.244.1.2", 15008),
        "10.96.0.9:80",
    )
