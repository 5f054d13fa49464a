"""Frames of pickled messages, with file descriptors, over the stream socket pair between supervisor and worker.

A frame is a 5-byte header (length of the pickle, number of descriptors) and the pickle. Descriptors leave with the frame's
first byte. A frame without descriptors may hold a list of messages: a batch of events is pickled in half the time, as names
and identities that its records share are written once. The kernel hands a receiver bytes of several sends at once but never
of two sends that carry descriptors, and it keeps their order, so a reader queues what arrives and gives every frame as many
as its header names.

No event loop here: sockets may block or not, and a call that cannot go on raises BlockingIOError as sockets do.
"""

import array
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

from ztunnel.channel import MAX_FDS, MAX_FRAME_BYTES

_HEADER = struct.Struct("!IB")
RECEIVE_BYTES = 256 << 10  # a socket pair's default buffer holds about 208 KiB: one call empties it
_LOST = -1
"""In the place of a message's descriptors, for which there was no room here."""
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class FrameError(Exception):
    """The peer broke the framing; the channel is of no use any more."""


def pack(message: object, fd_count: int = 0) -> bytes:
    """Make the frame of a message that travels with `fd_count` descriptors.

    Raises: ValueError when the message is longer, or has more descriptors, than the channel allows.
    """
    payload = pickle.dumps(message, protocol=5)
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"{type(message).__name__} of {len(payload)} bytes: the channel carries at most {MAX_FRAME_BYTES}")
    if fd_count > MAX_FDS:
        raise ValueError(f"{type(message).__name__} with {fd_count} descriptors: the channel carries at most {MAX_FDS}")
    return _HEADER.pack(len(payload), fd_count) + payload


class FrameReader:
    """Turns what a socket delivers into messages; owns descriptors until their message is complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[tuple[object, list[int]]]:
        """Take one receive call's bytes and descriptors; return the messages that are complete, in order.

        A message whose descriptors were lost on the way comes with none.
        Raises: FrameError for a header beyond the bounds, missing or surplus descriptors; MemoryError. Then all are closed.
        """
        self._fds.extend(fds)
        self._buffer += data
        messages: list[tuple[object, list[int]]] = []
        try:
            offset = self._take_frames(messages)
        except (FrameError, MemoryError):
            for _, owned in messages:
                _close_all(owned)
            self.close()
            raise
        del self._buffer[:offset]
        return messages

    def _take_frames(self, messages: list[tuple[object, list[int]]]) -> int:
        offset = 0
        while len(self._buffer) - offset >= _HEADER.size:
            length, fd_count = _HEADER.unpack_from(self._buffer, offset)
            if length > MAX_FRAME_BYTES or fd_count > MAX_FDS:
                raise FrameError(f"frame of {length} bytes with {fd_count} descriptors: beyond the channel's bounds")
            if len(self._fds) < fd_count and _LOST not in self._fds:
                raise FrameError(f"frame names {fd_count} descriptors, {len(self._fds)} came")
            end = offset + _HEADER.size + length
            if len(self._buffer) < end:
                return offset
            with memoryview(self._buffer) as view:
                message = _load(view[offset + _HEADER.size : end])
            if isinstance(message, list) and not fd_count:
                messages += [(one, []) for one in message]
            else:
                messages.append((message, self._take_descriptors(fd_count)))
            offset = end
        if offset == len(self._buffer) and self._fds:
            raise FrameError(f"{len(self._fds)} descriptors came that no frame names")
        return offset

    def _take_descriptors(self, count: int) -> list[int]:
        if count and self._fds[0] == _LOST:
            self._fds.popleft()
            return []
        return [self._fds.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close the descriptors of an unfinished frame and forget its bytes."""
        _close_all(self._fds)
        self._fds.clear()
        self._buffer.clear()


def _load(view: memoryview) -> object:
    try:
        with view:
            return pickle.loads(view)
    except MemoryError:  # no fault of the frame's
        raise
    except Exception as error:  # a broken pickle raises whatever its opcodes run into
        raise FrameError(f"frame holds no message: {error}") from error


class FrameWriter:
    """The bytes and descriptors that wait for a socket to take them; owns duplicates of the descriptors until they left."""

    def __init__(self) -> None:
        self._pending: deque[tuple[memoryview, list[int]]] = deque()
        self.pending_bytes = 0

    def push(self, message: object, fds: Sequence[int] = ()) -> None:
        """Queue a message. The caller keeps its descriptors; raises as `pack` does."""
        self.push_packed(pack(message, len(fds)), fds)

    def push_packed(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        """Queue a frame that `pack` made: one packing serves several writers. Raises: OSError without descriptors left."""
        own: list[int] = []
        try:
            for fd in fds:
                own += [os.dup(fd)]  # each is in the list, to be closed, before the next can fail
        except OSError:
            _close_all(own)
            raise
        self._pending.append((memoryview(frame), own))
        self.pending_bytes += len(frame)

    def flush(self, sock: socket.socket) -> bool:
        """Send what the socket takes now; True when nothing waits any more. OSError when the peer is gone."""
        while self._pending:
            view, fds = self._pending[0]
            try:
                sent = send(sock, view, fds)
            except BlockingIOError:
                return False
            _close_all(fds)
            self.pending_bytes -= sent
            if sent == len(view):
                self._pending.popleft()
            else:
                self._pending[0] = (view[sent:], [])
        return True

    def close(self) -> None:
        """Forget what waits."""
        for _, fds in self._pending:
            _close_all(fds)
        self._pending.clear()
        self.pending_bytes = 0


def send(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int] = ()) -> int:
    """One sendmsg: the count of bytes that left; the descriptors left with the first of them."""
    if not fds:
        return sock.send(data, socket.MSG_NOSIGNAL)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    return sock.sendmsg([data], [rights], socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One recvmsg for `FrameReader.feed`; no bytes mean that the peer closed its end."""
    data, ancillary, flags, _ = sock.recvmsg(RECEIVE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        _close_all(fds)
        return data, [_LOST]
    return data, list(fds)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
