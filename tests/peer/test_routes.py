"""Where connections go: whom Istio's ztunnel dials for an address and a port is whom weft would dial in the same mesh.

Nobody can be reached from where it runs, so that its access log has a line for each of them.
"""

import re
import socket
import struct
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.inventory import Inventory
from mesh.local_mesh import read_local_mesh
from mesh.workload import Address
from tests.lab.world import eventually
from tests.peer.standalone import Standalone, standalone
from ztunnel.access_log import endpoint_text
from ztunnel.channel import SOCKS
from ztunnel.route import Refused, Request, decide

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]


def key(name: str) -> str:
    """A service's, as others refer to it."""
    return f"shop/{name}.shop.svc.cluster.local"


def gateway(destination: str, port: int = 15008) -> dict[str, Any]:
    return {"destination": destination, "hboneMtlsPort": port}


def balancing(mode: str, *preferences: str, health: str = "OnlyHealthy") -> dict[str, Any]:
    return {"loadBalancer": {"mode": mode, "routingPreferences": preferences, "healthPolicy": health}}


def workload(name: str, addresses: str, serves: dict[str, dict[int, int]] | None = None, **more: Any) -> dict[str, Any]:
    usual = {"namespace": "shop", "node": "n1", "network": "", "protocol": "HBONE", "trustDomain": "cluster.local"}
    services = {key(service): ports for service, ports in (serves or {}).items()}
    names = {"uid": f"Kubernetes//Pod/shop/{name}", "name": name, "serviceAccount": name}
    return {**usual, **names, "workloadIps": addresses.split(), "services": services, **more}


def service(name: str, addresses: str, ports: dict[int, int] | None = None, **more: Any) -> dict[str, Any]:
    vips = [one if "/" in one else f"/{one}" for one in addresses.split()]
    hostname = key(name).partition("/")[2]
    usual = {"name": name, "namespace": "shop", "hostname": hostname, "vips": vips}
    return {**usual, "ports": {80: 8080} if ports is None else ports, **more}


AT_80 = {80: 8080}
HERE = {"locality": {"region": "r", "zone": "z", "subzone": "s"}}
ELSEWHERE = {"locality": {"region": "r", "zone": "y", "subzone": "s"}, "node": "n2"}
MESH = {
    "workloads": [
        workload("client", "10.7.0.1 fd07::1", **HERE),
        workload(
            "both",
            "10.7.0.2 fd07::2",
            {
                "web": {80: 9090},
                **dict.fromkeys(("near", "strict", "any", "v4", "v6", "listed", "range"), AT_80),
                "way": {},
                "pass": {},
            },
            **HERE,
        ),
        workload("far", "10.7.0.3", dict.fromkeys(("near", "strict", "any"), AT_80), **ELSEWHERE),
        workload("plain", "10.7.0.4", {"plain": AT_80}, protocol="TCP"),
        workload("host", "10.7.0.5", {"host": AT_80}, protocol="TCP", networkMode="HostNetwork"),
        workload("ill", "10.7.0.6", {"ill": AT_80, "all": AT_80}, status="Unhealthy"),
        workload("none", "10.7.0.7", {"none": AT_80}, capacity=0),
        workload("behind", "10.7.0.8", {"behind": AT_80}, waypoint=gateway(key("way"))),
        workload("behind-ip", "10.7.0.9", waypoint=gateway("/10.7.0.2", 15009)),
        workload("behind-none", "10.7.0.10", waypoint=gateway(key("nowhere"))),
        workload("abroad", "10.7.0.11", {"abroad": AT_80}, network="net2", networkGateway=gateway("net2/10.7.9.9", 15009)),
        workload("cut-off", "10.7.0.12", {"cut-off": AT_80}, network="net2"),
        workload("gateway", "10.7.9.9", network="net2", protocol="TCP"),
        workload("tunnel", "10.7.0.13", {"tunnel": {}}, applicationTunnel={"protocol": "PROXY", "port": 15088}),
        workload("nameless", "10.7.0.14", {"named": {}}),
        workload("no-address", "", {"no-address": AT_80}),
    ],
    "services": [
        service("web", "10.8.0.1 fd08::1", {80: 8080, 81: 8081}),
        service("near", "10.8.0.2", **balancing("Failover", "Network", "Region", "Zone")),
        service("strict", "10.8.0.3", **balancing("Strict", "Node")),
        service("any", "10.8.0.4"),
        service("v4", "10.8.0.5 fd08::5", ipFamilies="IPv4"),
        service("v6", "10.8.0.6 fd08::6", ipFamilies="IPv6"),
        service("plain", "10.8.0.7"),
        service("host", "10.8.0.8"),
        service("ill", "10.8.0.9"),
        service("all", "10.8.0.10", **balancing("Standard", health="AllowAll")),
        service("none", "10.8.0.11"),
        service("behind", "10.8.0.12"),
        service("empty", "10.8.0.13"),
        service("listed", "10.8.0.14", **balancing("Passthrough", health="AllowAll")),
        service("unlisted", "10.8.0.15", **balancing("Passthrough", health="AllowAll")),
        service("way", "10.8.0.16", {15008: 15008}),
        service("tunnel", "10.8.0.17", {}),
        service("by-name", "10.8.0.18", waypoint=gateway(key("way"))),
        service("by-tunnel", "10.8.0.19", waypoint=gateway(key("tunnel"))),
        service("by-ip", "10.8.0.20", waypoint=gateway("/10.7.0.2", 15009)),
        service("by-vip", "10.8.0.21", waypoint=gateway("/10.8.0.16")),
        service("by-none", "10.8.0.22", waypoint=gateway(key("nowhere"))),
        service("by-empty", "10.8.0.23", waypoint=gateway(key("empty"))),
        service("through", "10.8.0.24", waypoint=gateway(key("way")), **balancing("Passthrough", health="AllowAll")),
        service(
            "shared",
            "10.8.0.25",
            waypoint=gateway(key("nowhere")),
            weightedWaypoints=[
                {"destination": gateway(key("way")), "weight": 1},
                {"destination": gateway(key("nowhere")), "weight": 0},
            ],
        ),
        service("abroad", "10.8.0.26", subjectAltNames=["spiffe://cluster.local/ns/shop/sa/abroad"]),
        service("cut-off", "10.8.0.27"),
        service("no-address", "10.8.0.28"),
        service("named", "10.8.0.29", {80: 0, 81: 8081}),
        service("other-network", "net2/10.8.0.30"),
        service("pass", "10.8.0.31", {15008: 15008}, **balancing("Passthrough", health="AllowAll")),
        service("by-pass", "10.8.0.32", waypoint=gateway(key("pass"))),
        service("by-pass-vip", "10.8.0.33", waypoint=gateway("/10.8.0.31")),
        service("range", "", cidrVips=[{"cidr": "10.9.0.0/16", "network": ""}]),
    ],
    "policies": [],
}
OUTSIDE = (("9.9.9.9", 80), ("fd09::9", 80), ("127.0.0.1", 15001), ("127.0.0.1", 15006), ("127.0.0.1", 15008))
Way = tuple[str, str, str] | None
"""Whom it dials, for what in its tunnel, and who that is; None: nobody."""


