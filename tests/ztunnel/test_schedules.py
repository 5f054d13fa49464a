"""Some schedules in each run; `make soak` runs many."""

import logging

import pytest

from tests.ztunnel.schedules import Schedule
from tests.ztunnel.world import CLIENT, Authority
from ztunnel.tls import Credentials

pytestmark = [pytest.mark.unit, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Credentials(Authority().certificate_for(CLIENT))


@pytest.mark.parametrize("seed", range(1, 13))
def test_bytes_come_whole_and_nothing_is_left(seed: int, credentials: Credentials, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Schedule(seed, credentials).run()
    assert not caplog.records
