"""A worker that is killed takes its connections with it, and no application takes half an answer for a whole one."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.ztunnel.world import VIP, PodWorld, World, run, world

pytestmark = pytest.mark.kernel

STRANGE = "10.198.0.77"
"""An address of pod server that the mesh does not know."""
MARK = 0x539


@pytest.fixture
def mesh() -> Iterator[World]:
    with world("killed") as made:
        run("ip", "-n", made.server.netns, "addr", "add", f"{STRANGE}/24", "dev", "eth0")
        made.start()
        yield made


def half_an_answer(mesh: World, address: str, port: int, mark: int = 0) -> tuple[socket.socket, socket.socket]:
    """Both applications' ends: a question was asked, and the answer has begun."""
    with mesh.server.listen(8080) as listener:
        client = mesh.client.connect(address, port, mark)
        client.sendall(b"question")
        server, _ = listener.accept()
    server.settimeout(40)
    mesh.server.sockets.append(server)
    assert server.recv(100) == b"question"
    server.sendall(b"half an ans")
    assert client.recv(100) == b"half an ans"
    return client, server


def kill(pod: PodWorld) -> None:
    os.kill(pod.worker.process.pid, signal.SIGKILL)
    pod.worker.process.wait(40)


@pytest.mark.parametrize("killed", ["client", "server"])
@pytest.mark.parametrize(
    ("address", "port"), [(VIP, 80), (STRANGE, 8080)], ids=["in a tunnel", "in plain, to where the mesh does not know"]
)
def test_applications_hear_a_reset_when_a_worker_is_killed(mesh: World, killed: str, address: str, port: int) -> None:
    ends = half_an_answer(mesh, address, port)
    kill(mesh.pods[killed])
    for end in ends:
        with pytest.raises(ConnectionResetError):
            end.recv(100)


def test_who_came_in_plain_hears_a_reset_when_the_worker_is_killed(mesh: World) -> None:
    ends = half_an_answer(mesh, mesh.server.address, 8080, MARK)
    kill(mesh.server)
    for end in ends:
        with pytest.raises(ConnectionResetError):
            end.recv(100)


@pytest.mark.parametrize(("address", "port"), [(VIP, 80), (STRANGE, 8080)], ids=["in a tunnel", "in plain"])
def test_a_connection_that_ends_in_order_is_not_reset(mesh: World, address: str, port: int) -> None:
    client, server = half_an_answer(mesh, address, port)
    server.sendall(b"wer" * 100_000)
    server.shutdown(socket.SHUT_WR)
    left = 300_000
    while left:
        left -= len(client.recv(min(left, 5000)))
    assert client.recv(1) == b""
    client.sendall(b"thanks" * 10_000)
    client.close()
    left = 60_000
    while left:
        left -= len(server.recv(min(left, 5000)))
    assert server.recv(1) == b""
