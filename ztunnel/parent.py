"""A worker's life ends with its supervisor's: who serves without one serves stale policy.

A worker that runs hears the end of its channel; one that is stopped, or hangs, would hold its pods' connections for ever.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends. Raises: OSError.

    A parent that is gone already is not noticed: its end of the channel is closed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
