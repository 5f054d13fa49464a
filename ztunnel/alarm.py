"""A timer of the kernel's as a descriptor: with it a loop waits without a time limit.

A limit for each wait is a timer of the kernel's too, made and taken back each time: 2 % of a round trip's CPU time. This one is
set when what is due first changes.
"""

import ctypes
import os
import struct
import time

_TFD_TIMER_ABSTIME = 1
_TIMES = struct.Struct("=qqqq")
"""itimerspec: interval, none, then when; seconds and nanoseconds each."""
_libc = ctypes.CDLL(None, use_errno=True)


class Alarm:
    """Owns its descriptor, which is ready from the set time until it is set again. (Python 3.11 has no os.timerfd_create.)"""

    def __init__(self) -> None:
        """Raises: OSError."""
        self.fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise _failure()

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def set(self, when: float | None) -> None:
        """To a monotonic time; one that is over is now; None: never. Raises: OSError."""
        at_ns = 0 if when is None else max(1, int(when * 1e9))
        if _libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, _TIMES.pack(0, 0, *divmod(at_ns, 1_000_000_000)), None):
            raise _failure()


def _failure() -> OSError:
    error = ctypes.get_errno()
    return OSError(error, os.strerror(error))
