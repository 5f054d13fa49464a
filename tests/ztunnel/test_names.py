"""What names mean to a pod: Istio's lookup table, and pods of headless services."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.inventory import Inventory
from mesh.workload import IPFamilies, NetworkAddress, Service, Workload
from ztunnel.names import Found, Zone, candidates, expansions, find, wildcards

pytestmark = pytest.mark.unit

ZONE = Zone(preferred_namespace="preferred-ns")
CLIENT = Workload("c//Pod/ns1/client", "client", "ns1", network="nw1")


def service(hostname: str, namespace: str, *vips: str, **options: object) -> Service:
    """VIPs are written as in a dump: `NETWORK/ADDRESS[/PREFIX]`, or as addresses on the client's network."""
    parsed = []
    for vip in vips:
        network, _, rest = vip.partition("/") if "/" in vip else ("nw1", "", vip)
        address, _, prefix = rest.partition("/")
        parsed.append(NetworkAddress(network, ip_address(address), int(prefix) if prefix else None))
    return Service(hostname.split(".")[0], namespace, hostname, tuple(parsed), {80: 80}, **options)  # type: ignore[arg-type]


def pod(name: str, of: str, *addresses: str, namespace: str = "ns1", healthy: bool = True) -> Workload:
    parsed = tuple(ip_address(address) for address in addresses)
    return Workload(f"c//Pod/{namespace}/{name}", name, namespace, parsed, services={of: {}}, healthy=healthy)


HEADLESS, HEADLESS_V6 = "ns1/headless.ns1.svc.cluster.local", "ns1/headless-ipv6.ns1.svc.cluster.local"
INVENTORY = Inventory()
INVENTORY.apply(
    [
        service("www.google.com", "ns1", "1.1.1.1"),
        service("productpage.ns1.svc.cluster.local", "ns1", "9.9.9.9"),
        service("example.ns2.svc.cluster.local", "ns2", "10.10.10.10"),
        service("nslocal.ns2.svc.cluster.local", "ns2", "10.10.10.240", namespace_only=True),
        service("nslocalsame.ns1.svc.cluster.local", "ns1", "10.10.10.241", namespace_only=True),
        service("some.io", "ns2", "10.10.10.242", shown_to=("ns1", "ns3")),
        service("others.io", "ns2", "10.10.10.243", shown_to=("ns3",)),
        service("details.ns2.svc.cluster.remote", "ns2", "11.11.11.11", "12.12.12.12"),
        service("dual.localhost", "ns1", "2.2.2.2", "2001:db8::8329"),
        service("ipv6.localhost", "ns1", "2001:db8::8329"),
        service("ipv4.localhost", "ns1", "2.2.2.2"),
        service("*.wildcard", "ns1", "10.10.10.10"),
        service("*.b.wildcard", "ns1", "11.11.11.11"),
        service("*.svc.mesh.company.net", "ns1", "10.1.2.3"),
        service("nw2-only.ns1.svc.cluster.local", "ns1", "nw2/20.20.20.20"),
        service("both-networks.ns1.svc.cluster.local", "ns1", "nw1/21.21.21.21", "nw2/22.22.22.22"),
        service("headless.ns1.svc.cluster.local", "ns1"),
        service("headless-ipv6.ns1.svc.cluster.local", "ns1", ip_families=IPFamilies.IPV6_ONLY),
        pod("web-0", HEADLESS, "30.30.30.30", "2001:db8::30"),
        pod("web-1", HEADLESS, "31.31.31.31", "2001:db8::31"),
        pod("web-2", HEADLESS, "32.32.32.32", healthy=False),
        pod("six-0", HEADLESS_V6, "33.33.33.33", "2001:db8::33"),
        service("headless-no-endpoints.example.com", "ns1"),
        service("headless.example.com", "ns1"),
        pod("external", "ns1/headless.example.com", "34.34.34.34"),
        service("preferred.io", "ns2", "10.10.10.210"),
        service("preferred.io", "preferred-ns", "10.10.10.211"),
        service("preferred.io", "ns3", "10.10.10.212"),
        service("everywhere.io", "preferred-ns", "10.10.10.111"),
        service("everywhere.io", "ns1", "10.10.10.112"),
        service("everywhere.io", "ns2", "10.10.10.113"),
        service("canonical.svc", "ns2", "10.10.10.140"),
        service("canonical.svc", "ns3", "10.10.10.141", canonical=True),
        service("canonical.svc", "preferred-ns", "10.10.10.142"),
        service("canonical.with.local", "ns1", "10.10.10.150"),
        service("canonical.with.local", "ns3", "10.10.10.151", canonical=True),
        service("cidr.example.com", "ns1", "nw1/10.9.0.0/16"),
        service("cidr.ns1.svc.cluster.local", "ns1", "nw1/10.9.0.0/16"),
        pod("ranged-0", "ns1/cidr.ns1.svc.cluster.local", "36.36.36.36"),
    ],
    [],
)


