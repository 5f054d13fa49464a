"""Packets with file descriptors over a SOCK_SEQPACKET unix socket: one message, one packet, bounded, nothing lost silently."""

import array
import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

_INT_BYTES = array.array("i").itemsize
_Result = TypeVar("_Result")


class Packet(NamedTuple):
    """One packet; the receiver owns its descriptors. No data and no descriptors: the peer closed its end."""

    data: bytes
    fds: list[int]

    def close(self) -> None:
        """Close all descriptors."""
        close_all(self.fds)


class Truncated(Exception):
    """A packet was longer, or carried more descriptors, than the receiver allows; all that came was closed."""


def send_packet(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one packet whole. OSError as sockets raise it (BlockingIOError from a non-blocking one)."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive_packet(sock: socket.socket, max_bytes: int, max_fds: int) -> Packet:
    """Receive one packet; descriptors are close-on-exec.

    Raises: Truncated beyond the bounds; OSError as sockets raise it, and with EMFILE where no descriptor was left for its own.
    """
    space = socket.CMSG_SPACE(max_fds * _INT_BYTES)
    data, ancillary, flags, _ = sock.recvmsg(max_bytes, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _INT_BYTES])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > max_fds:
        close_all(fds)
        if not flags & socket.MSG_TRUNC and len(fds) < max_fds:  # as many had room in the answer
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        raise Truncated(f"packet beyond {max_bytes} bytes or {max_fds} descriptors")
    return Packet(data, list(fds))


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; those that are closed already do no harm."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


class PacketStream:
    """An asyncio face on a connected SOCK_SEQPACKET socket, which it owns.

    One task at a time may receive and one may send. Cancelling a wait loses no packet.
    """

    def __init__(self, sock: socket.socket, max_bytes: int = 16 << 10, max_fds: int = 1) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._max_bytes = max_bytes
        self._max_fds = max_fds

    @classmethod
    async def connect(cls, path: str, max_bytes: int = 16 << 10, max_fds: int = 1) -> "PacketStream":
        """Connect to the socket at `path`. OSError when nobody listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, path)
        except BaseException:
            sock.close()
            raise
        return cls(sock, max_bytes, max_fds)

    async def receive(self) -> Packet:
        """Wait for the next packet; raises as `receive_packet` does."""
        loop = asyncio.get_running_loop()
        return await _when_ready(
            lambda: receive_packet(self._sock, self._max_bytes, self._max_fds),
            lambda ready: loop.add_reader(self._sock, ready),
            lambda: loop.remove_reader(self._sock),
        )

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Wait until one packet is taken whole. OSError when the peer is gone."""
        loop = asyncio.get_running_loop()
        await _when_ready(
            lambda: send_packet(self._sock, data, fds),
            lambda ready: loop.add_writer(self._sock, ready),
            lambda: loop.remove_writer(self._sock),
        )

    @property
    def sock(self) -> socket.socket:
        """The socket below, for its options (SO_PEERCRED)."""
        return self._sock

    def close(self) -> None:
        """Close the socket; the peer reads an end."""
        self._sock.close()


async def _when_ready(
    attempt: Callable[[], _Result], watch: Callable[[Callable[[], None]], object], unwatch: Callable[[], object]
) -> _Result:
    """Run `attempt` now, and again each time its socket is ready, until it does not say that it would block."""
    ready = asyncio.Event()
    try:
        return attempt()
    except BlockingIOError:
        watch(ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            try:
                return attempt()
            except BlockingIOError:
                continue
    finally:
        unwatch()
