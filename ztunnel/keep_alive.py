"""Whether the peer of a connection is there: asked by PINGs where it says nothing. Pure: the time is an argument."""

PING_INTERVAL_S = 10.0
PING_TIMEOUT_S = 20.0


class KeepAlive:
    """The PINGs of one connection."""

    __slots__ = ("_next_at", "_sent_at")

    def __init__(self, now: float) -> None:
        self._next_at = now + PING_INTERVAL_S
        self._sent_at = 0.0
        """Of the one that waits for its answer; 0: none does."""

    def answered(self) -> None:
        """The peer answers."""
        self._sent_at = 0.0

    def is_lost(self, now: float, heard_at: float) -> bool:
        """Whether the last PING was not answered in time, nor anything else said since.

        Behind bulk on a slow link the answer takes longer than a PING may, though the peer is plainly there.
        """
        return self._sent_at > 0 and now >= max(self._sent_at, heard_at) + PING_TIMEOUT_S

    def asks(self, now: float) -> bool:
        """Whether a PING is due, which is taken for sent then."""
        if now < self._next_at:
            return False
        self._next_at = now + PING_INTERVAL_S
        if self._sent_at:
            return False
        self._sent_at = now
        return True
