"""Waypoints between weft's ztunnel and Istio's: the client's proxy goes through one, the waypoint's own proxy lets it.

A pod of the other node is the waypoint; its program hears the connection at the port that the client dialled.
"""

from collections.abc import Iterator

import pytest

from tests.lab.mesh import pod
from tests.lab.world import eventually
from tests.peer.cross import CROSSINGS, ECHO_PORT, CrossMesh

pytestmark = [pytest.mark.peer, pytest.mark.timeout(90)]

WISH = ", istio.io/use-waypoint: "


def waypoint(server: str) -> str:
    """The service by which a server is named as a waypoint."""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: way-{server}, namespace: shop}}
spec: {{ipFamilyPolicy: PreferDualStack, selector: {{app: {server}}}, ports: [{{port: 15008}}]}}
---
"""


def behind(name: str, way: str) -> str:
    """A service without pods of its own: whoever is reached by it was reached through its waypoint."""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, labels: {{istio.io/use-waypoint: {way}}}}}
spec: {{ipFamilyPolicy: PreferDualStack, selector: {{app: nobody}}, ports: [{{port: {ECHO_PORT}}}]}}
---
"""


@pytest.fixture(scope="module")
def mesh(cross: CrossMesh) -> Iterator[CrossMesh]:
    """The lab, with a waypoint on each node; services and pods that want one, and one that wants what is not there."""
    manifests = behind("lost", "nowhere")
    for server in ("server-a", "server-b"):
        home = server[-1]
        manifests += waypoint(server) + behind(f"l7-{server}", f"way-{server}")
        manifests += pod(f"behind-{server}", home, f"{WISH}way-{server}")
    with cross.having(manifests):
        for client, server in CROSSINGS:
            for target in (f"l7-{server}", f"behind-{server}"):
                eventually(lambda client=client, target=target: told(cross, client, target), 30)
        yield cross


def told(cross: CrossMesh, client: str, name: str) -> None:
    """A node's proxy knows of a service or a pod that wants a waypoint."""
    dump = cross.config_dump(client[-1])
    found = [one for kind in ("services", "workloads") for one in dump[kind] if one["name"] == name]
    assert found and found[0].get("waypoint"), f"{client}'s proxy knows {found} as {name}"


@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_a_service_is_reached_through_its_waypoint(mesh: CrossMesh, client: str, server: str) -> None:
    near, far = mesh.new_lines(client[-1]), mesh.new_lines(server[-1])
    assert mesh.puppet(client).fate(f"l7-{server}", ECHO_PORT) == "answered"
    near.find('direction="outbound"', f'dst.service="l7-{server}.shop.svc.cluster.local"', f'dst.workload="{server}"')
    far.find('direction="inbound"', f'src.workload="{client}"', f'dst.workload="{server}"', f":{ECHO_PORT} ")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_a_pod_is_reached_through_its_waypoint(mesh: CrossMesh, client: str, server: str, version: int) -> None:
    """Nobody listens in the pod itself."""
    near = mesh.new_lines(client[-1])
    target = mesh.address(f"behind-{server}", version)
    assert mesh.puppet(client).fate(target, ECHO_PORT) == "answered"
    place = f"{target}:{ECHO_PORT}" if version == 4 else f"[{target}]:{ECHO_PORT}"
    near.find('direction="outbound"', f"dst.hbone_addr={place}", f'dst.workload="{server}"')


@pytest.mark.parametrize("client", ["client-a", "client-b"])
def test_a_waypoint_that_is_not_there_is_an_error(mesh: CrossMesh, client: str) -> None:
    assert mesh.puppet(client).fate("lost", ECHO_PORT) in ("reset", "end")


def test_a_refusal_is_told_by_name(mesh: CrossMesh) -> None:
    log = mesh.new_lines("a")
    assert mesh.puppet("client-a").fate("lost", ECHO_PORT) == "reset"
    log.find('error="unknown waypoint: shop/nowhere.shop.svc.cluster.local, wanted by service shop/lost.shop.svc.cluster.local')
