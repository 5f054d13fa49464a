"""The flow log counts what went through it and wakes who waits."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.flow_log import FlowLog, time_ns
from agent.pod import Pod, PodRequest
from agent.pod_index import PodIndex
from mesh.event_line import EventLine, read_event, write_event
from mesh.flows import ConnectionEvent, FlowEndpoint, connection_flow
from mesh.proto import flow_pb2

pytestmark = pytest.mark.unit


NOBODY = PodIndex(())
POD = Pod(
    PodRequest("u", "demo", "web", "web", "/x", (ip_address("10.0.0.3"),), (("app", "web"), ("tier", "x"))), (1, 2), 3, "b"
)


def seen(namespace: str = "demo") -> ConnectionEvent:
    source = FlowEndpoint("workload", ip_address("10.0.0.2"), 1, namespace, cluster="c")
    labels = ("k8s:app=guess", "k8s:more=1")
    destination = FlowEndpoint("workload", ip_address("10.0.0.3"), 2, namespace, "web", cluster="c", labels=labels)
    return ConnectionEvent(1, "a", "opened", "outbound", source, destination)


def test_rate_is_of_the_last_minute() -> None:
    log = FlowLog()
    for second in range(1000, 1100):
        log.add(seen(), NOBODY, second)
        log.add(seen(), NOBODY, second + 0.5)
    assert log.rate(1099.9, uptime_s=1000) == 2.0
    assert log.rate(1129.9, uptime_s=1000) == 1.0
    assert log.rate(2000, uptime_s=1000) == 0.0
    assert FlowLog().rate(5, uptime_s=0) == 0.0
    assert log.seen == 200 and log.by_verdict == {"FORWARDED": 200}


def test_a_clock_that_is_set_back_neither_adds_to_the_rate_nor_to_memory() -> None:
    log = FlowLog()
    for second in (*range(5000, 5060), *range(1000, 1030)):
        log.add(seen(), NOBODY, second)
    assert log.rate(1029.9, uptime_s=1000) == 0.5
    for second in range(1030, 1330):
        log.add(seen(), NOBODY, second)
    assert log.rate(1329.9, uptime_s=1000) == 1.0 and len(log._seconds) == 60


def test_verdicts_are_those_of_the_flows() -> None:
    log = FlowLog()
    for phase in ("opened", "closed", "kept", "denied", "unauthenticated", "refused", "failed"):
        log.add(replace(seen(), phase=phase), NOBODY, 0)  # type: ignore[arg-type]
    assert log.by_verdict == {"FORWARDED": 3, "DROPPED": 3, "ERROR": 1}
    flows = [one.flow for one in log.ring.read(0, 10)[0]]
    assert [flow_pb2.Verdict.Name(flow.verdict) for flow in flows] == ["FORWARDED"] * 3 + ["DROPPED"] * 3 + ["ERROR"]


def flows_of(log: FlowLog) -> list[flow_pb2.Flow]:
    return [one.flow for one in log.ring.read(0, 100)[0]]


def told(event: ConnectionEvent) -> EventLine:
    line = read_event(write_event(event))
    assert isinstance(line, EventLine)
    return line


@pytest.mark.parametrize("form", [lambda event: event, told])
def test_labels_come_from_the_runtime_as_it_is_then(form: Callable[[ConnectionEvent], ConnectionEvent | EventLine]) -> None:
    log = FlowLog()
    log.add(form(seen()), PodIndex([POD]), 0)
    log.add(form(seen()), NOBODY, 0)
    before, after = flows_of(log)
    assert list(before.destination.labels) == ["k8s:app=web", "k8s:more=1", "k8s:tier=x"]
    assert not before.source.labels
    assert after == connection_flow(seen())


def test_a_line_is_counted_and_shown_as_its_event() -> None:
    events = [
        seen(),
        replace(seen("other"), phase="closed", time_ns=100, duration_ns=40, bytes_sent=5, encrypted=True, untold=True),
        replace(seen(), phase="closed", time_ns=101, source=replace(seen().source, port=7)),
    ]
    as_events, as_lines = FlowLog(), FlowLog()
    for second, event in enumerate(events):
        as_events.add(event, NOBODY, second)
        as_lines.add(told(event), NOBODY, second)
    assert flows_of(as_lines) == flows_of(as_events) and len(as_lines.ring) == 4
    for log in (as_events, as_lines):
        assert log.seen == 4 and log.by_verdict == {"FORWARDED": 4} and log.rate(2, 100) == 4 / 60
        assert log.namespaces(2) == [("c", "demo"), ("c", "other")]
        assert [time_ns(one) for one in log.ring.read(0, 100)[0]] == [1, 60, 100, 101]


def test_namespaces_are_forgotten_after_an_hour() -> None:
    log = FlowLog()
    log.add(seen("old"), NOBODY, 0)
    log.add(seen("new"), NOBODY, 3000)
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
            log.add(seen(), NOBODY, 0)
            await asyncio.gather(one.wait(), other.wait())
        log.add(seen(), NOBODY, 0)
        log.stop()
        assert log.stopped

    asyncio.run(scenario())
