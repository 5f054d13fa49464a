"""Blocking steps of an asynchronous life, done in a thread and never half done."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_its_end(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a step in a thread.

    Cancel: comes into effect when the step has ended, so that what undoes it never runs beside it.
    """
    running = asyncio.get_running_loop().run_in_executor(None, lambda: step(*args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
