"""The flow log counts what went through it and wakes who waits."""

import asyncio

import pytest

from agent.flow_log import FlowLog
from mesh.proto import flow_pb2

pytestmark = pytest.mark.unit


def flow(namespace: str = "demo") -> flow_pb2.Flow:
    return flow_pb2.Flow(verdict=flow_pb2.FORWARDED, source=flow_pb2.Endpoint(namespace=namespace, cluster_name="c"))


def test_rate_is_of_the_last_minute() -> None:
    log = FlowLog()
    for second in range(1000, 1100):
        log.add(flow(), second)
        log.add(flow(), second + 0.5)
    assert log.rate(1099.9, uptime_s=1000) == 2.0
    assert log.rate(1129.9, uptime_s=1000) == 1.0
    assert log.rate(2000, uptime_s=1000) == 0.0
    assert FlowLog().rate(5, uptime_s=0) == 0.0
    assert log.seen == 200 and log.by_verdict == {"FORWARDED": 200}


def test_namespaces_are_forgotten_after_an_hour() -> None:
    log = FlowLog()
    log.add(flow("old"), 0)
    log.add(flow("new"), 3000)
    assert log.namespaces(3001) == [("c", "new"), ("c", "old")]
    assert log.namespaces(3601) == [("c", "new")]


def test_lost_events_are_counted_by_source() -> None:
    log = FlowLog(7)
    log.add_lost(flow_pb2.PERF_EVENT_RING_BUFFER, 3)
    log.add_lost(flow_pb2.PERF_EVENT_RING_BUFFER, 4)
    assert log.lost == {"PERF_EVENT_RING_BUFFER": 7} and log.seen == 0 and len(log.ring) == 2


def test_wakes_every_reader() -> None:
    async def scenario() -> None:
        log = FlowLog()
        with log.reading() as one, log.reading() as other:
            log.add(flow(), 0)
            await asyncio.gather(one.wait(), other.wait())
        log.add(flow(), 0)
        log.stop()
        assert log.stopped

    asyncio.run(scenario())
