"""The node agent's orders: ZDS over a SOCK_SEQPACKET socket, this proxy being its client.

One connection is one `Session` (ztunnel.zds_session). Losing it stops no pod. A connection whose snapshot was complete is
followed by the next at once; one that ended before, after a pause that doubles, so that an agent that breaks off again and
again is not stormed. It begins at 20 ms, and where the agent did not even take our first word at 5 ms, give or take a fifth.
Where this process has no descriptor left for a pod's namespace, the next comes after 5 s: it would end as soon.
"""

import asyncio
import logging
import random
import time
from pathlib import Path

from mesh.proto.zds_pb2 import V1, Ack, WorkloadResponse, ZdsHello
from wire.descriptors import MENDS, SAYS_SO_EVERY_S
from wire.fds import Packet, PacketStream, Truncated
from ztunnel.zds_session import RETRY_S, PodHost, PodInfo, ReadError, Session, ZdsProtocolError

_FIRST_PAUSE_S, _FIRST_HELLO_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.005, 15.0
_HELLO_JITTER = 0.2
_SEND_TIMEOUT_S = 5.0
_MAX_PACKET_BYTES = 4096
"""An agent's longest message, with Kubernetes' longest names, has about 900."""
_MAX_ERROR_CHARACTERS = 900
"""Agents read acks into 1024 bytes."""

_log = logging.getLogger(__name__)


class HelloError(Exception):
    """The agent let us connect, and does not take our first word."""


class ZdsClient:
    """Keeps a connection to the agent, and carries out what it says."""

    def __init__(self, path: Path, host: PodHost) -> None:
        self._path = path
        self._host = host
        self._session: Session | None = None
        self._completed = False
        self._said_at = -SAYS_SO_EVERY_S
        """When there was no descriptor left."""
        self.last_error = "not connected yet"

    @property
    def connected(self) -> bool:
        """Whether an agent is there."""
        return self._session is not None

    @property
    def ready(self) -> bool:
        """Whether the agent has named all pods of the node; false without a connection."""
        return self._session is not None and self._session.ready

    @property
    def pending(self) -> list[PodInfo]:
        """The pods that could not be started yet."""
        return self._session.pending if self._session else []

    @property
    def troubles(self) -> dict[str, str]:
        """Why they could not, by `namespace/name`."""
        return self._session.troubles if self._session else {}

    async def run(self) -> None:
        """Stay connected until cancelled. Raises: ZdsProtocolError, after it was answered."""
        pause_s, hello_pause_s = _FIRST_PAUSE_S, _FIRST_HELLO_PAUSE_S
        while True:
            self._completed = False
            try:
                await self._one_connection()
                self.last_error = "the agent closed the connection"
            except HelloError as error:
                self.last_error = str(error)
                await asyncio.sleep(hello_pause_s * random.uniform(1 - _HELLO_JITTER, 1 + _HELLO_JITTER))
                hello_pause_s = min(hello_pause_s * 2, _LONGEST_PAUSE_S)
                continue
            except ReadError as error:
                self.last_error = f"the agent sent no message: {error}"
            except (OSError, TimeoutError) as error:
                self.last_error = str(error) or "the agent does not read"
                if error.errno in MENDS:
                    self._say_that_none_is_left(error)
                    await asyncio.sleep(RETRY_S)
                    continue
            hello_pause_s = _FIRST_HELLO_PAUSE_S
            if self._completed:
                pause_s = _FIRST_PAUSE_S
                _log.warning("agent at %s: %s; connecting anew", self._path, self.last_error)
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _say_that_none_is_left(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._said_at >= SAYS_SO_EVERY_S:
            self._said_at = now
            reason = f"{error.strerror}: {MENDS[error.errno or 0]}"
            _log.warning(
                "agent at %s: no descriptor is left for what it says: %s; connecting every %g s", self._path, reason, RETRY_S
            )

    async def _one_connection(self) -> None:
        stream = await PacketStream.connect(str(self._path), _MAX_PACKET_BYTES, max_fds=4)
        session = Session(self._host)
        try:
            await self._greet(stream)
            self._session = session
            while packet := await self._receive(stream, session):
                await self._carry_out(stream, session, packet)
                self._completed = session.ready
        finally:
            self._session = None
            session.close()
            stream.close()

    async def _greet(self, stream: PacketStream) -> None:
        try:
            await self._send(stream, ZdsHello(version=V1).SerializeToString())
        except (OSError, TimeoutError) as error:
            raise HelloError(str(error) or "the agent does not read") from error

    async def _receive(self, stream: PacketStream, session: Session) -> Packet | None:
        """The next packet, None at the end; meanwhile what is pending is tried again."""
        while True:
            retry_at = session.retry_at
            try:
                async with asyncio.timeout(None if retry_at is None else retry_at - time.monotonic()):
                    packet = await stream.receive()
            except Truncated:
                await self._send(stream, _ack("failure to read message : received truncated message"))
                raise ReadError("received truncated message") from None
            except TimeoutError:
                await session.retry()
                continue
            except OSError as error:
                if error.errno in MENDS:
                    await self._send(stream, _ack(f"failure to read message : {error.strerror}: {MENDS[error.errno or 0]}"))
                raise
            return packet if packet.data or packet.fds else None

    async def _carry_out(self, stream: PacketStream, session: Session, packet: Packet) -> None:
        try:
            error = await session.handle(packet)
        except ReadError as failure:
            await self._send(stream, _ack(f"failure to read message : {failure}"))
            raise
        except ZdsProtocolError as failure:
            await self._send(stream, _ack(f'failure to process message : ProtocolError("{failure}")'))
            raise
        await self._send(stream, _ack(error))

    async def _send(self, stream: PacketStream, data: bytes) -> None:
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            await stream.send(data)


def _ack(error: str) -> bytes:
    return bytes(WorkloadResponse(ack=Ack(error=error[:_MAX_ERROR_CHARACTERS])).SerializeToString())
