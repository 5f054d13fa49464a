"""Failures that come by the hundred are told in few words, and every one of them is counted."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from mesh.identity import Identity
from ztunnel.channel import Closed, EarlyFailure
from ztunnel.connection_record import ConnectionRecord
from ztunnel.failures import AT_ONCE, Failures

pytestmark = pytest.mark.unit

SILENT = EarlyFailure(
    "far", "inbound", (ip_address("10.0.0.1"), 1000), (ip_address("10.0.0.9"), 15008), "TLS_FAILURE", "timed out"
)


RECORD = ConnectionRecord(
    1, "near", "outbound", "HBONE", (ip_address("10.0.0.1"), 1000), (ip_address("10.0.0.9"), 15008), flag="CONNECT",
    source_workload="K//Pod/shop/client", destination_workload="K//Pod/shop/far",
)  # fmt: skip


def come(failures: Failures, failure: EarlyFailure, count: int, now: float) -> None:
    for port in range(count):
        failures.early(replace(failure, source=(failure.source[0], port)), now)


def test_few_are_told_one_by_one_at_once() -> None:
    told: list[Any] = []
    failures = Failures(told.append)
    for second in range(3):
        come(failures, SILENT, AT_ONCE, float(second))
        failures.tick(second + 1.0)
    assert len(told) == 3 * AT_ONCE and all(one.count == 1 for one in told)


def test_the_last_of_a_flood_stands_for_what_was_not_told() -> None:
    told: list[Any] = []
    failures = Failures(told.append)
    come(failures, SILENT, 3000, 5.0)
    failures.tick(5.9)
    assert len(told) == AT_ONCE
    failures.tick(6.0)
    assert told[-1] == replace(SILENT, source=(SILENT.source[0], 2999), count=3000 - AT_ONCE)
    failures.tick(9.0)
    assert len(told) == AT_ONCE + 1 and sum(one.count for one in told) == 3000


def test_whoever_fails_otherwise_or_is_somebody_else_is_told_beside_a_flood() -> None:
    told: list[Any] = []
    failures = Failures(told.append)
    come(failures, SILENT, 3000, 5.0)
    others = [
        replace(SILENT, source=(ip_address("10.0.0.2"), 1)),
        replace(SILENT, flag="CONNECT"),
        replace(SILENT, pod_uid="near"),
        replace(SILENT, identity=Identity("cluster.local", "shop", "client")),
        replace(SILENT, direction="outbound"),
    ]
    for other in others:
        failures.early(other, 5.0)
    assert told[AT_ONCE:] == others


def test_a_flood_from_everywhere_is_told_in_bounded_memory() -> None:
    told: list[Any] = []
    failures = Failures(told.append)
    come(failures, SILENT, AT_ONCE + 5, 5.0)
    for number in range(5000):
        failures.early(replace(SILENT, source=(ip_address(number), 1)), 5.0)
    assert len(failures._peers) == 1024 and sum(one.count for one in told) == AT_ONCE + 5 + 5000


def test_what_was_held_back_is_told_at_the_end() -> None:
    told: list[Any] = []
    failures = Failures(told.append)
    come(failures, SILENT, AT_ONCE + 2, 5.0)
    failures.finish()
    assert told[-1].count == 2 and not failures._peers


def test_refused_connections_stand_for_others_only_where_they_count_as_one() -> None:
    """Whatever a series of the metrics tells apart is told apart here too."""
    told: list[Any] = []
    failures = Failures(told.append)
    for port in range(3000):
        failures.refused(Closed(replace(RECORD, number=port, source=(RECORD.source[0], port)), False), 5.0)
    others = [
        replace(RECORD, destination_workload="K//Pod/shop/bank"),
        replace(RECORD, source_identity=Identity("cluster.local", "shop", "client")),
        replace(RECORD, destination_service="shop/far"),
        replace(RECORD, flag="-"),
        replace(RECORD, direction="inbound"),
        replace(RECORD, pod_uid="far"),
        replace(RECORD, destination=(ip_address("10.0.0.8"), 15008)),
    ]
    for other in others:
        failures.refused(Closed(other, False), 5.0)
    assert [one.record for one in told[AT_ONCE:]] == others
    failures.tick(6.0)
    assert told[AT_ONCE + len(others) :] == [
        Closed(replace(RECORD, number=2999, source=(RECORD.source[0], 2999)), False, count=3000 - AT_ONCE)
    ]
