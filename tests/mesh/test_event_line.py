"""Connection events as lines: what is written is read, a newer writer is understood, and nonsense is refused with a reason."""

import re
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.event_line import EventLine, read_event, read_line, write_event, write_lost
from mesh.flows import ConnectionEvent, FlowEndpoint
from mesh.identity import Identity

pytestmark = pytest.mark.unit

WEB = FlowEndpoint(
    "workload",
    ip_address("fd00::3"),
    80,
    "demo",
    "web",
    Identity("cluster.local", "demo", "web"),
    ("k8s:app=web",),
    "web",
    "Deployment",
    "Kubernetes",
)
EVENT = ConnectionEvent(7, "a", "denied", "inbound", FlowEndpoint("world", ip_address("10.0.0.2"), 4000), WEB)


@pytest.mark.parametrize("phase", ["opened", "closed", "denied", "unauthenticated", "refused", "failed", "kept"])
def test_a_line_is_the_event_it_was_made_of(phase: str) -> None:
    event = replace(EVENT, phase=phase)  # type: ignore[arg-type]
    assert read_line(write_event(event)) == event
    full = replace(
        event,
        service="demo/web.demo.svc.cluster.local",
        policy="demo/p",
        policy_object="AuthorizationPolicy demo/p",
        asked_objects=("AuthorizationPolicy demo/p",),
        reason='words "quoted" \n and \u00e9',
        drop_reason=3,
        encrypted=True,
        pre_mesh=True,
        bytes_sent=1 << 40,
        bytes_received=2,
        duration_ns=3,
    )
    line = write_event(full)
    assert read_line(line) == full and line.count(b"\n") == 1
    assert wholly(read_event(line)) == full and wholly(read_event(write_event(event))) == event


def wholly(read: EventLine | ConnectionEvent | int) -> ConnectionEvent | int:
    return read.whole() if isinstance(read, EventLine) else read


def test_a_newer_proxys_names_are_skipped_and_losses_are_counted() -> None:
    assert read_line(write_event(EVENT).replace(b'{"time_ns"', b'{"from_the_future":{"x":1},"time_ns"')) == EVENT
    assert read_line(write_lost(7)) == 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"phase":"denied"', b'"phase":"loved"'),
        (b'"time_ns":7', b'"time_ns":"7"'),
        (b'"kind":"world"', b'"kind":"ghost"'),
        (b'"10.0.0.2"', b'"10.0.0.256"'),
        (b'"port":80', b'"port":-1'),
        # What no flow can hold would be found by each reader of flows, for as long as it is kept.
        (b'"port":80', b'"port":4294967296'),
        (b'"node":"a"', b'"drop_reason":2147483648,"node":"a"'),
        (b'"node":"a"', b'"node":"\\ud800"'),
        (b'"node":"a"', b'"reason":"\\udfff","node":"a"'),
        (b'["k8s:app=web"]', b'["\\ud800"]'),
        (b'["cluster.local","demo","web"]', b'["demo"]'),
        (b'["k8s:app=web"]', b"[1]"),
        (b'"node":"a",', b""),
    ],
)
def test_what_is_no_event_is_refused(old: bytes, new: bytes) -> None:
    line = write_event(EVENT)
    assert old in line
    with pytest.raises(ValueError, match=r".+"):
        read_line(line.replace(old, new))


CLOSED = replace(EVENT, phase="closed", time_ns=100, duration_ns=40, bytes_sent=5, encrypted=True, untold=True)


@given(st.builds(replace, st.just(CLOSED), time_ns=st.integers(0, 2**63 - 1), bytes_sent=st.integers(0, 2**63 - 1),
                 duration_ns=st.integers(0, 9), untold=st.booleans(), phase=st.sampled_from(["opened", "closed"]),
                 source=st.builds(FlowEndpoint, st.just("world"), st.ip_addresses(), st.integers(0, 70_000))))  # fmt: skip
def test_what_is_read_late_is_what_is_read_at_once(event: ConnectionEvent) -> None:
    assert wholly(read_event(write_event(event))) == read_line(write_event(event)) == event


def test_lines_of_the_same_ends_share_what_they_say_of_them() -> None:
    one, other = (read_event(write_event(replace(CLOSED, time_ns=time_ns))) for time_ns in (100, 200))
    assert isinstance(one, EventLine) and isinstance(other, EventLine) and one.shared is other.shared
    assert (one.time_ns, other.time_ns, one.duration_ns, one.phase, one.untold) == (100, 200, 40, "closed", True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"encrypted":true}', b'"encrypted":true,"time_ns":8}'),
        (b'"encrypted":true}', b'"encrypted":true,"phase":"denied"}'),
        (b'"encrypted":true}', b'"encrypted":true,"bytes_sent":9}'),
        (b'"encrypted":true}', b'"encrypted":true,"lost":9}'),
        (b'"encrypted":true}', b'"encrypted":true,"source":{"kind":"world"}}'),
        (b'"encrypted":true}', b'"encrypted":true,"source":{"kind":"world","address":"10.0.0.9","port":3}}'),
        (b'"encrypted":true}', b'"encrypted":true,"from_the_future":1}'),
        (b'"encrypted":true}', b'"encrypted":1}'),
        (b'"encrypted":true}', b'"encrypted":true'),
        (b'"encrypted":true}', b'"encrypted":true}}'),
        (b'"kind":"world"', b'"kind":"world","port":5'),
        (b'"kind":"world"', b'"kind":"ghost"'),
        (b'"10.0.0.2"', b'"10.0.0.256"'),
        (b'"port":80', b'"port":-1'),
        (b'"phase":"closed"', b'"phase":"denied"'),
        (b'"time_ns":100', b'"time_ns":9999999999999999999'),
        (b'"time_ns":100', b'"time_ns":0100'),
        (b'"port":4000', b'"port":04000'),
        (b'"port":4000', b'"port":9223372036854775808'),
        (b'"untold":true,', b""),
    ],
)
def test_a_strange_line_is_read_late_as_it_is_read_at_once(old: bytes, new: bytes) -> None:
    line = write_event(CLOSED)
    assert old in line
    strange = line.replace(old, new)
    try:
        expected = read_line(strange)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            read_event(strange)
    else:
        assert wholly(read_event(strange)) == expected


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode) | st.just(b"[" * 100_000))
def test_any_line_is_read_or_refused(content: bytes) -> None:
    for read in (read_line, read_event):
        try:
            assert isinstance(read(content), ConnectionEvent | int)
        except ValueError as error:
            assert str(error)


def test_an_event_may_stand_for_its_connections_opening_too() -> None:
    closed = replace(EVENT, phase="closed", time_ns=100, duration_ns=40, bytes_sent=5, reason="x", encrypted=True)
    assert closed.moments() == (closed,)
    read = read_line(write_event(replace(closed, untold=True)))
    assert isinstance(read, ConnectionEvent)
    opened = replace(EVENT, phase="opened", time_ns=60, encrypted=True)
    assert read.moments() == (opened, read)
