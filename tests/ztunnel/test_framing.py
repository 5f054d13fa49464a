"""Framing: whatever the cuts, messages and descriptors arrive whole, in order and together; a broken peer leaks nothing."""

import os
import pickle
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.workload import Workload
from tests.descriptors import few_descriptors, open_descriptors
from ztunnel import channel, framing

pytestmark = pytest.mark.unit

PODS = st.builds(channel.AddPod, st.text(), st.text(), st.text(), st.text())
MESSAGES = st.lists(st.tuples(PODS, st.integers(0, channel.MAX_FDS)), max_size=6)


@given(MESSAGES, st.lists(st.integers(1, 90), min_size=1, max_size=30))
def test_any_cut_gives_the_same_messages(messages: list[tuple[channel.AddPod, int]], cuts: list[int]) -> None:
    # Descriptors are numbers to the reader: they arrive no later than their frame's first byte.
    stream, owners = b"", {}
    number = 1000
    for message, count in messages:
        owners[len(stream)] = list(range(number, number + count))
        number += count
        stream += framing.pack(message, count)
    reader, received, position = framing.FrameReader(), [], 0
    while position < len(stream):
        size = cuts[position % len(cuts)]
        fds = [fd for start, owned in owners.items() if position <= start < position + size for fd in owned]
        received += reader.feed(stream[position : position + size], fds)
        position += size
    expected = [(message, fds) for (message, _), fds in zip(messages, owners.values(), strict=True)]
    assert received == expected


def test_descriptors_arrive_with_their_message_over_a_real_pair() -> None:
    before = open_descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    pipes = [os.pipe() for _ in range(4)]
    writer, reader, received = framing.FrameWriter(), framing.FrameReader(), []
    big = channel.UpdateInventory([Workload(uid=f"c//Pod/ns/{i}", name=str(i), namespace="ns") for i in range(5000)], [])
    writer.push(big)
    for number, (_, end) in enumerate(pipes):
        writer.push(channel.AddPod(str(number), "ns", "pod", "sa"), [end])
        os.close(end)
    done = False
    while len(received) < 5:
        done = done or writer.flush(ours)
        received += reader.feed(*framing.receive(theirs))
    assert done and writer.pending_bytes == 0
    assert received[0] == (big, [])
    for number, (message, fds) in enumerate(received[1:]):
        assert isinstance(message, channel.AddPod) and message.uid == str(number)
        os.write(fds[0], b"%d" % number)
        assert os.read(pipes[number][0], 10) == b"%d" % number
        os.close(fds[0])
        os.close(pipes[number][0])
    ours.close()
    theirs.close()
    assert open_descriptors() <= before


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack("!IB", channel.MAX_FRAME_BYTES + 1, 0), "beyond the channel's bounds"),
        (struct.pack("!IB", 3, channel.MAX_FDS + 1), "beyond the channel's bounds"),
        (struct.pack("!IB", 3, 2) + b"abc", "names 2 descriptors, 1 came"),
        (struct.pack("!IB", 3, 1) + b"abc", "holds no message"),
        (framing.pack("message"), "that no frame names"),
    ],
)
def test_a_broken_frame_is_refused_and_its_descriptor_closed(data: bytes, reason: str) -> None:
    before = open_descriptors()
    with pytest.raises(framing.FrameError, match=reason):
        framing.FrameReader().feed(data, [os.open("/dev/null", os.O_RDONLY)])
    assert open_descriptors() <= before


def test_what_came_before_a_broken_frame_is_closed_with_it() -> None:
    before = open_descriptors()
    data = framing.pack(channel.RemovePod("u"), 1) + struct.pack("!IB", 3, 0) + b"abc"
    with pytest.raises(framing.FrameError, match="holds no message"):
        framing.FrameReader().feed(data, [os.open("/dev/null", os.O_RDONLY)])
    assert open_descriptors() <= before


