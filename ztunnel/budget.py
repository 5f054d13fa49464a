"""What the peer of one HTTP/2 connection may have us do that moves no bytes; whoever overdraws it loses the connection."""

from ztunnel import frames
from ztunnel.allowance import Allowance

_BYTES_PER_WINDOW_UPDATE = 256
"""A peer that acknowledges every few bytes earns its WINDOW_UPDATEs by what we send it."""
_CROSSING, _CROSSING_PER_BYTE = 0.1, 0.01 / frames.MIN_MAX_FRAME_BYTES
"""What may be on its way when we reset a stream, by what it will cost: an answer, and DATA as far as the window goes."""


class Budget:
    """An allowance for each kind of frames."""

    __slots__ = ("_paid_bytes", "answers", "control", "empty", "refusals", "resets", "windows")

    def __init__(self) -> None:
        self.control = Allowance(256, 32)
        self.empty = Allowance(128, 16)
        self.resets = Allowance(200, 20)
        self.refusals = Allowance(128, 16)
        self.answers = Allowance(1280, 160)
        """Final ones, which may be nobody's fault: a policy refuses, or an application is gone."""
        self.windows = Allowance(4096, 256)
        self._paid_bytes = 0

    def shrink(self, share: float) -> None:
        """Leave a part of each."""
        for allowance in (self.control, self.empty, self.resets, self.refusals, self.answers, self.windows):
            allowance.shrink(share)

    def sent(self, count: int) -> None:
        """So many bytes have been sent to the peer since the beginning, which it may acknowledge."""
        self.windows.earn((count - self._paid_bytes) / _BYTES_PER_WINDOW_UPDATE)
        self._paid_bytes = count

    def excuse_crossing(self, window: int) -> None:
        """We reset a stream, to which the peer may have sent `window` bytes, and an answer, before it knows."""
        self.control.earn(_CROSSING + window * _CROSSING_PER_BYTE)