@pytest.mark.parametrize(
    ("name", "version", "addresses"),
    [
        ("www.google.com", 4, ["1.1.1.1"]),
        ("www.bing.com", 4, None),
        ("productpage.ns1.svc.cluster.local", 4, ["9.9.9.9"]),
        ("productpage.ns1", 4, ["9.9.9.9"]),
        ("productpage", 4, ["9.9.9.9"]),
        ("example.ns2", 4, ["10.10.10.10"]),
        ("example.ns2.svc", 4, ["10.10.10.10"]),
        ("example.ns2.svc.cluster.local", 4, ["10.10.10.10"]),
        ("example", 4, None),
        ("nslocal.ns2.svc.cluster.local", 4, None),
        ("nslocalsame.ns1.svc.cluster.local", 4, ["10.10.10.241"]),
        ("some.io", 4, ["10.10.10.242"]),
        ("others.io", 4, None),
        ("details.ns2.svc.cluster.remote", 4, ["11.11.11.11", "12.12.12.12"]),
        ("details.ns2", 4, None),
        ("dual.localhost", 4, ["2.2.2.2"]),
        ("dual.localhost", 6, ["2001:db8::8329"]),
        ("ipv6.localhost", 4, []),
        ("ipv4.localhost", 6, []),
        ("foo.wildcard", 4, ["10.10.10.10"]),
        ("a.b.wildcard", 4, ["11.11.11.11"]),
        ("foo.svc.mesh.company.net", 4, ["10.1.2.3"]),
        ("foo.foons.svc.mesh.company.net", 4, ["10.1.2.3"]),
        ("foo.svc.mesh.company.net.ns1.svc.cluster.local", 4, ["10.1.2.3"]),
        ("nw2-only.ns1.svc.cluster.local", 4, []),
        ("both-networks.ns1.svc.cluster.local", 4, ["21.21.21.21"]),
        ("headless.ns1.svc.cluster.local", 4, ["30.30.30.30", "31.31.31.31"]),
        ("headless.ns1.svc.cluster.local", 6, ["2001:db8::30", "2001:db8::31"]),
        ("headless-ipv6.ns1.svc.cluster.local", 6, ["2001:db8::33"]),
        ("headless-ipv6.ns1.svc.cluster.local", 4, []),
        ("headless-no-endpoints.example.com", 4, None),
        ("headless.example.com", 4, None),
        ("preferred.io", 4, ["10.10.10.211"]),
        ("everywhere.io", 4, ["10.10.10.112"]),
        ("canonical.svc", 4, ["10.10.10.141"]),
        ("canonical.with.local", 4, ["10.10.10.150"]),
        ("cidr.example.com", 4, None),
        ("cidr", 4, ["36.36.36.36"]),
        ("cidr", 6, []),
        ("ranged-0.cidr", 4, ["36.36.36.36"]),
        ("", 4, None),
        ("svc.cluster.local", 4, None),
    ],
)
def test_lookup(name: str, version: int, addresses: list[str] | None) -> None:
    found = find(INVENTORY, ZONE, CLIENT, name, version)
    expected = None if addresses is None else Found("", tuple(ip_address(address) for address in addresses))
    assert found == expected


@pytest.mark.parametrize(
    ("name", "alias", "address"),
    [
        ("www.google.com.ns1.svc.cluster.local", "www.google.com", "1.1.1.1"),
        ("productpage.ns1.ns1.svc.cluster.local", "productpage.ns1", "9.9.9.9"),
        ("example.ns2.cluster.local", "example.ns2", "10.10.10.10"),
        ("dual.localhost.svc.cluster.local", "dual.localhost", "2.2.2.2"),
    ],
)
def test_a_search_domain_makes_an_alias(name: str, alias: str, address: str) -> None:
    assert find(INVENTORY, ZONE, CLIENT, name, 4) == Found(alias, (ip_address(address),))
    empty = find(INVENTORY, ZONE, CLIENT, "productpage.ns1.ns1.svc.cluster.local", 6)
    assert empty is not None and empty.addresses == ()


def test_the_search_domains_of_a_dedicated_proxy_take_the_place_of_the_usual_ones() -> None:
    zone = ZONE._replace(search=("corp.example", "example"))
    for name in ("www.google.com.corp.example", "www.google.com.example"):
        assert find(INVENTORY, ZONE, CLIENT, name, 4) is None
        assert find(INVENTORY, zone, CLIENT, name, 4) == Found("www.google.com", (ip_address("1.1.1.1"),))
    assert find(INVENTORY, zone, CLIENT, "www.google.com.ns1.svc.cluster.local", 4) is None


