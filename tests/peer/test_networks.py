"""A tunnel in a tunnel: weft's ztunnel reaches Istio's on another network through a gateway, and Istio's reaches weft's."""

import json
from collections.abc import Iterator

import pytest

from tests.lab.test_networks import GATEWAY_POD, RELAY
from tests.lab.world import eventually
from tests.peer.cross import CROSSINGS, ECHO_PORT, CrossMesh, node

pytestmark = [pytest.mark.peer, pytest.mark.timeout(150)]

HOME = "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: NETWORK}}\n---\n"
FAR = "labels: {topology.istio.io/network: far}"


def proxies(cross: CrossMesh, far: str = "") -> str:
    """Both nodes, one of them on the far network, or none."""
    made = {"a": node("a"), "b": node("b", cross.command)}
    if far:
        made[far] = made[far].replace("metadata: {", f"metadata: {{{FAR}, ")
    return made["a"] + made["b"]


@pytest.fixture(params=CROSSINGS, ids=["weft to Istio", "Istio to weft"], scope="module")
def ends(request: pytest.FixtureRequest, cross: CrossMesh) -> Iterator[tuple[str, str]]:
    """A client, and a server on another network, of which only a gateway in front of it can be reached."""
    client, server = request.param
    far = server[-1]
    relay = GATEWAY_POD.replace("nodeName: b", f"nodeName: {far}").replace("PROGRAM", json.dumps(RELAY))
    relay = relay.replace("ADDRESS", cross.address(server))
    cross.apply(HOME.replace("NETWORK", "near") + proxies(cross, far) + relay.replace("WHERE", ""))
    address = eventually(lambda: gateway_of(cross, server), 20)
    cross.apply(relay.replace("WHERE", f"{{value: {address}}}"))
    eventually(lambda: networks(cross) == {client[-1]: "near", far: "far"}, 30)
    cross.await_ready()
    yield client, server
    cross.delete(relay.replace("WHERE", ""))
    cross.apply(proxies(cross))
    cross.delete(HOME.replace("NETWORK", "near"))
    eventually(lambda: set(networks(cross).values()) == {""}, 30)
    cross.await_ready()


def gateway_of(cross: CrossMesh, server: str) -> str:
    """The gateway's address on a server's node; none while it is where the test before had it."""
    address: str = cross.pod("shop/gateway")["addresses"][0]
    return address if address.rpartition(".")[0] == cross.address(server).rpartition(".")[0] else ""


def networks(cross: CrossMesh) -> dict[str, str]:
    return {one: cross.config_dump(one)["config"].get("network", "") for one in "ab"}


def vip(cross: CrossMesh, of: str, service: str, version: int) -> str:
    """A service's address on the near network, as a node's proxy knows it."""
    found = [one["vips"] for one in cross.config_dump(of)["services"] if one["name"] == service]
    near = [one.partition("/")[2] for one in found[0] if one.startswith("near/")]
    return next(one for one in near if (":" in one) == (version == 6))


@pytest.mark.parametrize("version", [4, 6])
def test_double_hbone(cross: CrossMesh, ends: tuple[str, str], version: int) -> None:
    client, server = ends
    host = eventually(lambda: vip(cross, client[-1], server, version), 20)
    puppet = cross.puppet(client)
    eventually(lambda: puppet.fate(host, ECHO_PORT) == "answered", 20)
    near, far = cross.new_lines(client[-1]), cross.new_lines(server[-1])
    assert puppet.ask(host, ECHO_PORT, "through both") == "through both"
    name = f"{server}.shop.svc.cluster.local"
    near.find('direction="outbound"', f"dst.hbone_addr={name}:{ECHO_PORT}", f'dst.service="{name}"', "bytes_sent=12")
    proved = f'src.identity="spiffe://cluster.local/ns/shop/sa/{client}"'
    far.find('direction="inbound"', f"dst.hbone_addr={name}:{ECHO_PORT}", proved, f'dst.workload="{server}"', "bytes_recv=12")


def test_what_many_send_at_once_comes_back_whole(cross: CrossMesh, ends: tuple[str, str]) -> None:
    client, server = ends
    host = eventually(lambda: vip(cross, client[-1], server, 4), 20)
    eventually(lambda: cross.puppet(client).fate(host, ECHO_PORT) == "answered", 20)
    assert cross.puppet(client).do("crowd", host, ECHO_PORT, 20, 64 << 10) == {"same": 20}
