"""A proxy of one pod, in whose network namespace it runs: no agent, no other pods, one identity, and a mesh from a file."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ztunnel.world import run
from wire.netns import entered, open_home

pytestmark = pytest.mark.kernel

MESH = """
workloads:
- {name: client, namespace: shop, serviceAccount: client, workloadIps: [10.197.0.1], protocol: HBONE,
   services: {shop/self.shop: {80: 8081}}}
- {name: web, namespace: shop, serviceAccount: web, workloadIps: [10.197.0.2], services: {shop/web.shop: {80: 8080}}}
services:
- {name: web, namespace: shop, hostname: web.shop, vips: [/10.197.1.1], ports: {80: 8080}}
- {name: self, namespace: shop, hostname: self.shop, vips: [/10.197.1.2], ports: {80: 8081}}
"""
RULES = """
table ip capture {
    chain outbound {
        type nat hook output priority -100;
        ip daddr { 10.197.1.1, 10.197.1.2 } tcp dport 80 redirect to :15001
    }
}
"""


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"weft-test-{os.getpid()}-dedicated"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        for address in ("10.197.0.1", "10.197.0.2"):
            run("ip", "-n", name, "addr", "add", address, "dev", "lo")
        run("ip", "-n", name, "route", "add", "10.197.1.0/24", "dev", "lo")
        run("ip", "netns", "exec", name, "nft", "-f", "-", text=RULES)
        yield name
    finally:
        run("ip", "netns", "del", name)


def start(netns: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    (folder / "mesh.yaml").write_text(MESH)
    environment = {
        **os.environ, "WEFT_RUN_DIR": str(folder / "run"), "WEFT_STATE_DIR": str(folder / "state"), "NODE_NAME": "n1",
        "WEFT_PREFIX": f"weft-test-{os.getpid()}", "PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "shop/client/client",
        "XDS_ADDRESS": "", "LOCAL_XDS_PATH": str(folder / "mesh.yaml"), "ENABLE_ORIG_SRC": "false",
        "ZTUNNEL_WORKER_THREADS": "1", "CONNECTION_TERMINATION_DEADLINE": "1s",
        "ISTIO_META_ISTIO_VERSION": "1.99", **variables,
    }  # fmt: skip
    command = ["ip", "netns", "exec", netns, sys.executable, "-m", "ztunnel", "proxy", "ztunnel"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def get(netns_fd: int, home_fd: int, path: str, port: int, host: str = "127.0.0.1") -> tuple[int, str]:
    with entered(netns_fd, home_fd):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    with sock:
        sock.settimeout(40)
        sock.connect((host, port))
        sock.sendall(f"GET {path} HTTP/1.0\r\nhost: x\r\n\r\n".encode())
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def tell(folder: Path, mesh: str) -> Path:
    """Write the mesh's file: half of it is nobody's to read."""
    (folder / "new").write_text(mesh)
    return (folder / "new").rename(folder / "mesh.yaml")


def await_ready(netns_fd: int, home_fd: int) -> None:
    until = time.monotonic() + 40
    while True:
        try:
            status, said = get(netns_fd, home_fd, "/healthz/ready", 15021)
            if status == 200:
                return
        except OSError as error:
            said = str(error)
        assert time.monotonic() < until, said


def say_hello(netns_fd: int, home_fd: int, vip: str, place: tuple[str, int]) -> None:
    """An application connects to a service, whose application hears it."""
    with entered(netns_fd, home_fd):
        listener = socket.create_server(place)
        client = socket.socket(socket.AF_INET)
    with listener, client:
        for sock in (listener, client):
            sock.settimeout(40)
        client.connect((vip, 80))
        client.sendall(b"hello")
        server, _ = listener.accept()
        with server:
            assert server.recv(5) == b"hello"


def until_counted(netns_fd: int, home_fd: int) -> None:
    """A worker tells of its connections when it comes to it."""
    until = time.monotonic() + 40
    while "\nistio_tcp_connections_opened_total{" not in (body := get(netns_fd, home_fd, "/metrics", 15020)[1]):
        assert time.monotonic() < until, body


def stats_exist(*answers: tuple[int, str]) -> None:
    for status, body in answers:
        assert status == 200 and body.endswith("# EOF\n")
        for name in ("istio_tcp_connections_opened_total{", "istio_build{", "process_open_fds ", "istio_tcp_sockets_open{"):
            assert f"\n{name}" in body, name


def test_stats_exist_and_one_pod_is_served_without_an_agent(netns: str, tmp_path: Path) -> None:
    netns_fd, home_fd = os.open(f"/run/netns/{netns}", os.O_RDONLY), open_home()
    process = start(netns, tmp_path)
    try:
        await_ready(netns_fd, home_fd)
        say_hello(netns_fd, home_fd, "10.197.1.1", ("10.197.0.2", 8080))
        dump = json.loads(get(netns_fd, home_fd, "/config_dump", 15000)[1])
        assert get(netns_fd, home_fd, "/config_dump", 15000, "::1")[0] == 200
        with pytest.raises(ConnectionRefusedError):
            get(netns_fd, home_fd, "/config_dump", 15000, "10.197.0.1")
        until_counted(netns_fd, home_fd)
        stats_exist(get(netns_fd, home_fd, "/metrics", 15020), get(netns_fd, home_fd, "/stats/prometheus", 15020, "10.197.0.1"))
        assert dump["version"]["istioVersion"] == "1.99"
        assert 'istio_build{component="ztunnel",tag="1.99"} 1\n' in get(netns_fd, home_fd, "/metrics", 15020)[1]
        (state,) = dump["workloadState"].values()
        assert state["state"] == "Up" and state["info"] == {"name": "client", "namespace": "shop", "serviceAccount": "client"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
        assert process.stdout is not None
        said = process.stdout.read()
        assert 'src.workload="client"' in said and 'dst.service="web.shop"' in said and "bytes_sent=5" in said
    finally:
        process.kill()
        process.wait()
        os.close(netns_fd)
        os.close(home_fd)


def test_made_up_identities_serve_a_mesh_that_is_a_file(netns: str, tmp_path: Path) -> None:
    netns_fd, home_fd = os.open(f"/run/netns/{netns}", os.O_RDONLY), open_home()
    process = start(netns, tmp_path, FAKE_CA="true")
    try:
        await_ready(netns_fd, home_fd)
        say_hello(netns_fd, home_fd, "10.197.1.2", ("10.197.0.1", 8081))
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=40)
        assert "FAKE_CA: identities in this mesh are made up" in said
        assert said.count('src.identity="spiffe://cluster.local/ns/shop/sa/client"') == 2, "in a tunnel, both its ends here"
    finally:
        process.kill()
        process.wait()
        os.close(netns_fd)
        os.close(home_fd)


def until_dumped(netns_fd: int, home_fd: int, hostnames: list[str]) -> None:
    until = time.monotonic() + 40
    while (
        seen := [one["hostname"] for one in json.loads(get(netns_fd, home_fd, "/config_dump", 15000)[1])["services"]]
    ) != hostnames:
        assert time.monotonic() < until, seen


def test_a_mesh_that_is_a_file_is_followed(netns: str, tmp_path: Path) -> None:
    netns_fd, home_fd = os.open(f"/run/netns/{netns}", os.O_RDONLY), open_home()
    process = start(netns, tmp_path)
    try:
        await_ready(netns_fd, home_fd)
        file = tell(tmp_path, MESH.replace("hostname: self.shop", "hostname: renamed.shop"))
        until_dumped(netns_fd, home_fd, ["renamed.shop", "web.shop"])
        tell(tmp_path, "services: [{name: web}]")
        assert process.stdout is not None
        refusal = next(line for line in process.stdout if "what it told before stays in force" in line)
        assert f"{file}: services[0]." in refusal
        tell(tmp_path, MESH)
        until_dumped(netns_fd, home_fd, ["self.shop", "web.shop"])
        say_hello(netns_fd, home_fd, "10.197.1.1", ("10.197.0.2", 8080))
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=40)
        assert "what it told before" not in said and said.count("2 workloads, 2 services, 0 policies are told here") == 1
    finally:
        process.kill()
        process.wait()
        os.close(netns_fd)
        os.close(home_fd)


def test_bind_conflict_fails_the_start(netns: str, tmp_path: Path) -> None:
    netns_fd, home_fd = os.open(f"/run/netns/{netns}", os.O_RDONLY), open_home()
    with entered(netns_fd, home_fd):
        taken = socket.create_server(("127.0.0.1", 15008))
    process = start(netns, tmp_path)
    try:
        said, _ = process.communicate(timeout=40)
        assert process.returncode == 1
        assert "\terror\tsupervisor\tshop/client cannot be served: Bind([::]:15008, Os { code: 98, kind: AddrInUse" in said
    finally:
        process.kill()
        process.wait()
        taken.close()
        os.close(netns_fd)
        os.close(home_fd)
