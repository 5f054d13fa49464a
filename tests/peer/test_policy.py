"""One control plane's policies, enforced by weft's ztunnel on one node and by Istio's on the other, on each other's clients."""

import pytest

from tests.lab.puppet import Wire
from tests.lab.world import eventually
from tests.peer.cross import CROSSINGS, ECHO_PORT, OTHER_PORT, VERSIONS, CrossMesh, authentication, authorization

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]

REFUSED = ("reset", "end", "refused")
"""Istio's ztunnel ends a refused connection in order where no byte of it waits to be read."""


def principal(name: str) -> str:
    return f"cluster.local/ns/shop/sa/{name}"


def denial(client: str, port: int) -> str:
    """DENY a client's identity one port of every workload.

    Istio's ztunnel checks live connections against the workload as it was when they began: a policy with a selector, which
    the workload begins to list later, it does not see.
    """
    source, ports = f"source: {{principals: [{principal(client)}]}}", f'operation: {{ports: ["{port}"]}}'
    return authorization("denied", f"{{action: DENY, rules: [{{from: [{{{source}}}], to: [{{{ports}}}]}}]}}")


def open_wires(cross: CrossMesh, client: str, server: str, port: int = ECHO_PORT) -> list[Wire]:
    """A connection of each family that has been answered."""
    wires = [cross.puppet(client).connect(cross.address(server, version), port) for version in VERSIONS]
    assert all(wire.says("hello") for wire in wires)
    return wires


def fate(cross: CrossMesh, client: str, server: str, port: int = ECHO_PORT, version: int = 4) -> str:
    return cross.puppet(client).fate(cross.address(server, version), port)


@pytest.mark.parametrize(("client", "server"), CROSSINGS)
def test_a_denial_ends_live_streams_and_refuses_new_ones_and_nothing_else(cross: CrossMesh, client: str, server: str) -> None:
    allowed, doomed = open_wires(cross, client, server), open_wires(cross, client, server, OTHER_PORT)
    near, far = cross.new_lines(client[-1]), cross.new_lines(server[-1])
    with cross.having(denial(client, OTHER_PORT)):
        assert {wire.ended() for wire in doomed} <= {"end", "reset"}
        assert all(wire.says("still here") for wire in allowed)
        assert {fate(cross, client, server, OTHER_PORT, version) for version in VERSIONS} <= set(REFUSED)
        assert {fate(cross, client, server, ECHO_PORT, version) for version in VERSIONS} == {"answered"}
        near.find('direction="outbound"', "http status: 401", f"{OTHER_PORT}")
        far.find('direction="inbound"', "policy rejection: explicitly denied by: shop/denied")
    eventually(lambda: fate(cross, client, server, OTHER_PORT) == "answered")
    assert all(wire.says("and after") for wire in allowed)
    for wire in allowed + doomed:
        wire.close()


@pytest.mark.parametrize("server", ["server-a", "server-b"])
def test_who_is_not_allowed_is_refused_by_either_proxy(cross: CrossMesh, server: str) -> None:
    """Same node, other node and plain text: only the one identity gets through."""
    rule = f"{{from: [{{source: {{principals: [{principal('client-b')}]}}}}]}}"
    policy = authorization("only", f"{{selector: {{matchLabels: {{app: {server}}}}}, rules: [{rule}]}}")
    far = cross.new_lines(server[-1])
    with cross.having(policy):
        fates = {
            (client, version): fate(cross, client, server, ECHO_PORT, version)
            for client in ("client-a", "client-b", "outsider-a", "outsider-b")
            for version in VERSIONS
        }
        assert {fates.pop(("client-b", version)) for version in VERSIONS} == {"answered"}
        assert set(fates.values()) <= set(REFUSED), fates
        far.find('src.workload="client-a"', "allow policies exist, but none allowed")
        far.find('src.workload="outsider-a"', "allow policies exist, but none allowed")
    eventually(lambda: fate(cross, "client-a", server) == "answered")


@pytest.mark.parametrize("server", ["server-a", "server-b"])
def test_strict_ends_plain_text_and_leaves_mutual_tls_alone(cross: CrossMesh, server: str) -> None:
    plain = open_wires(cross, "outsider-a", server) + open_wires(cross, "outsider-b", server)
    proved = open_wires(cross, "client-a", server) + open_wires(cross, "client-b", server)
    with cross.having(authentication("STRICT")):
        if server == "server-a":  # Istio's ztunnel leaves plain connections alone that are older than the change: see denial()
            assert {wire.ended() for wire in plain} <= {"end", "reset"}
        assert all(wire.says("still here") for wire in proved)
        assert {fate(cross, name, server) for name in ("outsider-a", "outsider-b")} <= set(REFUSED)
        assert {fate(cross, name, server) for name in ("client-a", "client-b")} == {"answered"}
        assert cross.host(server[-1]).fate(cross.address(server), ECHO_PORT) == "answered", "a node's own probes pass"
    eventually(lambda: fate(cross, "outsider-a", server) == "answered")
    for wire in plain + proved:
        wire.close()


@pytest.mark.parametrize("server", ["server-a", "server-b"])
def test_strict_for_one_port_only(cross: CrossMesh, server: str) -> None:
    mode = f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: port, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: {server}}}}}
  mtls: {{mode: PERMISSIVE}}
  portLevelMtls: {{{OTHER_PORT}: {{mode: STRICT}}}}
---
"""
    with cross.having(mode):
        outsider = "outsider-b" if server == "server-a" else "outsider-a"
        assert fate(cross, outsider, server, OTHER_PORT) in REFUSED
        assert fate(cross, outsider, server, ECHO_PORT) == "answered"
        assert {fate(cross, name, server, OTHER_PORT) for name in ("client-a", "client-b")} == {"answered"}
    eventually(lambda: fate(cross, outsider, server, OTHER_PORT) == "answered")


@pytest.mark.parametrize("server", ["server-a", "server-b"])
def test_a_policy_that_names_addresses(cross: CrossMesh, server: str) -> None:
    """ipBlocks see the client's own address at both proxies, behind a tunnel and without."""
    blocks = [
        cross.address("client-a"),
        cross.address("client-a", 6),
        cross.address("outsider-a"),
        cross.address("outsider-a", 6),
    ]
    listed = ", ".join(f'"{block}"' for block in blocks)
    rule = f"{{from: [{{source: {{ipBlocks: [{listed}]}}}}]}}"
    with cross.having(
        authorization("blocked", f"{{action: DENY, selector: {{matchLabels: {{app: {server}}}}}, rules: [{rule}]}}")
    ):
        for version in VERSIONS:
            assert {fate(cross, name, server, ECHO_PORT, version) for name in ("client-a", "outsider-a")} <= set(REFUSED)
            assert {fate(cross, name, server, ECHO_PORT, version) for name in ("client-b", "outsider-b")} == {"answered"}
