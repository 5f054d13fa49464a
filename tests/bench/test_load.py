"""The load generator against itself on loopback: what it counts is what happened."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit
_LOAD, _SERVER = (Path(__file__).parents[2] / "bench" / name for name in ("load.py", "load_server.py"))


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


@contextmanager
def _stopped(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _unread_bytes(port: int) -> int:
    """How many came for who listens at a port, who has not read them."""
    tables = "".join(Path("/proc/net", name).read_text() for name in ("tcp", "tcp6"))
    rows = [row.split() for row in tables.splitlines()]
    return sum(int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01")


@pytest.fixture
def server() -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    with subprocess.Popen([sys.executable, str(_SERVER), "--port", "0"], stdout=-1) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process
        process.kill()


@pytest.fixture
def client(server: tuple[int, Any]) -> Iterator[_Client]:
    with subprocess.Popen([sys.executable, str(_LOAD)], stdin=-1, stdout=-1, text=True) as process:
        client = _Client(process, server[0])
        client("until", refused=False, seconds=60)
        assert client.read()["at_s"] > 0  # the server is up
        yield client
        process.kill()


@pytest.mark.parametrize("connections", [1, 32])
@pytest.mark.parametrize("size", [64, 3000])
def test_round_trips(client: _Client, connections: int, size: int) -> None:
    def in_flight() -> float:
        client.send("round_trips", connections=connections, seconds=0.3, size=size)
        assert client.read()["started_s"] > 0
        found = client.read()
        assert found["count"] == pytest.approx(found["per_s"] * found["seconds"])
        assert 0.29 < found["seconds"] < 60
        assert 0 < found["p50_us"] <= found["p99_us"] <= found["max_us"]
        return float(found["p50_us"] * found["per_s"] / 1e6)

    # Closed loop: every connection has exactly one request in flight. More, for as long as the machine stands still.
    assert any(in_flight() < connections * 1.5 for _ in range(5))


def test_connect_and_request(client: _Client) -> None:
    found = client("exchanges", seconds=0.2)
    assert found["count"] > 0 and found["seconds"] >= 0.2


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("size", [0, 4, 5_000_000])
def test_bulk_each_way(client: _Client, size: int, connections: int) -> None:
    assert client("upload", bytes=size, connections=connections)["bytes"] == size
    assert client("download", bytes=size, connections=connections)["bytes"] == size


def test_a_fixed_rate_counts_from_the_moment_a_request_was_due(client: _Client, server: tuple[int, Any]) -> None:
    def is_prompt() -> bool:
        found = client("paced", rate=1000, connections=4, seconds=0.3)
        assert found["count"] == pytest.approx(300, abs=3)
        return bool(found["p50_us"] < 90_000)

    assert any(is_prompt() for _ in range(10)), "unless the machine stands still as well"
    # A server that stands still for a while: what was due meanwhile waited, although it was sent late or answered at once.
    with _stopped(server[1]):
        client.send("paced", rate=1000, connections=4, seconds=0.4)
        deadline = time.monotonic() + 100
        while _unread_bytes(server[0]) < 450 * 64:  # what is due in 0.45 s, 0.3 s of it while it warms up
            assert time.monotonic() < deadline, "the client sends no more"
            time.sleep(0.001)
    found = client.read()
    assert found["count"] == pytest.approx(400, abs=3)
    assert found["max_us"] > 90_000 and found["p99_us"] > 50_000


def test_each_connection_from_an_address_of_its_own(client: _Client) -> None:
    assert client("exchanges", seconds=0.1, sources="127.5.0.0/16")["count"] > 0


def test_a_flood_beside_others(client: _Client) -> None:
    client.send("flood", seconds=0.1)
    assert client.read()["started_s"] > 0
    assert client.read()["bytes"] > 1 << 20


def test_a_probe_sees_a_gap_and_what_failed(client: _Client, server: tuple[int, Any]) -> None:
    for _ in range(10):
        client.send("probe", rate=1000, seconds=1.2)
        started_s = client.read()["started_s"]
        with _stopped(server[1]):
            time.sleep(0.2)
        took_s, found = time.monotonic() - started_s, client.read()
        if took_s < 1 and found["answered"] > 50:
            break  # else the machine stood still as well
    assert found["failed"] == 0 and found["answered"] > 50 and found["gap_s"] > 0.15
    server[1].kill()
    server[1].wait()
    found = client("probe", rate=1000, seconds=0.5)
    assert found["answered"] == 0 and found["failed"] > 0


def test_held_connections_stay_open_and_others_work_beside_them(client: _Client) -> None:
    assert client("hold", connections=50) == {"held": 50}
    assert client("hold", connections=10) == {"held": 60}
    assert client("exchanges", seconds=0.05)["count"] > 0
    assert client("release") == {"released": 60}


def test_refusal_and_the_end_of_a_live_connection_are_seen_in_time(client: _Client, server: tuple[int, Any]) -> None:
    client.send("until", refused=True, live=True, seconds=60)
    started = client.read()["started_s"]
    server[1].kill()
    found = client.read()
    assert found["at_s"] >= started and found["closed_s"] >= started and found["attempts"] >= 1


def test_a_load_that_fails_is_an_answer_and_the_client_goes_on(client: _Client, server: tuple[int, Any]) -> None:
    server[1].kill()
    server[1].wait()
    assert client("exchanges", seconds=1)["error"].startswith("ConnectionRefusedError")
    assert client("release") == {"released": 0}
