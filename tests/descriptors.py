"""The descriptors of this process: which have come, and what becomes of its work when there are none left."""

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


def open_descriptors() -> set[tuple[str, str]]:
    """By number and what it leads to, each socket and pipe its own.

    What is open now and was not before has leaked. Fewer are no sign of anything: the collector closes what other tests left to
    it, and gRPC's threads close theirs late.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except FileNotFoundError:  # the one of this listing
            continue
    return found


@contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """At most `left` more can be opened for the length of a `with` block; the collector makes no room for others meanwhile."""
    gc.collect()
    gc.disable()
    limits, free = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        gc.enable()
