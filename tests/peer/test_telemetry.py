"""The same traffic through weft's ztunnel and through Istio's: the same counters, labels and access log, line for line."""

import re

import pytest

from tests.lab.mesh import pod, service
from tests.lab.world import eventually
from tests.peer.cross import ECHO_PORT, OTHER_PORT, CrossMesh, authorization

pytestmark = [pytest.mark.peer, pytest.mark.timeout(60)]

CLOSED_PORT, TALK_PORT = 7999, 7998
_RULE = f"{{to: [{{operation: {{ports: ['{OTHER_PORT}']}}}}]}}"
SHUT = authorization("shut", f"{{selector: {{matchLabels: {{role: target}}}}, action: DENY, rules: [{_RULE}]}}")
_COUNTERS = ("istio_tcp_connections_", "istio_tcp_received_", "istio_tcp_sent_")
_VARYING = (
    (r"10\.[12]\.0\.\d+", "ADDRESS"),
    (r"\[fd00:10:[12]::[0-9a-f]+\]", "ADDRESS"),
    (r"(src\.addr=ADDRESS):\d+", r"\1:PORT"),
    (r'duration="\d+ms"', 'duration="TIME"'),
    (r"\b(caller|target|outsider)-[ab]\b", r"\1"),
)
"""What differs between two nodes, and what stands for it here."""


def alike(text: str) -> str:
    for pattern, shown in _VARYING:
        text = re.sub(pattern, shown, text)
    return text


def counters(cross: CrossMesh, of: str) -> dict[str, int]:
    """Istio's TCP counters of a proxy for these pods, by name and labels as they are written."""
    lines = [line for line in cross.fetch(of, 15020, "/metrics").splitlines() if line.startswith(_COUNTERS)]
    ours = [line for line in lines if f"caller-{of}" in line or f"target-{of}" in line]
    return {alike(line.rpartition(" ")[0]): int(float(line.rpartition(" ")[2])) for line in ours}


def traffic(cross: CrossMesh, of: str) -> None:
    """Within a node: to a pod and to its service, out of the mesh and into it, and to ports that are closed or forbidden."""
    client, outsider, server = cross.puppet(f"caller-{of}"), cross.puppet(f"outsider-{of}"), f"target-{of}"
    cross.puppet(server).echo(ECHO_PORT)
    for host in (server, cross.address(server), cross.address(server, 6), cross.address(f"outsider-{of}")):
        assert client.ask(host, ECHO_PORT, "some words") == "some words"
    assert outsider.ask(cross.address(server), ECHO_PORT, "some words") == "some words"
    for host in (server, f"outsider-{of}"):
        assert client.fate(cross.address(host), CLOSED_PORT) in ("reset", "end")
    for one in (client, outsider):
        assert one.fate(cross.address(server), OTHER_PORT) in ("reset", "end")
    for end in ("client finishes", "server finishes", "client resets", "server resets"):
        talk(cross, of, end)


def talk(cross: CrossMesh, of: str, end: str) -> None:
    """A connection on which both have said something, and how it ends."""
    who, how = end.split()
    with cross.puppet(f"target-{of}").listen(TALK_PORT) as listener:
        near = cross.puppet(f"caller-{of}").connect(cross.address(f"target-{of}"), TALK_PORT)
        with near, listener.accept() as far:
            for here, there in ((near, far), (far, near)):
                here.send("some words")
                assert there.receive(10) == "some words"
            first, second = (near, far) if who == "client" else (far, near)
            if how == "resets":
                first.close(reset=True)
            else:
                first.finish()
                assert second.ended() == "end"
                second.send("and more")
                assert first.receive(8) == "and more"
                second.finish()
                assert first.ended() == "end"


def test_counters_and_access_log_are_the_same(cross: CrossMesh) -> None:
    logs = {node: cross.new_lines(node) for node in "ab"}

    def told(node: str) -> tuple[list[str], dict[str, int]]:
        mine = [line for line in logs[node].lines() if f"caller-{node}" in line or f"target-{node}" in line]
        return sorted(alike(line.partition("\taccess\t")[2]) for line in mine), counters(cross, node)

    def agree() -> None:
        weft, istio = told("a"), told("b")
        assert len(weft[0]) == len(istio[0]) == 22, (weft[0], istio[0])
        assert weft == istio and len(weft[1]) > 20

    pods = (pod(f"caller-{one}", one) + pod(f"target-{one}", one, ", role: target") + service(f"target-{one}") for one in "ab")
    with cross.having("".join(pods) + SHUT):
        for node in "ab":
            traffic(cross, node)
        eventually(agree, 5)
        for name in ("caller-a", "target-a", "caller-b", "target-b"):
            cross.dismiss(name)


def families(text: str) -> dict[str, tuple[str, set[tuple[str, ...]]]]:
    """What is said of each metric, and the labels of its samples in their order."""
    found: dict[str, tuple[str, set[tuple[str, ...]]]] = {}
    for kind, name in re.findall(
        r"^((?:# HELP istio_.*\n|# HELP workload_.*\n)?# TYPE (\S+) .*\n(?:# UNIT .*\n)?)", text, re.MULTILINE
    ):
        samples = re.findall(rf"^{name}(?:_total|_bucket|_sum|_count|_info)?(?:{{(.*)}})? ", text, re.MULTILINE)
        found[name] = (kind, {tuple(re.findall(r'(\w+)="', labels)) for labels in samples})
    return found


def test_every_metric_of_istios_is_there_with_what_is_said_of_it_and_its_labels(cross: CrossMesh) -> None:
    for node in "ab":
        cross.output(f"shop/client-{node}", "python3", "-c", "import socket; socket.getaddrinfo('server-a', 1)")
    weft, istio = (families(cross.fetch(node, 15020, "/metrics")) for node in "ab")
    expected = {name: family for name, family in istio.items() if not name.startswith("tokio_")}
    assert len(expected) > 12
    missing = {name: (family, weft.get(name)) for name, family in expected.items() if not _has(weft.get(name), family)}
    assert not missing


def _has(ours: tuple[str, set[tuple[str, ...]]] | None, theirs: tuple[str, set[tuple[str, ...]]]) -> bool:
    return ours is not None and ours[0] == theirs[0] and theirs[1] <= ours[1]