def ask(proxy: Standalone, address: Address, port: int) -> int:
    """Connect through the proxy's SOCKS listener; from which port."""
    packed = (b"\1" if address.version == 4 else b"\4") + address.packed + struct.pack("!H", port)
    with proxy.make_socket(socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect(("127.0.0.1", SOCKS))
        client.sendall(b"\5\1\0" + b"\5\1\0" + packed)
        with suppress(OSError):
            while client.recv(100):
                pass
        return int(client.getsockname()[1])


def told(line: str) -> Way:
    """What a line of the access log says."""
    if "\tconnection failed\t" in line:
        return None
    found = (re.search(rf'{name}="?([^ "]*)', line) for name in ("dst.addr", "dst.hbone_addr", "dst.workload"))
    where, behind, who = (match[1] if match else "" for match in found)
    return where, behind, who


def test_every_connection_goes_where_it_would(ztunnel: str, tmp_path: Path) -> None:
    mesh, inventory = read_local_mesh(yaml.safe_dump(MESH)), Inventory()
    inventory.apply([*mesh.workloads, *mesh.services], [])
    client, source = mesh.workloads[0], ip_address("127.0.0.1")

    def possible(address: Address, port: int) -> set[Way]:
        """Whomever chance may choose."""
        ways: set[Way] = set()
        for number in range(32):
            route = decide(inventory, "", Request(client, source, address, port), (number + 0.5) / 32)
            if isinstance(route, Refused):
                ways.add(None)
            else:
                assert route.address is not None
                who = route.workload.name if route.workload is not None else ""
                ways.add((endpoint_text(route.address, route.port), str(route.authority or ""), who))
        return ways

    asked = [(ip_address(address), port) for address, port in OUTSIDE]
    asked += [(address, port) for one in mesh.workloads for address in one.addresses for port in (80, 8080, 15008)]
    for one in mesh.services:
        places = [vip.address if vip.prefix is None else vip.address + 3 for vip in one.vips]
        asked += [(address, port) for address in places for port in (*one.ports, 7777)]
    with standalone(ztunnel, yaml.safe_dump(MESH), tmp_path) as proxy:
        ports = {ask(proxy, *one): one for one in asked}

        def lines() -> dict[tuple[Address, int], Way]:
            found = {}
            for line in proxy.log.read_text().splitlines():
                if match := re.search(r"src\.addr=127\.0\.0\.1:(\d+) ", line):
                    found[ports[int(match[1])]] = told(line)
            assert found.keys() == set(asked), set(asked) - found.keys()
            return found

        theirs = eventually(lines, 10)
    ours = {one: possible(*one) for one in asked}
    assert not {one: (ours[one], way) for one, way in theirs.items() if way not in ours[one]}
    assert len({way for way in theirs.values() if way is not None}) > 40
