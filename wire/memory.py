"""Memory of a process that is told a large mesh at once: neither walked over by the collector, nor kept when it is free."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_libc = ctypes.CDLL(None)


def give_back() -> None:
    """Return to the system what is free: by default glibc keeps what lies below anything that is still in use."""
    _libc.malloc_trim(0)


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Take in what is large, holds no cycles and stays: the collector would walk over all of it, again and again."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
