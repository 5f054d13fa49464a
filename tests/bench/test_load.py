"""The load generator against itself on loopback: what it counts is what happened."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit
_LOAD = Path(__file__).parents[2] / "bench" / "load.py"


class _Client:
    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self._process = process
        self._port = port

    def send(self, load: str, **order: Any) -> None:
        assert self._process.stdin is not None
        line = {"load": load, "host": "127.0.0.1", "port": self._port} | order
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __call__(self, load: str, **order: Any) -> dict[str, Any]:
        self.send(load, **order)
        return self.read()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.fixture
def server() -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    port = _free_port()
    with subprocess.Popen([sys.executable, str(_LOAD), "serve", "--port", str(port)]) as process:
        yield port, process
        process.kill()


@pytest.fixture
def client(server: tuple[int, Any]) -> Iterator[_Client]:
    with subprocess.Popen([sys.executable, str(_LOAD), "client"], stdin=-1, stdout=-1, text=True) as process:
        client = _Client(process, server[0])
        client("until", refused=False, seconds=10)
        assert client.read()["at_s"] > 0  # the server is up
        yield client
        process.kill()


@pytest.mark.parametrize("connections", [1, 32])
@pytest.mark.parametrize("size", [64, 3000])
def test_round_trips(client: _Client, connections: int, size: int) -> None:
    client.send("round_trips", connections=connections, seconds=0.3, size=size)
    assert client.read()["started_s"] > 0
    found = client.read()
    assert found["count"] == pytest.approx(found["per_s"] * found["seconds"])
    assert 0.29 < found["seconds"] < 1
    assert 0 < found["p50_us"] <= found["p99_us"] <= found["max_us"]
    # Closed loop: every connection has exactly one request in flight.
    assert found["p50_us"] * found["per_s"] / 1e6 < connections * 1.5


def test_connect_and_request(client: _Client) -> None:
    found = client("exchanges", seconds=0.2)
    assert found["count"] > 10 and found["seconds"] >= 0.2


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_bulk_each_way(client: _Client, size: int) -> None:
    assert client("upload", bytes=size)["bytes"] == size
    assert client("download", bytes=size)["bytes"] == size


def test_held_connections_stay_open_and_others_work_beside_them(client: _Client) -> None:
    assert client("hold", connections=50) == {"held": 50}
    assert client("hold", connections=10) == {"held": 60}
    assert client("exchanges", seconds=0.05)["count"] > 0
    assert client("release") == {"released": 60}


def test_refusal_and_the_end_of_a_live_connection_are_seen_in_time(client: _Client, server: tuple[int, Any]) -> None:
    client.send("until", refused=True, live=True, seconds=20)
    started = client.read()["started_s"]
    server[1].kill()
    found = client.read()
    assert found["at_s"] >= started and found["closed_s"] >= started and found["attempts"] >= 1


def test_a_load_that_fails_is_an_answer_and_the_client_goes_on(client: _Client, server: tuple[int, Any]) -> None:
    server[1].kill()
    server[1].wait()
    assert client("exchanges", seconds=1)["error"].startswith("ConnectionRefusedError")
    assert client("release") == {"released": 0}
