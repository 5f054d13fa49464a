"""A record of a link has all that crossed it, however long its program was not given the CPU."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import capture as capture_module
from lab import netns
from lab.capture import Capture
from lab.layout import netns_path
from wire.netns import entered, open_home

pytestmark = pytest.mark.kernel
_GO_ON_S = 0.3


@pytest.fixture
def name() -> Iterator[str]:
    made = f"wt{os.getpid()}-capture"
    netns.create(made)
    netns.run(["ip", "-n", made, "link", "set", "lo", "up"])
    yield made
    netns.delete(made)


def send(name: str, *words: bytes) -> None:
    """Datagrams to nobody, in a namespace of this name."""
    home, there = open_home(), os.open(netns_path(name), os.O_RDONLY)
    with entered(there, home):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for fd in (home, there):
        os.close(fd)
    with sock:
        for word in words:
            sock.sendto(word, ("127.0.0.1", 9))


@pytest.mark.parametrize("interface", ["any", "lo"])
def test_what_crossed_while_tcpdump_stood_still_is_in_the_record(name: str, interface: str, tmp_path: Path) -> None:
    words = [b"word %d." % number + bytes(1000) for number in range(500)]
    with Capture(name, interface, tmp_path / "x.pcap") as capture:
        assert capture._process is not None
        pid = capture._process.pid
        os.kill(pid, signal.SIGSTOP)
        send(name, *words)
        threading.Timer(_GO_ON_S, os.kill, (pid, signal.SIGCONT)).start()
    raw = capture.raw()
    assert [word for word in words if word not in raw] == []


def test_a_record_that_lacks_packets_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"missed \d+ packets"), Capture(name, "lo", tmp_path / "x.pcap") as capture:
        assert capture._process is not None
        pid = capture._process.pid
        os.kill(pid, signal.SIGSTOP)
        send(name, *[bytes(60000)] * 1000)
        os.kill(pid, signal.SIGCONT)


def test_a_tcpdump_that_has_ended_is_told_with_its_words(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"has ended before its time: .*packets captured"),
        Capture(name, "lo", tmp_path / "x") as capture,
    ):
        assert capture._process is not None
        capture._process.send_signal(signal.SIGINT)
        os.waitid(os.P_PID, capture._process.pid, os.WEXITED | os.WNOWAIT)


def test_a_tcpdump_that_hangs_is_not_left_behind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "_PATIENCE_S", 0.2)
    with pytest.raises(OSError, match="records nothing of lo any more"), Capture(name, "lo", tmp_path / "x") as capture:
        assert capture._process is not None
        os.kill(capture._process.pid, signal.SIGSTOP)
    assert capture._process.returncode == -signal.SIGKILL
