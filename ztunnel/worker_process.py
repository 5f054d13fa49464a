"""One data worker's process, and the supervisor's end of its channel: a socket pair with frames both ways (ztunnel.framing)."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from subprocess import DEVNULL

from wire.burst import Burst
from ztunnel import framing
from ztunnel.channel import FromWorker
from ztunnel.shortage import MEND

_MAX_PENDING_BYTES = 256 << 20
_FAREWELL_S = 1.0
"""Between the end of the channel and that of the process, either way."""
_READ_TURNS = 16
"""Receive calls per wake-up: one busy worker must not keep the loop from the others."""
_MALLOC = "glibc.malloc.tcache_count=200"
"""A handshake takes and gives back thousands of small pieces; 7 of a size at hand, as usual, are too few: 3 % of its time."""

_log = logging.getLogger("ztunnel.workers")


class Worker:
    """One running worker process and the supervisor's end of its channel."""

    def __init__(self, index: int, on_message: Callable[[int, FromWorker], None]) -> None:
        self.index = index
        self.gone = asyncio.Event()
        self.heard_at = 0.0
        """When it said something last, or was told everything."""
        self._on_message = on_message
        self._reader, self._writer = framing.FrameReader(), framing.FrameWriter()
        self._burst = Burst()
        self._loop = asyncio.get_running_loop()

    async def start(self, command: Sequence[str], openssl_fd: int) -> None:
        """Start the process, with OpenSSL's configuration in a descriptor. OSError when it cannot be started."""
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                "--channel",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno(), openssl_fd],
                stdin=DEVNULL,
                start_new_session=True,
                env={"GLIBC_TUNABLES": _MALLOC, **os.environ, "OPENSSL_CONF": f"/proc/self/fd/{openssl_fd}"},
            )
        except BaseException:
            self._sock.close()
            raise
        finally:
            theirs.close()
        self._loop.add_reader(self._sock, self._receive)

    def tell(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        """Queue a packed message; a worker that does not keep up is killed, and so is one that cannot be told."""
        if self.gone.is_set():
            return
        try:
            self._writer.push_packed(frame, fds)
        except MemoryError:  # what others are told now, a policy perhaps, it would never know
            self._cannot("tell")
            return
        if self._writer.pending_bytes > _MAX_PENDING_BYTES:
            _log.error("worker %d reads nothing: replacing it", self.index)
            self.kill()
        else:
            self._flush()

    def _flush(self) -> None:
        try:
            if self._writer.flush(self._sock):
                self._loop.remove_writer(self._sock)
            else:
                self._loop.add_writer(self._sock, self._flush)
        except OSError:
            self._hang_up()
        except MemoryError:  # bytes of it would be sent twice
            self._cannot("tell")

    def _cannot(self, what: str) -> None:
        self._hang_up()
        _log.error("worker %d: no memory is left to %s it: replacing it; %s", self.index, what, MEND)

    def _receive(self) -> None:
        self.heard_at = self._loop.time()
        try:
            for _ in range(_READ_TURNS):
                data, fds = framing.receive(self._sock)
                if not data:
                    self._hang_up()
                    return
                for message, _ in self._reader.feed(data, fds):
                    self._burst.give_way()
                    self._on_message(self.index, message)  # type: ignore[arg-type]
                if len(data) < framing.RECEIVE_BYTES:
                    return  # that was all, as a rule: else there is another wake-up
        except BlockingIOError:
            return
        except (OSError, framing.FrameError) as error:
            _log.error("worker %d: channel broken: %s", self.index, error)
            self._hang_up()
        except MemoryError:  # bytes of it are lost: what comes next would be read as something else
            self._cannot("hear")

    def _hang_up(self) -> None:
        if not self.gone.is_set():
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._writer.close()
            self._reader.close()
            self._sock.close()
            self.gone.set()

    def kill(self) -> None:
        """End the process at once, and the channel with it."""
        self._hang_up()
        if self.process.returncode is None:
            self.process.kill()

    async def wait(self) -> int:
        """Wait for the end of the process, or of its channel; the other has a moment to follow, for the last words in it."""
        exited = asyncio.ensure_future(self.process.wait())
        gone = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait([exited, gone], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([exited, gone], timeout=_FAREWELL_S)
        finally:
            gone.cancel()
            self.kill()
            await exited
        return exited.result()


def how_it_ended(code: int, killed_for_memory: bool = False) -> str:
    """A process by its exit status, in plain words; `killed_for_memory`: the kernel killed somebody while it ran."""
    if code == -signal.SIGKILL and killed_for_memory:
        return f"was killed by SIGKILL, as the kernel does where memory ends (its log, dmesg, says whom): {MEND}"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"
