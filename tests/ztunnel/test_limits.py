"""What a pod and the node may hold: compared, counted, divided among workers."""

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakValueDictionary

import pytest

from tests.ztunnel.test_config import read
from ztunnel import limits
from ztunnel.limits import Held, Holder, Limits, PartHeld
from ztunnel.pod import Pod

pytestmark = pytest.mark.unit

FEW = Limits(2, 2, 2, 100)


def test_one_too_many_is_refused_and_counted() -> None:
    holder = Holder(FEW, Held(FEW.buffered_bytes))
    assert not holder.refuses("streams", 1) and holder.refuses("streams", 2) and holder.refuses("connections", 3)
    holder.streams = 2
    assert list(holder.usage(connections=1, handshakes=0)) == [
        ("connections", 1, 1),
        ("streams", 2, 1),
        ("handshakes", 0, 0),
        ("buffered_bytes", 0, 0),
    ]


def test_who_is_half_full_is_home_to_no_more() -> None:
    holder = Holder(FEW, Held(FEW.buffered_bytes))
    assert not holder.half_full(1) and holder.half_full(2)
    holder.held.add(50)
    assert not holder.half_full(1)
    holder.held.add(1)
    assert holder.half_full(0)


def test_bytes_wait_on_the_account_of_the_pod_and_of_the_node() -> None:
    node = Held(150)
    one, other = Held(100, node), Held(100, node)
    one.add(100)
    assert not one.refuses(), "as many as it may have"
    one.add(-10)
    assert not one.refuses() and not other.refuses()
    one.add(20)
    assert one.refuses() and not other.refuses() and one.refused == 1
    other.add(80)
    assert other.refuses() and node.refused == 1 and other.refused == 0, "it is the node that is full"
    one.add(-110)
    assert node.bytes == other.bytes == 80 and not other.refuses()


def test_one_peer_has_half_of_what_waits_for_a_pod_at_most() -> None:
    node = Held(1000)
    pod = Held(100, node)
    greedy, good = PartHeld(pod), PartHeld(pod)
    greedy.add(60)
    assert greedy.refuses() and pod.refused == 1, "an operator sees it at the pod"
    assert not good.refuses() and node.bytes == pod.bytes == 60
    good.add(45)
    assert good.refuses() and pod.refused == 2, "it is the pod that is full"
    greedy.add(-60)
    assert not good.refuses() and node.bytes == good.bytes == 45


def test_tunnels_of_one_peer_have_one_account_which_goes_with_the_last() -> None:
    pod = cast("Any", SimpleNamespace(_held_of=WeakValueDictionary(), holder=Holder(FEW, Held(FEW.buffered_bytes))))
    one, other = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    first = Pod.held_of(pod, one)
    assert Pod.held_of(pod, one) is first and Pod.held_of(pod, other) is not first
    assert first.limit == 50 and list(pod._held_of) == [one], "the other one has no tunnel any more"


@pytest.mark.parametrize(("workers", "share"), [(1, 100), (3, 34), (200, 1)])
def test_a_workers_share_is_never_nothing(workers: int, share: int) -> None:
    assert FEW.share(workers).buffered_bytes == share and FEW.share(workers).streams >= 1


def test_limits_are_read_from_the_environment() -> None:
    config = read(WEFT_STREAMS_PER_POD="1", WEFT_BUFFERED_BYTES_PER_NODE="1000000", WEFT_OFFENDER_PAUSE="2s")
    assert config.pod_limits.streams == 1 and config.pod_limits.connections == limits.POD.connections
    assert config.node_limits.buffered_bytes == 1_000_000 and config.offender_pause_s == 2.0
    with pytest.raises(ValueError, match="WEFT_HANDSHAKES_PER_POD='none': not a number from 1"):
        read(WEFT_HANDSHAKES_PER_POD="none")
