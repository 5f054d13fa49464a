"""Maps and the ring buffer by descriptor."""

import errno
import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from bpf import libbpf
from bpf.libbpf import MapType

pytestmark = pytest.mark.kernel


@pytest.fixture
def new_map() -> Iterator[Callable[..., libbpf.Map]]:
    with ExitStack() as stack:

        def make(kind: MapType = MapType.HASH, entries: int = 4) -> libbpf.Map:
            return libbpf.Map(stack.enter_context(libbpf.create_map(kind, "probe", (4, 8), entries)))

        yield make


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def test_entries(new_map: Callable[..., libbpf.Map]) -> None:
    table = new_map()
    assert (table.name, table.capacity, table.get(key(1))) == ("probe", 4, None)
    table.put(key(1), b"abcdefgh")
    table.put(key(2), b"ABCDEFGH")
    assert dict(table.items()) == {key(1): b"abcdefgh", key(2): b"ABCDEFGH"}
    assert (table.delete(key(1)), table.delete(key(1))) == (True, False)
    assert list(table.keys()) == [key(2)]


def test_a_full_map_says_so(new_map: Callable[..., libbpf.Map]) -> None:
    table = new_map()
    for number in range(4):
        table.put(key(number), bytes(8))
    with pytest.raises(OSError) as refused:
        table.put(key(9), bytes(8))
    assert refused.value.errno == errno.E2BIG


def test_sizes_are_checked_before_the_kernel_reads_past_them(new_map: Callable[..., libbpf.Map]) -> None:
    with pytest.raises(ValueError, match="4 and 8 bytes"):
        new_map().put(b"123", bytes(8))
    with pytest.raises(ValueError, match="4 and 8 bytes"):
        new_map().get(b"12345")
    with pytest.raises(ValueError, match="4 and 8 bytes"):
        new_map().delete(b"")


def test_a_per_cpu_value_has_one_part_per_cpu(new_map: Callable[..., libbpf.Map]) -> None:
    table = new_map(MapType.PERCPU_ARRAY, entries=1)
    value = table.get(key(0))
    assert value is not None
    assert len(value) % 8 == 0
    assert len(value) // 8 >= (os.cpu_count() or 1)


def test_an_empty_ring_has_nothing_to_read() -> None:
    with libbpf.create_map(MapType.RINGBUF, "ring", (0, 0), 4096) as ring_map:
        ring = libbpf.RingBuffer(ring_map.fd)
        assert select.select([ring.fileno()], [], [], 0)[0] == []
        assert ring.read() == []
        ring.close()
        ring.close()


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="pinned object /nowhere"):
        libbpf.open_pin(libbpf.Path("/nowhere"))
