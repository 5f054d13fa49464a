"""Two plain sockets: the pump of connections that no tunnel carries. Same narrow interface as ztunnel.stream.

Each side reads only while nothing waits in front of the other; a FIN is passed on as a FIN once all bytes before it have
left, and a reset as a reset.
"""

from socket import SHUT_WR, socket

from ztunnel import buffers
from ztunnel.backlog import Backlog
from ztunnel.closing import end_on_close
from ztunnel.connection_record import Flag
from ztunnel.limits import Held
from ztunnel.loop import ERROR, IN, OUT, Loop
from ztunnel.stream_owner import NOBODY, Owner

_READS_PER_EVENT = 4
_FULL_BYTES = 64 << 10
_buffer = buffers.plain_view


class _End:
    """One socket, and what waits to be sent into it."""

    __slots__ = (
        "_fd",
        "_loop",
        "_mask",
        "_sock",
        "backlog",
        "closed",
        "moved",
        "other",
        "pump",
        "read_all",
    )

    def __init__(self, loop: Loop, pump: "Passthrough", sock: socket) -> None:
        self.pump = pump
        self.other: _End
        self.closed = False
        self.moved = 0
        """Bytes that came out of this socket and left through the other."""
        self.backlog: Backlog | None = None
        self.read_all = False
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._mask = IN

    def start(self) -> None:
        self._loop.watch(self._fd, IN, self)

    def on_event(self, events: int) -> None:
        if events & OUT and self.backlog is not None:
            self._flush()
        if events & ~OUT and not self.closed:
            if self._mask & IN:
                self._readable()
            elif self.read_all or events & ERROR:
                self.pump.broke()
            else:  # both directions are shut and there is more to read: later, and no spinning until then
                self._loop.forget(self._fd)
                self._mask = -1

    def _readable(self) -> None:
        other = self.other
        for _ in range(_READS_PER_EVENT):
            try:
                count = self._sock.recv_into(_buffer)
                if not count:
                    self.read_all = True
                    self._want(self._mask & ~IN)
                    other.finish()
                    return
                if other.give(_buffer[:count]) < count:
                    self.wait()
                    return
            except BlockingIOError:
                return
            except OSError:
                self.pump.broke()
                return
            if count < _FULL_BYTES:
                return

    def give(self, data: memoryview) -> int:
        """Send into this socket; what it does not take waits."""
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        self.other.moved += sent
        if sent < len(data):
            self.backlog = Backlog(self.pump.held)
            self.backlog.add(data[sent:])
            self._want(self._mask | OUT)
        return sent

    def _flush(self) -> None:
        backlog = self.backlog
        assert backlog is not None
        try:
            self.other.moved += backlog.send(self._sock.send)
        except OSError:
            self.pump.broke()
            return
        if backlog.size:
            return
        self.backlog = None
        self._want(self._mask & ~OUT)
        self.other.go_on()

    def wait(self) -> None:
        """The other side takes no more bytes now."""
        self._want(self._mask & ~IN)

    def go_on(self) -> None:
        """The other side takes bytes again."""
        if self._mask < 0:
            self._mask = IN if self.backlog is None else IN | OUT
            self._loop.watch(self._fd, self._mask, self)
        else:
            self._want(self._mask | IN)

    def finish(self) -> None:
        """No more bytes will come for this socket, and none wait: while some do, the other side is not read, nor its end."""
        if self.read_all:
            self.pump.over("-", "")
            return
        try:
            self._sock.shutdown(SHUT_WR)
        except OSError:
            self.pump.broke()

    def _want(self, mask: int) -> None:
        if mask != self._mask and self._mask >= 0:
            self._mask = mask
            self._loop.modify(self._fd, mask)

    def close(self, reset: bool) -> None:
        self.closed = True
        # The ends and the pump refer to each other, and the worker hardly ever runs the cyclic collector.
        del self.pump, self.other
        if not reset:
            end_on_close(self._sock)
        self._loop.forget_closing(self._fd)
        self._sock.close()
        if self.backlog is not None:
            self.backlog.clear()

    def crashed(self, error: Exception) -> None:
        if not self.closed:
            self.pump.abort("-", f"internal error: {error}")


class Passthrough:
    """One connection of two sockets that reset on close; owns both. `local` is the side of this node's workload."""

    __slots__ = ("_local", "_remote", "closed", "held", "owner")

    is_stuck = False

    def __init__(self, loop: Loop, owner: Owner, local: socket, remote: socket, held: Held, early: bytes = b"") -> None:
        """`held`: on whose account bytes wait; `early`: what came from the local side before."""
        self.owner = owner
        self.held = held
        self.closed = False
        self._local, self._remote = _End(loop, self, local), _End(loop, self, remote)
        self._local.other, self._remote.other = self._remote, self._local
        self._local.start()
        self._remote.start()
        owner.opened()
        if early:
            self._give_early(early)

    def _give_early(self, early: bytes) -> None:
        try:
            if self._remote.give(memoryview(early)) < len(early):
                self._local.wait()
        except OSError:
            self.broke()

    @property
    def sent(self) -> int:
        """Bytes from the local workload."""
        return self._local.moved

    @property
    def received(self) -> int:
        """Bytes to the local workload."""
        return self._remote.moved

    def broke(self) -> None:
        """One socket was reset: so is the other. That is how programs end, no error of ours."""
        self._close("-", "", reset=True)

    def over(self, flag: Flag, error: str) -> None:
        """Both directions have ended."""
        self._close(flag, error, reset=False)

    def abort(self, flag: Flag, error: str) -> None:
        """End both sides now, with resets."""
        self._close(flag, error, reset=True)

    def _close(self, flag: Flag, error: str, reset: bool) -> None:
        if self.closed:
            return
        self.closed = True
        self._local.close(reset)
        self._remote.close(reset)
        owner, self.owner = self.owner, NOBODY
        owner.ended(flag, error)
