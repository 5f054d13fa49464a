"""What operators and pods ask Istio's ztunnel under weft: weft's commands read it, and it answers names as weft's does."""

import json
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest

from tests.lab.test_dns import CLIENT
from tests.lab.world import eventually
from tests.peer.cross import ECHO_PORT, CrossMesh, authorization

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]

SERVICE = "server-a.shop.svc.cluster.local."
NAMES = (SERVICE, "server-a.", "server-a.shop.", f"{SERVICE}shop.svc.cluster.local.", SERVICE.upper())
"""The service's own name, short ones, the one that a search list makes first, and one in capitals."""


def test_status_and_certificates_tell_of_both(cross: CrossMesh) -> None:
    nodes = json.loads(cross.weft("status", "-o", "json"))["nodes"]
    assert {one["node"]: one["proxy"]["ready"] for one in nodes} == {"a": True, "b": True}
    rows = json.loads(cross.weft("certificates", "--node", "b", "-o", "json"))
    names = ("client-b", "server-b")
    assert {one["identity"] for one in rows} == {f"spiffe://cluster.local/ns/shop/sa/{name}" for name in names}


def test_open_connections_are_shown(cross: CrossMesh) -> None:
    with cross.puppet("client-a").connect(cross.address("server-b"), ECHO_PORT) as wire:
        assert wire.says("here")
        rows = json.loads(cross.weft("connections", "--node", "b", "-o", "json"))
        assert any(one["direction"] == "inbound" and one["actualDst"].endswith(f":{ECHO_PORT}") for one in rows), rows


def shape(value: Any) -> Any:
    """The keys and the kinds of values of a dump; nothing of a list but that it is one."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return type(value).__name__


def test_the_configuration_is_shown_under_the_same_names_in_the_same_shapes(cross: CrossMesh) -> None:
    weft, istio = (cross.config_dump(node)["config"] for node in "ab")
    assert {key for key in istio if key not in weft} == {"dnsResolverOpts"}
    ours, theirs = ({key: shape(dump[key]) for key in istio if key in weft} for dump in (weft, istio))
    differ = {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}
    # Each was told metadata of its own; and whether applications see the client's address Istio's leaves to the kernel.
    assert differ.keys() <= {"proxyMetadata", "requireOriginalSource"}, differ
    same = (
        "windowSize",
        "connectionWindowSize",
        "frameSize",
        "poolMaxStreamsPerConn",
        "poolUnusedReleaseTimeout",
        "socketConfig",
    )
    same += ("inboundAddr", "inboundPlaintextAddr", "outboundAddr", "dnsProxy", "dnsProxyAddr", "packetMark", "secretTtl")
    same += ("clusterId", "clusterDomain", "network", "xdsAddress", "caAddress", "proxyMode", "ipv6Enabled", "adminAddr")
    assert {key: weft[key] for key in same} == {key: istio[key] for key in same}


def test_what_is_known_of_the_mesh_is_shown_alike(cross: CrossMesh) -> None:
    rule = "{from: [{source: {principals: ['a*', '*b'], notNamespaces: [x]}}], to: [{operation: {ports: ['80']}}]}"
    spec = f"{{selector: {{matchLabels: {{role: server}}}}, action: DENY, rules: [{rule}]}}"

    def alike() -> None:
        weft, istio = (cross.config_dump(node) for node in "ab")
        for kind, least in (("workloads", 6), ("services", 2), ("policies", 1)):
            ours, theirs = ({json.dumps(one, sort_keys=True) for one in dump[kind]} for dump in (weft, istio))
            assert ours == theirs and len(ours) >= least
        assert [state.keys() for state in weft["workloadState"].values()] == [
            state.keys() for state in istio["workloadState"].values()
        ]

    with cross.having(authorization("some", spec)):
        eventually(alike, 10)


def resolved(cross: CrossMesh, pod: str, name: str, kind: str) -> tuple[str, bool, list[str]]:
    """Code, authority and answers, but for their order."""
    wire = dns.message.make_query(name, kind).to_wire()
    answer = dns.message.from_wire(
        bytes.fromhex(cross.output(f"shop/{pod}", "python3", "-c", CLIENT, "10.1.0.1", "udp", wire.hex()))
    )
    records = sorted(f"{rrset.name} {rrset.ttl} {record}" for rrset in answer.answer for record in rrset)
    return dns.rcode.to_text(answer.rcode()), bool(answer.flags & dns.flags.AA), records


@pytest.mark.parametrize("kind", ["A", "AAAA"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_the_same_answer(cross: CrossMesh, name: str, kind: str) -> None:
    weft, istio = (resolved(cross, pod, name, kind) for pod in ("client-a", "client-b"))
    assert weft == istio and weft[2], (weft, istio)
