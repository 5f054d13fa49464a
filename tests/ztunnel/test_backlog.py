"""Bytes that wait: nothing lost, nothing out of order, all counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.backlog import Backlog
from ztunnel.loop import Loop

pytestmark = pytest.mark.unit


@given(st.lists(st.one_of(st.binary(max_size=300_000), st.integers(0, 200_000)), max_size=20))
def test_what_goes_in_comes_out_once_and_in_order(steps: list[bytes | int]) -> None:
    """Bytes are added; a number is how much the socket takes until it would block."""
    loop = Loop()
    backlog = Backlog(loop.held)
    wanted, got = bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            backlog.add(memoryview(step))
            wanted += step
        else:
            room = [step]

            def send(data: memoryview, room: list[int] = room) -> int:
                if not room[0]:
                    raise BlockingIOError
                count = min(room[0], len(data))
                room[0] -= count
                got.extend(data[:count])
                return count

            before = len(got)
            assert backlog.send(send) == len(got) - before
        assert backlog.size == len(wanted) - len(got) == loop.held.bytes
    assert wanted.startswith(got)
    backlog.clear()
    assert backlog.size == loop.held.bytes == 0


def test_single_bytes_do_not_cost_an_object_each() -> None:
    backlog = Backlog(Loop().held)
    for _ in range(100_000):
        backlog.add(b"x")
    assert len(backlog._chunks) <= 2


def test_an_error_of_the_socket_keeps_the_count_right() -> None:
    loop = Loop()
    backlog = Backlog(loop.held)
    backlog.add(bytes(200_000))
    backlog.add(b"tail")
    calls = [200_000]

    def send(data: memoryview) -> int:
        if not calls:
            raise ConnectionResetError
        return calls.pop()

    with pytest.raises(ConnectionResetError):
        backlog.send(send)
    assert backlog.size == loop.held.bytes == 4
