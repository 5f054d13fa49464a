"""How many lines calls that are refused may cost."""

import asyncio
import logging
import re
import socket
from collections.abc import Callable

import grpc
import pytest

from control import refusals
from control.refusals import ALL_AT_ONCE, AT_ONCE, Refusals
from mesh.proto import certificate_pb2
from mesh.resources import ADDRESS_TYPE
from tests.control.conftest import DEADLINE_S, ControlProcess

pytestmark = pytest.mark.unit


def lines(caplog: pytest.LogCaptureFixture, scenario: Callable[[Refusals], None], finish: bool = False) -> list[str]:
    """What is logged of a scenario within one period, or what is told at its end."""

    async def run() -> None:
        told = Refusals()
        scenario(told)
        if finish:
            caplog.clear()
        told.finish()

    caplog.clear()
    with caplog.at_level(logging.WARNING, "control.refusals"):
        asyncio.run(run())
    return caplog.messages


def test_a_flood_from_one_address_is_some_lines_and_hides_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def flood(told: Refusals) -> None:
        for port in range(1000):
            told.tell("xds", f"ipv4:10.0.0.9:{port}", "no valid node token")
        told.tell("certificate", "ipv4:10.0.0.9:1", "no valid token")
        told.tell("xds", "ipv6:%5Bfd00::9%5D:7", "no valid node token")
        assert told.total == 1002

    told = lines(caplog, flood)
    assert told[0] == "xds refused: peer=ipv4:10.0.0.9:0 no valid node token"
    assert told[AT_ONCE:-1] == [
        "certificate refused: peer=ipv4:10.0.0.9:1 no valid token",
        "xds refused: peer=ipv6:%5Bfd00::9%5D:7 no valid node token",
    ]
    held = f"xds refused: peer=ipv4:10.0.0.9:999 no valid node token repeated={1000 - AT_ONCE}: "
    assert told[-1] == held + "refused within 10 s, from this address and others"


def test_a_flood_from_many_addresses_is_some_lines_too(caplog: pytest.LogCaptureFixture) -> None:
    def flood(told: Refusals) -> None:
        for number in range(1000):
            told.tell("xds", f"ipv6:%5Bfd00::{number:x}%5D:9", "no valid node token")

    told = lines(caplog, flood)
    assert len(told) == ALL_AT_ONCE + 1 and f"repeated={1000 - ALL_AT_ONCE}:" in told[-1]


def test_few_are_told_at_once_and_not_again(caplog: pytest.LogCaptureFixture) -> None:
    def few(told: Refusals) -> None:
        for _ in range(AT_ONCE):
            told.tell("xds", "ipv4:10.0.0.9:1", "no valid node token")

    assert len(lines(caplog, few)) == AT_ONCE and not lines(caplog, few, finish=True)


def test_what_is_held_back_is_told_when_its_time_is_over_and_then_it_begins_anew(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Heard(Refusals):
        def finish(self) -> None:
            super().finish()
            ended.set()

    async def scenario() -> None:
        told = Heard()
        for _ in range(2):
            caplog.clear()
            for _ in range(AT_ONCE + 3):
                told.tell("xds", "ipv4:10.0.0.9:1", "no valid node token")
            await asyncio.wait_for(ended.wait(), DEADLINE_S)
            ended.clear()
            assert len(caplog.messages) == AT_ONCE + 1 and "repeated=3:" in caplog.messages[-1]

    ended = asyncio.Event()
    monkeypatch.setattr(refusals, "PERIOD_S", 0.01)
    with caplog.at_level(logging.WARNING, "control.refusals"):
        asyncio.run(scenario())


def test_whoever_knocks_at_the_port_writes_little_into_the_log(new_control: Callable[[], ControlProcess]) -> None:
    """gRPC wrote a line for each handshake that failed, and control one for each call of nobody."""
    control = new_control()
    control.start("--listen-client-certificate", "127.0.0.1:0")
    control.apply("{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}")
    control.token("n1")
    for purpose in ("node tokens", "certificates"):
        host, _, port = control.address(purpose).rpartition(":")
        with socket.create_connection((host, int(port)), DEADLINE_S) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while stranger.recv(1024):
                pass
    channel = control.channel()
    for _ in range(AT_ONCE + 1):
        stream = control.stream("n1", token="nobody's", channel=channel)
        stream.send(ADDRESS_TYPE, node=True)
        assert stream.status()[0] is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError, match="request authenticate failure"):
        control.certificate(certificate_pb2.IstioCertificateRequest(), "nobody's")
    assert control.status().refused_calls == AT_ONCE + 2
    control.stop()
    log = control.log.read_text()
    counts = re.findall(r"(?:xds|certificate) refused: peer=ipv4:127\.0\.0\.1:\d+ no valid .*?(?: repeated=(\d+):.*)?\n", log)
    assert sum(int(count or 1) for count in counts) == AT_ONCE + 2, "what was held back is told at its end"
    assert "andshake" not in log
