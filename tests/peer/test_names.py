"""Names as a pod asks for them: what Istio's ztunnel answers is what weft's finds in the same mesh."""

import socket
from pathlib import Path

import dns.flags
import dns.message
import dns.rdatatype
import pytest

from mesh.inventory import Inventory
from mesh.local_mesh import read_local_mesh
from tests.peer.standalone import standalone
from ztunnel.names import Zone, find

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]

MESH = """
workloads:
- {uid: c//Pod/shop/client, name: client, namespace: shop, workloadIps: [10.197.0.1], network: "",
   node: n1, serviceAccount: client,
   services: {}}
- {uid: c//Pod/shop/h0, name: h0, namespace: shop, workloadIps: [10.197.0.50, "fd97::50"], network: "",
   services: {shop/head.shop.svc.cluster.local: {80: 8080}, shop/ranged.shop.svc.cluster.local: {80: 8080}}}
- {uid: c//Pod/shop/h1, name: h1, namespace: shop, workloadIps: [10.197.0.51], network: "", status: Unhealthy,
   services: {shop/head.shop.svc.cluster.local: {80: 8080}}}
- {uid: c//Pod/other/h2, name: h2, namespace: other, workloadIps: [10.197.0.52], network: "",
   services: {other/hl.other.svc.cluster.local: {80: 8080}, shop/head.example.com: {80: 80}}}
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.197.1.1, "/fd97:1::1"], ports: {80: 8080}}
- {name: v4, namespace: shop, hostname: v4.shop.svc.cluster.local, vips: [/10.197.1.2], ports: {80: 8080}}
- {name: v6, namespace: shop, hostname: v6.shop.svc.cluster.local, vips: ["/fd97:1::2"], ports: {80: 8080}}
- {name: svc, namespace: shop, hostname: svc.shop.svc.cluster.local, vips: [/10.197.1.3], ports: {80: 8080}}
- {name: api, namespace: other, hostname: api.other.svc.cluster.local, vips: [/10.197.1.4], ports: {80: 8080}}
- {name: head, namespace: shop, hostname: head.shop.svc.cluster.local, vips: [], ports: {80: 8080}}
- {name: hl, namespace: other, hostname: hl.other.svc.cluster.local, vips: [], ports: {80: 8080}}
- {name: ext, namespace: shop, hostname: head.example.com, vips: [], ports: {80: 80}}
- {name: www, namespace: shop, hostname: www.example.com, vips: [/10.197.1.5], ports: {80: 80}}
- {name: wild, namespace: shop, hostname: "*.wild.example.com", vips: [/10.197.1.6], ports: {80: 80}}
- {name: com, namespace: other, hostname: "*.com", vips: [/10.197.1.7], ports: {80: 80}}
- {name: k, namespace: shop, hostname: "*.k.shop.svc.cluster.local", vips: [/10.197.1.8], ports: {80: 80}}
- {name: one-a, namespace: shop, hostname: one.example.org, vips: [/10.197.1.9], ports: {80: 80}}
- {name: one-b, namespace: other, hostname: one.example.org, vips: [/10.197.1.10], ports: {80: 80}, canonical: true}
- {name: two-a, namespace: any, hostname: two.example.org, vips: [/10.197.1.11], ports: {80: 80}}
- {name: two-b, namespace: other, hostname: two.example.org, vips: [/10.197.1.12], ports: {80: 80}, canonical: true}
- {name: net, namespace: shop, hostname: net.example.org, vips: [net2/10.197.1.13], ports: {80: 80}}
- {name: both, namespace: shop, hostname: both.example.org, vips: [net2/10.197.1.14, /10.197.1.15], ports: {80: 80}}
- {name: hidden, namespace: other, hostname: hidden.example.org, vips: [/10.197.1.16], ports: {80: 80}, visibility: Namespace}
- {name: mine, namespace: shop, hostname: mine.example.org, vips: [/10.197.1.17], ports: {80: 80}, visibility: Namespace}
- {name: only, namespace: shop, hostname: only.example.org, vips: [/10.197.1.18, "/fd97:1::18"], ports: {80: 80},
   ipFamilies: IPv4}
- {name: range, namespace: shop, hostname: range.example.org, vips: [], ports: {80: 80},
   cidrVips: [{cidr: 10.5.0.0/16, network: ""}]}
- {name: ranged, namespace: shop, hostname: ranged.shop.svc.cluster.local, vips: [], ports: {80: 80},
   cidrVips: [{cidr: 10.6.0.0/16, network: ""}]}
policies: []
"""
_LOCAL = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")
_ASKED = """
web web.shop web.shop.svc web.shop.svc.cluster.local WEB.Shop web.other web.svc.cluster.local web.cluster.local v4 v6.shop svc
svc.shop svc.shop.svc api api.other api.other.svc api.other.svc.cluster.local head head.shop.svc.cluster.local hl hl.other
head.example.com www.example.com example.com com a.com a.b.com x.wild.example.com a.b.wild.example.com wild.example.com x.k
x.k.shop x.k.shop.svc x.k.shop.svc.cluster.local y.x.k.shop.svc.cluster.local one.example.org two.example.org net.example.org
both.example.org hidden.example.org mine.example.org only.example.org range.example.org ranged
nobody nobody.shop.svc.cluster.local
a.b.c.d.e.f.g
"""
NAMES = [name + end for name in _ASKED.split() for end in ("", *(f".{domain}" for domain in _LOCAL))]
Answer = tuple[str, list[str]] | None
"""What the name is an alias of (empty: of nothing), and its addresses; None: that is for a nameserver to say."""
_TYPES = {4: "A", 6: "AAAA"}


def answered(pod: socket.socket, name: str, version: int) -> Answer:
    """By Istio's ztunnel, whose nameservers cannot be reached."""
    query = dns.message.make_query(name, _TYPES[version], use_edns=0, payload=4096)
    pod.send(query.to_wire())
    answer = dns.message.from_wire(pod.recv(65536))
    assert answer.id == query.id
    if not answer.flags & dns.flags.AA:
        return None
    aliases = [str(one).rstrip(".") for rrset in answer.answer if rrset.rdtype == dns.rdatatype.CNAME for one in rrset]
    addresses = [str(one) for rrset in answer.answer if rrset.rdtype != dns.rdatatype.CNAME for one in rrset]
    return "".join(aliases), sorted(addresses)


def test_every_name_means_the_same_to_both(ztunnel: str, tmp_path: Path) -> None:
    mesh, inventory = read_local_mesh(MESH), Inventory()
    inventory.apply([*mesh.workloads, *mesh.services], [])
    zone, client = Zone(search=_LOCAL), mesh.workloads[0]

    def found(name: str, version: int) -> Answer:
        meant = find(inventory, zone, client, name.lower(), version)
        return meant and (meant.alias if meant.addresses else "", sorted(map(str, meant.addresses)))

    questions = [(name, version) for name in NAMES for version in _TYPES]
    ours = {question: found(*question) for question in questions}
    assert sum(one is not None for one in ours.values()) > 80
    with standalone(ztunnel, MESH, tmp_path, _LOCAL) as proxy, proxy.make_socket(socket.SOCK_DGRAM) as pod:
        pod.settimeout(10)
        pod.connect(("127.0.0.1", 15053))
        theirs = {question: answered(pod, *question) for question in questions}
    differ = {question: (ours[question], theirs[question]) for question in questions if ours[question] != theirs[question]}
    assert not differ
