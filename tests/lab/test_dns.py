"""DNS of pods in a running lab: services and pods by name, and other names from a nameserver that is a pod elsewhere."""

import os
import re
from collections.abc import Iterator

import dns.message
import dns.rcode
import pytest

from lab.layout import netns_path
from tests.lab.mesh import ECHO_PORT, NODES, PODS, Mesh, pod
from tests.lab.world import eventually
from tests.ztunnel.nameserver import Nameserver, zone
from wire.netns import entered, open_home

pytestmark = pytest.mark.lab

HEADLESS = """
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: far}, ports: [{port: 7000}]}
---
"""
OPTED_OUT = pod("frank", "a").replace("metadata: {", 'metadata: {annotations: {ambient.istio.io/dns-capture: "false"}, ')
ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: NAME, namespace: shop}
spec: {hosts: [NAME.example], ports: [{number: 81, name: tcp, targetPort: PORT}], SPEC}
---
"""
SELECTED = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop, labels: {tier: vm}}
spec: {address: ADDRESS, ports: {tcp: PORT}}
---
"""
CLIENT = """
import socket, struct, sys
address, how, wire = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
kind = socket.SOCK_DGRAM if how == "udp" else socket.SOCK_STREAM
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
    sock.settimeout(25)
    sock.connect((address, 53))
    sock.sendall(wire if how == "udp" else struct.pack("!H", len(wire)) + wire)
    got = sock.recv(65535) if how == "udp" else sock.recv(2, socket.MSG_WAITALL)
    if how == "tcp":
        got = sock.recv(int.from_bytes(got, "big"), socket.MSG_WAITALL)
print(got.hex())
"""
"""What dig does, in a pod that has no dig."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    resolv_conf = tmp_path_factory.mktemp("dns") / "resolv.conf"
    resolv_conf.write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEFT_RESOLV_CONF", str(resolv_conf))
        with Mesh(NODES + PODS + HEADLESS + OPTED_OUT) as made:
            resolv_conf.write_text(f"nameserver {made.address('far')}\n")
            made.puppet("outsider").echo(ECHO_PORT)
            yield made


@pytest.fixture(scope="module")
def nameserver(mesh: Mesh) -> Iterator[Nameserver]:
    """In pod `far`, on the other node."""
    netns, home = os.open(netns_path(mesh.pod("shop/far")["netns"]), os.O_RDONLY), open_home()
    with entered(netns, home):
        made = Nameserver(
            zone({"www.example.": ["60 A 192.0.2.1"], "vm.example.": [f"60 A {mesh.address('outsider')}"]}),
            mesh.address("far"),
            53,
        )
    eventually(lambda: addresses(ask(mesh, "www.example.")) == {"192.0.2.1"})  # proxies look by the second who it is
    yield made
    made.close()
    for fd in (netns, home):
        os.close(fd)


def ask(mesh: Mesh, name: str, kind: str = "A", address: str = "10.1.0.1", how: str = "udp") -> dns.message.Message:
    wire = dns.message.make_query(name, kind, use_edns=0, payload=1232).to_wire()
    return dns.message.from_wire(bytes.fromhex(mesh.output("shop/client", "python3", "-c", CLIENT, address, how, wire.hex())))


def addresses(answer: dns.message.Message) -> set[str]:
    return {record.to_text() for rrset in answer.answer for record in rrset}


@pytest.mark.parametrize("how", ["udp", "tcp"])
@pytest.mark.parametrize("address", ["10.1.0.1", "fd00:10:1::1"])
def test_a_service_has_its_virtual_addresses(mesh: Mesh, address: str, how: str) -> None:
    known = {mesh.output("shop/client", "getent", f"ahostsv{version}", "far").split()[0] for version in (4, 6)}
    found = set()
    for kind in ("A", "AAAA"):
        answer = ask(mesh, "far.shop.svc.cluster.local.", kind, address, how)
        assert answer.rcode() == dns.rcode.NOERROR and answer.answer
        found |= addresses(answer)
    assert found == known


@pytest.mark.parametrize("name", ["each.shop.", "far.each.", "far.each.shop.svc.cluster.local."])
def test_a_headless_service_and_its_pods_have_the_pods_addresses(mesh: Mesh, name: str) -> None:
    assert addresses(ask(mesh, name)) == {mesh.address("far")}
    assert addresses(ask(mesh, name, "AAAA")) == {mesh.address("far", 6)}


def test_other_names_are_asked_of_the_nameserver_by_the_pod_itself(mesh: Mesh, nameserver: Nameserver) -> None:
    before = len(nameserver.sources)
    assert addresses(ask(mesh, "www.example.")) == {"192.0.2.1"}
    assert ask(mesh, "absent.example.", how="tcp").rcode() == dns.rcode.NXDOMAIN
    assert {source for source, _ in nameserver.sources[before:]} == {mesh.address("client")}


def test_programs_resolve_names_in_the_usual_way(mesh: Mesh, nameserver: Nameserver) -> None:
    """Through libc and the search list of resolv.conf; what nobody knows fails at once, in pods outside the mesh too."""
    resolve = "socket.getaddrinfo(sys.argv[1], 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]"
    timed = f"import socket, sys, time; began = time.monotonic()\ntry: print({resolve})\n"
    timed += "except socket.gaierror: print(time.monotonic() - began)"
    patient = ("env", "RES_OPTIONS=timeout:25", "python3", "-c", timed)
    assert mesh.output("shop/client", *patient, "www.example").strip() == "192.0.2.1"
    for name in ("client", "outsider"):
        took_s = float(mesh.output(f"shop/{name}", *patient, "absent.example", timeout_s=250))
        assert took_s < 25, "no question was left without an answer"


@pytest.mark.parametrize(
    ("name", "spec", "more"),
    [
        ("listed", "resolution: STATIC, endpoints: [{address: ADDRESS}]", ""),
        ("named", "resolution: DNS, endpoints: [{address: vm.example}]", ""),
        ("selected", "resolution: STATIC, workloadSelector: {labels: {tier: vm}}", SELECTED),
    ],
)
def test_what_is_outside_is_reached_by_its_name(mesh: Mesh, nameserver: Nameserver, name: str, spec: str, more: str) -> None:
    """`outsider` is in no mesh; its addresses come from the manifest or, where that has but a name, from the nameserver."""
    text = (ENTRY + more).replace("NAME", name).replace("SPEC", spec)
    mesh.apply(text.replace("PORT", str(ECHO_PORT)).replace("ADDRESS", mesh.address("outsider")))
    client = mesh.puppet("client")
    eventually(lambda: client.fate(f"{name}.example", 81) == "answered")
    mesh.await_access_log("a", f'dst.service="{name}.example"', f"dst.addr={mesh.address('outsider')}:{ECHO_PORT}")
    assert client.fate(f"{name}.example", 82) == "reset", "and by no other port"
    mesh.delete(text.replace("PORT", "1").replace("ADDRESS", "192.0.2.1"))


def test_a_pod_that_opted_out_asks_whom_it_means(mesh: Mesh) -> None:
    """And nobody is there: the node has no nameserver."""
    wire = dns.message.make_query("far.shop.svc.cluster.local.", "A").to_wire()
    refused = mesh.run("shop/frank", "python3", "-c", CLIENT, "10.1.0.1", "udp", wire.hex())
    assert "ConnectionRefusedError" in refused.stderr
    assert ["a", "shop/frank", "DNS"] in [line.split() for line in mesh.weft("status").splitlines()]


def test_what_pods_asked_is_in_the_proxys_metrics(mesh: Mesh) -> None:
    labels = 'request_query_type="aaaa",request_protocol="tcp",source_canonical_service="client"'
    series = re.compile(rf"^istio_dns_requests_total{{{labels}.*}} (\d+)$", re.MULTILINE)

    def counted() -> int:
        return sum(map(int, series.findall(mesh.metrics("a"))))

    before = counted()
    ask(mesh, "far.shop.svc.cluster.local.", "AAAA", how="tcp")
    eventually(lambda: counted() > before)
