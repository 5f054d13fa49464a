"""Another version of the eBPF programs comes while pods and their proxy run: none is refused, and none passes the mesh by."""

import json
import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from bpf import libbpf
from bpf.layout import MAPS
from tests.agent.node import Node, read_line
from tests.agent.test_node_agent import listening, until_says

pytestmark = pytest.mark.kernel

_DIAL_ON = """
import json, pathlib, socket, struct, sys, time
place, known, afterwards = (sys.argv[1], int(sys.argv[2])), pathlib.Path(sys.argv[3]), int(sys.argv[4])
def dial():
    time.sleep(0.002)
    try:
        with socket.create_connection(place, 60) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # or it runs out of ports
            return sock.recv(200).decode().strip()
    except OSError as error:
        return type(error).__name__
print(json.dumps([dial() for _ in range(50)]), flush=True)
meanwhile = []
while not known.exists():
    meanwhile.append(dial())
print(json.dumps([meanwhile, [dial() for _ in range(afterwards)]]))
"""
ANSWER = "10.214.0.3:8080"


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
    known = tmp_path / "known"
    with listening(node, "b", 8080):  # whoever hears from it passed the mesh by
        # A connection that begins between two programs finds its storage gone where that map is another, and is refused: by the
        # kernel, or by the proxy, which cannot learn where it was to go. Few of many: that agent may stand still just then.
        ends = {"ConnectionRefusedError", "ConnectionResetError", "OSError", ""} if "sockets" in outdated else set()
        afterwards = 2000 if ends else 50
        dialler = [sys.executable, "-c", _DIAL_ON, "10.214.0.3", "8080", str(known), str(afterwards)]
        app = node.start("a", "pods/a", *dialler, stdout=subprocess.PIPE)
        assert json.loads(read_line(app)) == [ANSWER] * 50
        node.start_agent()
        until_says(proxy, "snapshot_sent")
        known.touch()
        meanwhile, after = json.loads(app.communicate(timeout=200)[0])
        assert after == [ANSWER] * afterwards, (Counter(after), node.log())
        assert set(meanwhile) <= {ANSWER, *ends}, (Counter(meanwhile), node.log())
        spells = [len(list(spell)) for answered, spell in groupby(one == ANSWER for one in meanwhile) if not answered]
        assert len(spells) <= 1 and sum(spells) * 20 <= len(meanwhile + after), (spells, Counter(meanwhile), node.log())
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
