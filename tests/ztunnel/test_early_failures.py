"""Failures that come by the hundred are told in few words, and every one of them is counted."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.identity import Identity
from ztunnel.channel import EarlyFailure
from ztunnel.early_failures import AT_ONCE, EarlyFailures

pytestmark = pytest.mark.unit

SILENT = EarlyFailure(
    "far", "inbound", (ip_address("10.0.0.1"), 1000), (ip_address("10.0.0.9"), 15008), "TLS_FAILURE", "timed out"
)


def come(failures: EarlyFailures, failure: EarlyFailure, count: int, now: float) -> None:
    for port in range(count):
        failures.tell(replace(failure, source=(failure.source[0], port)), now)


def test_few_are_told_one_by_one_at_once() -> None:
    told: list[EarlyFailure] = []
    failures = EarlyFailures(told.append)
    for second in range(3):
        come(failures, SILENT, AT_ONCE, float(second))
        failures.tick(second + 1.0)
    assert len(told) == 3 * AT_ONCE and all(one.count == 1 for one in told)


def test_the_last_of_a_flood_stands_for_what_was_not_told() -> None:
    told: list[EarlyFailure] = []
    failures = EarlyFailures(told.append)
    come(failures, SILENT, 3000, 5.0)
    failures.tick(5.9)
    assert len(told) == AT_ONCE
    failures.tick(6.0)
    assert told[-1] == replace(SILENT, source=(SILENT.source[0], 2999), count=3000 - AT_ONCE)
    failures.tick(9.0)
    assert len(told) == AT_ONCE + 1 and sum(one.count for one in told) == 3000


def test_whoever_fails_otherwise_or_is_somebody_else_is_told_beside_a_flood() -> None:
    told: list[EarlyFailure] = []
    failures = EarlyFailures(told.append)
    come(failures, SILENT, 3000, 5.0)
    others = [
        replace(SILENT, source=(ip_address("10.0.0.2"), 1)),
        replace(SILENT, flag="CONNECT"),
        replace(SILENT, pod_uid="near"),
        replace(SILENT, identity=Identity("cluster.local", "shop", "client")),
        replace(SILENT, direction="outbound"),
    ]
    for other in others:
        failures.tell(other, 5.0)
    assert told[AT_ONCE:] == others


def test_a_flood_from_everywhere_is_told_in_bounded_memory() -> None:
    told: list[EarlyFailure] = []
    failures = EarlyFailures(told.append)
    come(failures, SILENT, AT_ONCE + 5, 5.0)
    for number in range(5000):
        failures.tell(replace(SILENT, source=(ip_address(number), 1)), 5.0)
    assert len(failures._peers) == 1024 and sum(one.count for one in told) == AT_ONCE + 5 + 5000


def test_what_was_held_back_is_told_at_the_end() -> None:
    told: list[EarlyFailure] = []
    failures = EarlyFailures(told.append)
    come(failures, SILENT, AT_ONCE + 2, 5.0)
    failures.finish()
    assert told[-1].count == 2 and not failures._peers
