"""One pod's trouble is that pod's alone: IPv6 off, a port of the proxy taken; the node becomes and stays ready."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from mesh.proto import agent_pb2, agent_pb2_grpc
from tests.lab.host import BASE, pod
from tests.lab.test_mesh import NAMESPACE, REFUSED
from tests.lab.world import World, eventually
from wire.http_client import request
from wire.http_messages import HttpError
from wire.netns import entered, open_home

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

OUTSIDE = ", labels: {istio.io/dataplane-mode: none},"


def server(name: str, inside: bool) -> str:
    made = pod(name, "[python3, -m, http.server, --bind, '::', '8000']", "nodeName: a")
    return made if inside else made.replace(f"name: {name},", f"name: {name}{OUTSIDE}")


CLIENT = pod("client", "[sleep, infinity]", "nodeName: b")
OUTSIDER = pod("outsider", "[sleep, infinity]", "nodeName: b").replace("name: outsider,", f"name: outsider{OUTSIDE}")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    pods = (server("good", True), server("four", False), server("taken", False), CLIENT, OUTSIDER)
    with World(BASE + NAMESPACE % "ambient" + "---".join(pods), timeout_s=200) as made:
        yield made


def ask(world: World, client: str, target: str, port: int = 8000) -> int:
    """curl's exit code, over IPv4."""
    url = f"http://{world.pod(f'shop/{target}')['addresses'][0]}:{port}/"
    return world.run(f"shop/{client}", "curl", "-sS", "-m", "20", "-o", "/dev/null", url).returncode


@contextmanager
def inside(world: World, name: str) -> Iterator[None]:
    home = open_home()
    netns = os.open(f"/run/netns/{world.layout.pod_netns('a', f'shop/{name}')}", os.O_RDONLY)
    try:
        with entered(netns, home):
            yield
    finally:
        os.close(netns)
        os.close(home)


def agent_status(world: World) -> agent_pb2.StatusResponse:
    with grpc.insecure_channel(f"unix:{world.layout.places.node('a').agent_socket}") as channel:
        return agent_pb2_grpc.AgentStub(channel).Status(agent_pb2.StatusRequest(), timeout=30)


def state_of(world: World, name: str) -> tuple[str, str]:
    return next(((one.state, one.reason) for one in agent_status(world).pods if one.name == name), ("", ""))


def node_is_ready(world: World) -> bool:
    try:
        answer = asyncio.run(request(world.layout.places.node("a").admin_socket, "GET", "/healthz/ready", timeout_s=20))
    except (OSError, HttpError):
        return False
    return answer.status == 200


def test_a_pod_without_ipv6_is_served_on_ipv4(world: World) -> None:
    with inside(world, "four"), open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as switch:
        switch.write("1")
    world.apply(server("four", True), wait=False)
    eventually(lambda: state_of(world, "four")[0] == "enrolled")
    eventually(lambda: ask(world, "client", "four") == 0)
    assert world.run("shop/four", "curl", "-sS", "-m", "20", "-o", "/dev/null", address_of(world, "good")).returncode == 0
    assert node_is_ready(world) and not agent_status(world).problems


def address_of(world: World, name: str) -> str:
    return f"http://{world.pod(f'shop/{name}')['addresses'][0]}:8000/"


def take(world: World, name: str, port: int) -> socket.socket:
    with inside(world, name):
        sock = socket.socket(socket.AF_INET6)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what the proxy had there may be in TIME_WAIT
        sock.bind(("::", port))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


@pytest.mark.parametrize("port", [15008, 15006, 15001])
def test_a_pod_that_holds_a_port_of_the_proxy_is_refused_reported_and_tried_again(world: World, port: int) -> None:
    try:
        with eventually(lambda: take(world, "taken", port)):  # a worker may not have closed its listener yet
            world.apply(server("taken", True), wait=False)

            def refused() -> None:
                state, reason = state_of(world, "taken")
                assert state == "pending", state
                assert f"failure to start proxy : Bind([::]:{port}, Os {{ code: 98, kind: AddrInUse" in reason
                assert f"a process of the pod holds port {port}, which is the proxy's: have it listen elsewhere" in reason
                assert [one for one in agent_status(world).problems if "pod shop/taken is pending: " in one and reason in one]

            eventually(refused)  # before its first answer it is pending, too
            assert ask(world, "client", "taken") != 0 and ask(world, "outsider", "taken") in REFUSED
            assert ask(world, "outsider", "taken", port) in REFUSED, "nobody reaches what holds the port"
            assert world.run("shop/taken", "curl", "-sS", "-m", "5", address_of(world, "good")).returncode != 0
            assert ask(world, "client", "good") == 0 and node_is_ready(world)
            if port == 15008:
                os.kill(world.await_program("a", "ztunnel"), signal.SIGKILL)
                eventually(lambda: node_is_ready(world) and agent_status(world).proxy.ready)
                eventually(lambda: ask(world, "client", "good") == 0)
                assert state_of(world, "taken")[0] == "pending"
        eventually(lambda: state_of(world, "taken")[0] == "enrolled")
        eventually(lambda: ask(world, "client", "taken") == 0)
    finally:
        world.apply(server("taken", False))
        eventually(lambda: ask(world, "outsider", "taken") == 0)
