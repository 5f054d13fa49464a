"""The worker's end of the channel to its supervisor. It never blocks; events may be dropped, replies never."""

import errno
import socket
from collections.abc import Callable

from ztunnel.channel import Closed, EarlyFailure, FromWorker, Opened, Progress, Revocation
from ztunnel.framing import FrameError, FrameReader, FrameWriter, receive
from ztunnel.loop import IN, OUT, Loop

BATCH_S = 0.2
"""Events travel together: what wakes a supervisor and its agent costs them half a millisecond, however little it is."""
BATCH_EVENTS = 256
"""Packed at once: a quarter of a millisecond. More than that come earlier."""
MAX_PENDING_BYTES = 8 << 20
_EVENT_BYTES = 160
"""About what an event takes."""
_EVENTS = (Opened, Progress, Closed, EarlyFailure, Revocation)


class Link:
    """Messages in and out of one socket, which it owns."""

    def __init__(self, loop: Loop, sock: socket.socket, take: Callable[[object, list[int]], None]) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._take = take
        self._reader = FrameReader()
        self._writer = FrameWriter()
        self._batch: list[FromWorker] = []
        self._fresh: dict[int, int] = {}
        """Connections that opened in this batch, with the place of their Opened."""
        self._flush_due = False
        self._writing = False
        self.dropped_events = 0
        loop.watch(sock.fileno(), IN, self)

    def emit(self, message: FromWorker) -> None:
        """Send a message: events in batches, replies at once. A record is told as it is when its batch leaves."""
        if isinstance(message, _EVENTS):
            if self._writer.pending_bytes + len(self._batch) * _EVENT_BYTES > MAX_PENDING_BYTES:
                self.dropped_events += 1
                return
            if not self._flush_due:
                self._flush_due = True
                self._loop.call_at(self._loop.now + BATCH_S, self._flush_batch)
            if isinstance(message, Opened):
                self._fresh[message.record.number] = len(self._batch)
            elif isinstance(message, Closed) and (place := self._fresh.pop(message.record.number, -1)) >= 0:
                message.told = False  # half of what a short connection costs here and there
                self._batch[place] = message
                return
            self._batch.append(message)
            if len(self._batch) == BATCH_EVENTS:
                self._push_batch()
                self._write()
        else:
            self._push_batch()
            self._writer.push(message)
            self._write()

    def _flush_batch(self) -> None:
        self._flush_due = False
        self._push_batch()
        self._write()

    def _push_batch(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._fresh.clear()
            self._writer.push(batch)

    def _write(self) -> None:
        try:
            done = self._writer.flush(self._sock)
        except OSError:
            self._loop.running = False  # nobody is there: who serves without its supervisor serves stale policy
            return
        if done == self._writing:
            self._writing = not done
            self._loop.modify(self._sock.fileno(), IN | OUT if self._writing else IN)

    def on_event(self, events: int) -> None:
        """The supervisor said something, or takes more."""
        if events & OUT:
            self._write()
        if events & ~OUT:
            self._read()

    def _read(self) -> None:
        try:
            data, fds = receive(self._sock)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.EPIPE):
                raise
            data, fds = b"", []
        if not data:
            self._loop.running = False
            return
        for message, owned in self._reader.feed(data, fds):
            self._take(message, owned)

    def crashed(self, error: Exception) -> None:
        """A broken channel cannot be mended: the supervisor starts a new worker."""
        self._loop.running = False
        if isinstance(error, FrameError):
            self._reader.close()

    def finish(self, timeout_s: float) -> None:
        """Send what waits before the process ends; blocks for at most this long."""
        self._push_batch()
        try:
            self._sock.settimeout(timeout_s)
            self._writer.flush(self._sock)
        except OSError:
            pass  # the supervisor is gone
        self._sock.close()
