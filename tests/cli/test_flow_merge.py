"""Several nodes' flows in one order."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from cli.flow_merge import HOLD_S, MAX_HELD, LiveMerge, at, newest, oldest
from mesh.proto.flow_pb2 import Flow, LostEvent
from mesh.proto.observer_pb2 import GetFlowsResponse
from ztunnel.link import BATCH_S

pytestmark = pytest.mark.unit


def _flow(second: int) -> GetFlowsResponse:
    return GetFlowsResponse(flow=Flow(), time=Timestamp(seconds=second))


def _lost(second: int) -> GetFlowsResponse:
    return GetFlowsResponse(lost_events=LostEvent(num_events_lost=1), time=Timestamp(seconds=second))


def test_lost_events_do_not_count_but_are_kept_between() -> None:
    streams = [[_flow(1), _lost(2), _flow(5)], [_flow(3), _flow(4)]]
    assert [one.time.seconds for one in newest(streams, 3)] == [2, 3, 4, 5]
    assert [one.time.seconds for one in newest(streams, 2)] == [4, 5]
    assert [one.time.seconds for one in newest(streams, 4)] == [1, 2, 3, 4, 5]
    assert [one.time.seconds for one in newest(streams, None)] == [1, 2, 3, 4, 5]
    assert newest(streams, 0) == []
    assert [one.time.seconds for one in oldest(newest(streams, None), 2)] == [1, 2, 3]


def test_a_live_flow_waits_for_older_ones_of_other_nodes() -> None:
    merge = LiveMerge(0.3)
    merge.receive(_flow(10), now=100.0)
    assert merge.due(100.1) == [] and merge.next_timer() == 100.3
    merge.receive(_flow(9), now=100.2)
    # The older one comes first, and takes along what is due already.
    assert [one.time.seconds for one in merge.due(100.5)] == [9, 10]
    assert merge.next_timer() is None


@given(st.lists(st.integers(0, 1000), max_size=60))
def test_nothing_is_lost_and_what_waits_together_is_in_order(seconds: list[int]) -> None:
    merge = LiveMerge(1.0)
    for second in seconds:
        merge.receive(_flow(second), now=0.0)
    shown = merge.due(1.0)
    assert [one.time.seconds for one in shown] == sorted(seconds)
    assert shown == sorted(shown, key=at)


def test_memory_is_bounded() -> None:
    merge = LiveMerge(1000.0)
    for second in range(MAX_HELD + 10):
        merge.receive(_flow(second), now=0.0)
    assert [one.time.seconds for one in merge.due(0.0)] == list(range(10))


def test_a_flow_waits_for_what_another_nodes_worker_has_yet_to_tell() -> None:
    assert HOLD_S >= 2 * BATCH_S
