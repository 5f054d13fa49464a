"""Programs of the lab: how long it waits between attempts, and whom it takes over."""

import os

import pytest

from lab.process import Process, Record, started_ticks
from lab.supervision import pause_s
from tests.descriptors import open_descriptors

pytestmark = pytest.mark.unit


def test_a_later_process_with_the_number_is_let_be() -> None:
    before = open_descriptors()
    assert Process.adopt(Record(os.getpid(), started_ticks(os.getpid()) - 1)) is None
    assert not open_descriptors() - before


def test_pauses_double_up_to_a_limit() -> None:
    assert [pause_s(failures, 0.5, 4.0) for failures in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert pause_s(10_000, 0.5, 4.0) == 4.0
