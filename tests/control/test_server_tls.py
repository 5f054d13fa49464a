"""Control's own certificate, by a clock that tests turn."""

from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest

from control.server_tls import SERVER_LIFETIME_S, ServerCertificate
from control.trust import Trust
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


def test_it_is_renewed_when_the_clock_that_it_was_made_by_is_set_back(tmp_path: Path) -> None:
    clock = Clock()
    trust = make(tmp_path, clock)
    clock.now += timedelta(days=300).total_seconds()
    certificate = shown(trust, clock)
    assert certificate.renewed()
    clock.now -= timedelta(days=200).total_seconds()
    assert certificate.renewed() and not certificate.renewed(), "nobody would take the first one for half a year"
