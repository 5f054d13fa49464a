"""Another version of the eBPF programs comes while pods and their proxy run: none is refused, and none passes the mesh by."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bpf import libbpf
from bpf.layout import MAPS
from tests.agent.node import Node
from tests.agent.test_node_agent import listening, until_says

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

_DIAL_ON = """
import collections, json, pathlib, socket, struct, sys, time
seen = collections.Counter()
while not pathlib.Path(sys.argv[3]).exists():
    time.sleep(0.002)
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 60) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # or it runs out of ports
            seen[sock.recv(200).decode().strip()] += 1
    except OSError as error:
        seen[type(error).__name__] += 1
    if seen.total() == int(sys.argv[4]):
        print("dialling", flush=True)
print(json.dumps(seen))
"""


EVERY_MAP_BUT_THE_PROXYS = [spec.name for spec in MAPS if spec.name != "proxies"]


@pytest.mark.parametrize("outdated", [["listeners"], ["pods", "addresses"], EVERY_MAP_BUT_THE_PROXYS], ids=len)
def test_an_upgrade_under_traffic(node: Node, tmp_path: Path, outdated: list[str]) -> None:
    agent = node.start_agent()
    proxy = node.start_proxy()
    until_says(proxy, "snapshot_sent")
    node.enrol("a")
    node.stop_agent(agent)
    for name in outdated:
        with libbpf.create_map(libbpf.MapType.HASH, name, (4, 4), 16) as old:
            libbpf.replace_pin(old.fd, node.places.bpffs / "maps" / name)
    done = tmp_path / "done"
    with listening(node, "b", 8080):  # whoever hears from it passed the mesh by
        # A connection that begins between two programs finds its storage gone where that map is another, and is refused: by the
        # kernel, or by the proxy, which cannot learn where it was to go. Few of many: that agent may stand still just then.
        ends = ("ConnectionRefusedError", "ConnectionResetError", "OSError", "") if "sockets" in outdated else ()
        dialler = [sys.executable, "-c", _DIAL_ON, "10.214.0.3", "8080", str(done), "2000" if ends else "51"]
        app = node.start("a", "pods/a", *dialler, stdout=subprocess.PIPE)
        until_says(app, "dialling")
        node.start_agent()
        until_says(proxy, "snapshot_sent")
        done.touch()
        heard = json.loads(app.communicate(timeout=100)[0])
        refused = sum(heard.pop(end, 0) for end in ends)
        answered = heard.pop("10.214.0.3:8080")
        assert not heard and answered > 50 and refused * 20 <= answered, (answered, refused, heard, node.log())
        assert node.dial("b", "10.214.0.2", 7777) == "inbound 7777"
        assert node.dial("b", "10.214.0.2", 15008) == "inbound 15008"
    assert [pod.state for pod in node.status().pods] == ["enrolled"]


def test_a_proxy_whose_cgroup_is_forgotten_is_asked_for_its_listeners_when_it_is_back(node: Node) -> None:
    agent = node.start_agent()
    proxy = node.start_proxy()
    until_says(proxy, "snapshot_sent")
    node.enrol("a")
    node.stop_agent(agent)
    for name in ("proxies", "listeners"):
        with libbpf.create_map(libbpf.MapType.HASH, name, (4, 4), 16) as old:
            libbpf.replace_pin(old.fd, node.places.bpffs / "maps" / name)
    node.start_agent()
    until_says(proxy, "snapshot_sent")
    assert node.dial("b", "10.214.0.2", 7777) == "inbound 7777"
