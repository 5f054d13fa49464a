"""The load generator for DNS against a nameserver that loses questions and repeats itself: what it counts is what happened."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.name_load import is_address, question

pytestmark = pytest.mark.unit
_SOURCE = (Path(__file__).parents[2] / "bench" / "name_load.py").read_text()
_LOST, _UNKNOWN = 7, 8
"""Of each ten questions one is not answered, and one with NXDOMAIN."""


@pytest.fixture
def nameserver() -> Iterator[int]:
    """Its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while asked := sock.recvfrom(512):
                data, peer = asked
                if not data:
                    return
                number = int.from_bytes(data[:2], "big")
                if number % 10 != _LOST:
                    flags, count = (b"\x81\x83", b"\0\0") if number % 10 == _UNKNOWN else (b"\x81\x80", b"\0\1")
                    for _ in range(2):
                        sock.sendto(data[:2] + flags + data[4:6] + count + data[8:], peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield int(sock.getsockname()[1])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as farewell:
            farewell.sendto(b"", sock.getsockname())
        thread.join()


def test_questions_at_a_fixed_rate(nameserver: int) -> None:
    order = ["127.0.0.1", str(nameserver), "web.shop.svc.cluster.local", "500", "0.2"]
    run = subprocess.run([sys.executable, "-c", _SOURCE, *order], capture_output=True, text=True, check=True, timeout=30)
    found = json.loads(run.stdout)
    assert (found["answered"], found["failed"]) == (80, 20)
    assert 0 < found["p50_us"] <= found["p99_us"] < 2e6


def test_an_answer_without_an_address_is_none() -> None:
    asked = question("a.b", 1)
    assert asked.endswith(b"\1a\1b\0\0\1\0\1") and not is_address(asked)
    assert is_address(asked[:2] + b"\x81\x80" + asked[4:6] + b"\0\1" + asked[8:])
