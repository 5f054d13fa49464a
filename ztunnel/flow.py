"""What flow control and the state machine know of one stream, and the calls between a connection and its owner."""

from abc import ABC, abstractmethod
from typing import Protocol

from ztunnel.connection_record import Flag
from ztunnel.fields import Fields


class Stream(ABC):
    """One CONNECT stream: what flow control and the state machine know of it. The shell adds where its bytes go."""

    __slots__ = ("answered", "credit", "local_closed", "receive_window", "remote_closed", "sid", "window")

    def __init__(self) -> None:
        self.sid = 0
        """0 until it has its place on a connection."""
        self.window = 0
        """Bytes that we may send."""
        self.receive_window = 0
        """Bytes that the peer may send."""
        self.credit = 0
        """Bytes delivered since the last WINDOW_UPDATE."""
        self.local_closed = False
        self.remote_closed = False
        self.answered = False

    @abstractmethod
    def take(self, data: memoryview) -> int:
        """Bytes of the peer; returns how many are delivered now. The rest is reported to `delivered` or `discarded` later."""

    @abstractmethod
    def peer_ended(self) -> None:
        """No more bytes will come."""

    @abstractmethod
    def peer_reset(self, code: int) -> None:
        """The peer gave the stream up; it has no place on the connection any more."""

    @abstractmethod
    def peer_answered(self, fields: Fields) -> None:
        """The response to our request."""

    @abstractmethod
    def connection_lost(self, flag: Flag, error: str) -> None:
        """The whole connection is gone, and with it the stream."""

    @abstractmethod
    def resume(self) -> None:
        """Windows opened again after this stream was blocked."""


class Owner(Protocol):
    """Who owns a connection."""

    def requested(self, sid: int, fields: Fields) -> Stream | None:
        """A new stream of the peer. None: it has been refused by `refuse` or `reject`."""

    def retired(self) -> None:
        """A stream has left the connection, or the peer said GOAWAY: there may be room, or nothing more to do."""


class _Nobody:
    """Owns a connection that is closed, for who still holds a stream of it."""

    def requested(self, sid: int, fields: Fields) -> Stream | None:
        """Nobody answers."""
        return None

    def retired(self) -> None:
        """Nobody waits for room."""


NOBODY = _Nobody()
