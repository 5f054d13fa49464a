"""The worker's end of the channel: what happens within one batch travels as little as it can."""

import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ztunnel.channel import Closed, Opened, PodAdded
from ztunnel.connection_record import ConnectionRecord
from ztunnel.framing import FrameReader, receive
from ztunnel.link import BATCH_EVENTS, Link
from ztunnel.loop import Loop

pytestmark = pytest.mark.unit

ENDS = (ip_address("10.0.0.1"), 1), (ip_address("10.0.0.2"), 2)
RECORD = ConnectionRecord(1, "uid", "outbound", "TCP", *ENDS)


@pytest.fixture
def ends() -> Iterator[tuple[Link, Loop, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(40.0)  # what is not said is not waited for
    loop = Loop()
    with ours, theirs:
        yield Link(loop, ours, lambda message, fds: None), loop, theirs


def heard(sock: socket.socket) -> list[object]:
    return [message for message, _ in FrameReader().feed(*receive(sock))]


def test_a_connection_that_opens_and_closes_at_once_travels_once(ends: tuple[Link, Loop, socket.socket]) -> None:
    link, loop, supervisor = ends
    other = replace(RECORD, number=2)
    link.emit(Opened(RECORD))
    link.emit(Opened(other))
    link.emit(Closed(replace(RECORD, bytes_sent=3), was_open=True))
    link.emit(Closed(replace(RECORD, number=3), was_open=False))
    while not select.select([supervisor], [], [], 0)[0]:
        loop.turn(40.0)
    first, second, third = heard(supervisor)
    assert first == Closed(replace(RECORD, bytes_sent=3), was_open=True, told=False)
    assert second == Opened(other)
    assert third == Closed(replace(RECORD, number=3), was_open=False, told=True)


def test_what_comes_by_the_thousand_is_packed_in_parts(ends: tuple[Link, Loop, socket.socket]) -> None:
    link, _, supervisor = ends
    events = [Closed(replace(RECORD, number=number), was_open=True) for number in range(BATCH_EVENTS + 1)]
    for event in events:
        link.emit(event)
    assert heard(supervisor) == events[:-1], "a full batch waits for nothing"
    link.emit(PodAdded("uid"))
    assert heard(supervisor) == [events[-1], PodAdded("uid")]


def test_what_was_told_already_is_closed_by_itself(ends: tuple[Link, Loop, socket.socket]) -> None:
    link, _, supervisor = ends
    link.emit(Opened(RECORD))
    link.emit(PodAdded("uid"))  # a reply takes the events before it along
    assert heard(supervisor) == [Opened(RECORD), PodAdded("uid")]
    link.emit(Closed(RECORD, was_open=True))
    link.emit(PodAdded("uid"))
    assert heard(supervisor) == [Closed(RECORD, was_open=True), PodAdded("uid")]