def test_where_memory_ends_the_frame_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no memory left ends, and says so."""

    def load(_view: memoryview) -> object:
        raise MemoryError

    before = open_descriptors()
    data = framing.pack(channel.RemovePod("u"), 1)
    monkeypatch.setattr(pickle, "loads", load)
    with pytest.raises(MemoryError):
        framing.FrameReader().feed(data, [os.open("/dev/null", os.O_RDONLY)])
    assert open_descriptors() <= before


def test_who_is_closed_again_closes_nothing_of_others_and_begins_anew() -> None:
    """A number that was given back may be another's descriptor by then."""
    message = channel.AddPod("uid", "name", "namespace", "account")
    frame = framing.pack(message, 1)
    reader, fd = framing.FrameReader(), os.dup(0)
    assert reader.feed(frame[:-1], [fd]) == []
    reader.close()
    os.dup2(0, fd)
    reader.close()
    os.fstat(fd)
    assert reader.feed(frame, [fd]) == [(message, [fd])]
    os.close(fd)


def test_what_is_too_large_never_leaves() -> None:
    with pytest.raises(ValueError, match=r"UpdateInventory of .* bytes: the channel carries at most"):
        framing.pack(channel.UpdateInventory([], ["x" * channel.MAX_FRAME_BYTES]))
    with pytest.raises(ValueError, match="10 descriptors"):
        framing.pack(channel.Shutdown(1.0), channel.MAX_FDS + 1)


def test_what_is_just_as_large_as_it_may_be_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    message = channel.RemovePod("u" * 1000)
    frame = framing.pack(message)
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", len(frame) - 5)
    assert framing.FrameReader().feed(framing.pack(message)) == [(message, [])]
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", len(frame) - 6)
    with pytest.raises(ValueError, match="the channel carries at most"):
        framing.pack(message)
    with pytest.raises(framing.FrameError, match="beyond the channel's bounds"):
        framing.FrameReader().feed(frame)


def test_what_arrives_is_not_inherited_by_what_the_receiver_starts() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        framing.send(ours, framing.pack(channel.RemovePod("u"), 1), [ours.fileno()])
        _, (fd,) = framing.receive(theirs)
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_the_peers_end_is_no_bytes_to_who_reads_and_an_error_to_who_writes() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        theirs.close()
        assert framing.receive(ours) == (b"", [])
        writer = framing.FrameWriter()
        writer.push(channel.RemovePod("u"))
        with pytest.raises(BrokenPipeError):
            writer.flush(ours)


def test_a_message_that_waits_keeps_its_descriptor_open() -> None:
    before = open_descriptors()
    read_end, write_end = os.pipe()
    writer = framing.FrameWriter()
    writer.push(channel.RemovePod("1"), [write_end])
    os.close(write_end)
    writer.close()
    assert os.read(read_end, 1) == b""
    others = [os.dup(read_end) for _ in range(8)]  # one of them has the number that it had
    writer.close()
    assert not writer.pending_bytes
    for fd in (read_end, *others):
        os.close(fd)
    assert open_descriptors() <= before and pickle.loads(framing.pack(1)[5:]) == 1


def test_a_message_for_which_no_descriptors_are_left_leaves_none_behind() -> None:
    before, writer = open_descriptors(), framing.FrameWriter()
    with few_descriptors(2), pytest.raises(OSError, match="Too many open files"):
        writer.push(channel.AddPod("u", "ns", "pod", "sa"), [0] * 5)
    assert not writer.pending_bytes and open_descriptors() <= before


def test_a_message_whose_descriptors_find_no_room_comes_without() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    before = open_descriptors()
    pod, other = channel.AddPod("u", "ns", "pod", "sa"), channel.RemovePod("u")
    reader, heard = framing.FrameReader(), []
    with ours, theirs:
        for message, count in ((other, 0), (pod, 5), (other, 0), (pod, 1)):
            framing.send(ours, framing.pack(message, count), [0] * count)
        with few_descriptors(2):
            while len(heard) < 4:
                heard += reader.feed(*framing.receive(theirs))
        lost, (found,) = heard[1][1], heard[3][1]
        os.close(found)
        assert [message for message, _ in heard] == [other, pod, other, pod] and lost == []
        assert open_descriptors() <= before


def test_a_list_is_several_messages() -> None:
    batch: list[object] = [channel.RemovePod("a"), channel.RemovePod("b")]
    reader = framing.FrameReader()
    assert reader.feed(framing.pack(batch)) == [(message, []) for message in batch]
