"""Two nodes on two networks, told apart by control from their labels: across goes through a gateway, or not at all."""

import json
from collections.abc import Iterator

import pytest

from tests.lab.mesh import ECHO_PORT, NODES, PODS, Mesh
from tests.lab.world import eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

PASS_PORT = 15443
RELAY = f"""
import socket, sys, threading
def carry(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)
for near, _ in iter(socket.create_server(("", {PASS_PORT})).accept, None):
    far = socket.create_connection((sys.argv[1], 15008))
    for ends in ((near, far), (far, near)):
        threading.Thread(target=carry, args=ends, daemon=True).start()
"""
"""Ends the outer tunnels' streams behind its own pod's proxy, and passes their bytes on, as an east-west gateway does."""
NETWORKS = """
apiVersion: v1
kind: Node
metadata: {name: b, labels: {topology.istio.io/network: far}}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: near}}
---
"""
GATEWAY_POD = """
apiVersion: v1
kind: Pod
metadata:
  name: gateway
  namespace: shop
  labels: {gateway.networking.k8s.io/gateway-name: gateway}
  annotations: {traffic.sidecar.istio.io/excludeOutboundIPRanges: ADDRESS/32}
spec:
  nodeName: b
  serviceAccountName: gateway
  containers: [{name: relay, command: [python3, -c, PROGRAM, ADDRESS]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: gateway
  namespace: shop
  labels: {topology.istio.io/network: far}
  annotations: {ambient.istio.io/waypoint-inbound-binding: NONE/15443}
spec:
  gatewayClassName: istio-east-west
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
  addresses: [WHERE]
"""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(NODES + PODS) as made:
        for name in ("client", "near", "far"):
            made.puppet(name).echo(ECHO_PORT)
        yield made


def vip(mesh: Mesh, service: str) -> str:
    services = mesh.config_dump("a")["services"]
    return str({one["name"]: one["vips"][0].rpartition("/")[2] for one in services}[service])


def test_a_service_on_another_network_is_reached_through_its_gateway(mesh: Mesh) -> None:
    far = vip(mesh, "far")
    before = [mesh.program(node, "ztunnel") for node in ("a", "b")]
    assert mesh.puppet("client").ask(far, ECHO_PORT, "one network") == "one network"

    mesh.apply(NETWORKS)
    eventually(lambda: [mesh.config_dump(node)["config"]["network"] for node in ("a", "b")] == ["near", "far"])
    assert all(pid not in before for pid in (mesh.program(node, "ztunnel") for node in ("a", "b")))
    mesh.await_ready()
    near = eventually(lambda: vip(mesh, "near"))
    eventually(lambda: mesh.puppet("client").fate(near, ECHO_PORT, "at home") == "answered")

    def refused() -> bool:
        assert mesh.puppet("client").fate(far, ECHO_PORT) == "reset"
        return any("1 are on network far, to which no gateway is known" in one.get("Summary", "") for one in mesh.flows())

    eventually(refused)  # a proxy that has just begun knows the pods, and not yet that they are on networks

    relay = GATEWAY_POD.replace("PROGRAM", json.dumps(RELAY)).replace("ADDRESS", mesh.address("far"))
    mesh.apply(relay.replace("WHERE", ""))
    address = mesh.address("gateway")
    mesh.apply(relay.replace("WHERE", f"{{value: {address}}}"))
    eventually(lambda: mesh.puppet("client").fate(far, ECHO_PORT, "through the gateway") == "answered")
    mesh.await_access_log("a", f"dst.addr={address}:15008", 'dst.service="far.shop.svc.cluster.local"', "/sa/far")
    mesh.await_access_log("b", f"src.addr={address}:", 'src.identity="spiffe://cluster.local/ns/shop/sa/client"', "/sa/far")