def test_no_wildcard_covers_the_root_or_what_no_mesh_has_as_a_name() -> None:
    """Both are read as the empty name, which search domains must not lengthen to one that a wildcard covers."""
    wide = Inventory()
    wide.apply([service("*.local", "ns1", "5.5.5.5"), service("*.ns1.svc.cluster.local", "ns1", "5.5.5.6")], [])
    assert find(wide, ZONE, CLIENT, "printer.local", 4) == Found("", (ip_address("5.5.5.5"),))
    assert find(wide, ZONE, CLIENT, "", 4) is None


@pytest.mark.parametrize(
    "name", ["web-0.headless", "web-0.headless.ns1", "web-0.headless.ns1.svc", "web-0.headless.ns1.svc.cluster.local"]
)
def test_pods_of_headless_services_have_names(name: str) -> None:
    assert find(INVENTORY, ZONE, CLIENT, name, 4) == Found("", (ip_address("30.30.30.30"),))
    assert find(INVENTORY, ZONE, CLIENT, name, 6) == Found("", (ip_address("2001:db8::30"),))
    elsewhere = replace(CLIENT, namespace="ns2")
    assert (find(INVENTORY, ZONE, elsewhere, name, 4) is None) == (name == "web-0.headless")


def test_a_pod_that_is_not_ready_not_of_the_service_or_of_one_with_addresses_has_no_name() -> None:
    for name in ("web-2.headless", "six-0.headless", "client.headless", "web-0.productpage", "web-0.headless.example.com"):
        assert find(INVENTORY, ZONE, CLIENT, f"{name}.ns1.svc.cluster.local", 4) is None, name
    ready = Inventory()
    headless = service("headless.ns1.svc.cluster.local", "ns1", allow_unhealthy=True)
    ready.apply([headless, pod("web-2", HEADLESS, "32.32.32.32", healthy=False)], [])
    assert find(ready, ZONE, CLIENT, "web-2.headless", 4) == Found("", (ip_address("32.32.32.32"),))


def test_a_pods_name_beats_a_wildcard_and_a_service_beats_both() -> None:
    made = Inventory()
    made.apply(
        [*INVENTORY.services(), *INVENTORY.workloads(), service("*.headless.ns1.svc.cluster.local", "ns1", "5.5.5.5")], []
    )
    name = "web-0.headless.ns1.svc.cluster.local"
    assert find(made, ZONE, CLIENT, name, 4) == Found("", (ip_address("30.30.30.30"),))
    assert find(made, ZONE, CLIENT, "other.headless.ns1.svc.cluster.local", 4) == Found("", (ip_address("5.5.5.5"),))
    made.apply([service(name, "ns1", "6.6.6.6")], [])
    assert find(made, ZONE, CLIENT, name, 4) == Found("", (ip_address("6.6.6.6"),))


def test_without_ipv6_no_name_has_ipv6_addresses() -> None:
    zone = ZONE._replace(ipv6=False)
    for name in ("dual.localhost", "headless.ns1.svc.cluster.local", "web-0.headless"):
        found = find(INVENTORY, zone, CLIENT, name, 6)
        assert found is not None and found.addresses == ()
        assert find(INVENTORY, zone, CLIENT, name, 4) == find(INVENTORY, ZONE, CLIENT, name, 4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("name", ["name.ns1.svc.cluster.local"]),
        ("name.ns2", ["name.ns2.svc.cluster.local", "name.ns2.ns1.svc.cluster.local"]),
        ("name.ns2.svc", ["name.ns2.svc.cluster.local", "name.ns2.svc.svc.cluster.local"]),
        ("name.ns2.not-svc", ["name.ns2.not-svc.svc.cluster.local"]),
        ("pod.sub-domain.ns.svc", ["pod.sub-domain.ns.svc.cluster.local"]),
        ("pod.sub-domain.ns.not-svc", []),
        ("name.ns2.svc.cluster", []),
        ("name.ns2.svc.cluster.local", []),
        ("www.google.com", ["www.google.com.svc.cluster.local"]),
    ],
)
def test_to_kube_fqdns(name: str, expected: list[str]) -> None:
    assert expansions(name, "ns1", "cluster.local") == expected


def test_get_wildcards() -> None:
    assert list(wildcards("svc1")) == []
    assert list(wildcards("svc1.ns1.svc.cluster.local")) == [
        "*.ns1.svc.cluster.local",
        "*.svc.cluster.local",
        "*.cluster.local",
        "*.local",
    ]


def test_candidates_come_once_and_the_name_itself_first() -> None:
    names = [candidate.name for candidate in candidates("web.ns1.svc.cluster.local", "ns1", "cluster.local")]
    assert names[0] == "web.ns1.svc.cluster.local" and len(names) == len(set(names)) and "web" in names


@given(st.text("ab.-*", max_size=60), st.sampled_from([4, 6]))
def test_whatever_is_asked_is_found_or_not(name: str, version: int) -> None:
    found = find(INVENTORY, ZONE, CLIENT, name, version)
    assert found is None or all(address.version == version for address in found.addresses)
