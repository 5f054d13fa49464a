"""Control's own certificate, by a clock that tests turn."""

import asyncio
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest

from control.server import NODE_OPTIONS
from control.server_tls import SERVER_LIFETIME_S, ServerCertificate
from control.trust import Trust
from tests.control.conftest import DEADLINE_S
from tests.control.test_trust import Clock, make

pytestmark = pytest.mark.unit


def shown(trust: Trust, clock: Clock) -> ServerCertificate:
    return ServerCertificate(trust, [ip_address("127.0.0.1")], clock)


def test_it_is_renewed_at_half_of_its_life(tmp_path: Path) -> None:
    clock = Clock()
    certificate = shown(make(tmp_path, clock), clock)
    assert certificate.renewed() and not certificate.renewed()
    clock.now += SERVER_LIFETIME_S / 2 - 1
    assert not certificate.renewed()
    clock.now += 1
    assert certificate.renewed() and not certificate.renewed()


def test_it_is_renewed_when_the_roots_are_others(tmp_path: Path) -> None:
    clock = Clock()
    trust = make(tmp_path, clock)
    certificate = shown(trust, clock)
    assert certificate.renewed() and not certificate.renewed()
    trust.rotate()
    assert certificate.renewed() and not certificate.renewed()


def test_it_is_renewed_when_the_clock_that_it_was_made_by_is_set_back(tmp_path: Path) -> None:
    clock = Clock()
    trust = make(tmp_path, clock)
    clock.now += timedelta(days=300).total_seconds()
    certificate = shown(trust, clock)
    assert certificate.renewed()
    clock.now -= timedelta(days=200).total_seconds()
    assert certificate.renewed() and not certificate.renewed(), "nobody would take the first one for half a year"


async def silent_stranger(certificate: ServerCertificate) -> bytes:
    patience = "grpc.server_handshake_timeout_ms"
    assert 0 < dict(NODE_OPTIONS)[patience] <= 10_000
    server = grpc.aio.server(options=[*(dict(NODE_OPTIONS) | {patience: 100}).items()])
    port = server.add_secure_port("127.0.0.1:0", certificate.credentials(require_client_certificate=False))
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(DEADLINE_S):
        heard = await reader.read()
    writer.close()
    await server.stop(None)
    return heard


def test_who_connects_and_says_nothing_is_let_go(tmp_path: Path) -> None:
    clock = Clock()
    assert asyncio.run(silent_stranger(shown(make(tmp_path, clock), clock))) == b""
