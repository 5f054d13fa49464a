"""What a pod and the node may hold: compared, counted, divided among workers."""

import pytest

from tests.ztunnel.test_config import read
from ztunnel import limits
from ztunnel.limits import Held, Holder, Limits

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


def test_bytes_wait_on_the_account_of_the_pod_and_of_the_node() -> None:
    node = Held(150)
    one, other = Held(100, node), Held(100, node)
    one.add(90)
    assert not one.refuses() and not other.refuses()
    one.add(20)
    assert one.refuses() and not other.refuses() and one.refused == 1
    other.add(80)
    assert other.refuses() and node.refused == 1 and other.refused == 0, "it is the node that is full"
    one.add(-110)
    assert node.bytes == other.bytes == 80 and not other.refuses()


@pytest.mark.parametrize(("workers", "share"), [(1, 100), (3, 34), (200, 1)])
def test_a_workers_share_is_never_nothing(workers: int, share: int) -> None:
    assert FEW.share(workers).buffered_bytes == share and FEW.share(workers).streams >= 1


def test_limits_are_read_from_the_environment() -> None:
    config = read(WEFT_STREAMS_PER_POD="7", WEFT_BUFFERED_BYTES_PER_NODE="1000000", WEFT_OFFENDER_PAUSE="2s")
    assert config.pod_limits.streams == 7 and config.pod_limits.connections == limits.POD.connections
    assert config.node_limits.buffered_bytes == 1_000_000 and config.offender_pause_s == 2.0
    with pytest.raises(ValueError, match="WEFT_HANDSHAKES_PER_POD='none': not a number from 1"):
        read(WEFT_HANDSHAKES_PER_POD="none")
