"""Some schedules in each run; `make soak` runs many."""

import logging

import pytest

from tests.ztunnel.schedules import Schedule
from tests.ztunnel.world import CLIENT, Authority
from ztunnel.tls import Credentials

# Up to 19,000 waits of 0.3 ms, which are of 3 ms where many others want the CPU: no shorter limit than all tests have.
pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Credentials(Authority().certificate_for(CLIENT))


@pytest.mark.parametrize("seed", range(1, 13))
def test_bytes_come_whole_and_nothing_is_left(seed: int, credentials: Credentials, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Schedule(seed, credentials).run()
    assert not caplog.records
