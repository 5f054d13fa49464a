"""The signals that end a process of ours, from its first moment on: before there is a loop to hear them, they are remembered.

Nothing here may import what takes time: until `remember` is called, a signal ends the process without a word.
"""

import signal
from collections.abc import Callable, Iterator

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_early: list[int] = []


def _heard() -> Iterator[int]:
    for number in _NUMBERS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup: its terminal is to end without it
            yield number


def remember() -> None:
    """Until somebody listens: see `listen`."""
    for number in _heard():
        signal.signal(number, lambda number, _: _early.append(number))


def ignore() -> None:
    """As a data worker does: a terminal sends them to the whole group, and its supervisor says when and how to end."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def listen(end: Callable[[int], object]) -> None:
    """Have the running loop call `end` for each from now on, in the place of who listened before; and for one that came."""
    from asyncio import get_running_loop  # only here: see above

    loop = get_running_loop()
    for number in _heard():
        loop.add_signal_handler(number, end, number)
    if _early:
        loop.call_soon(end, _early[0])
        _early.clear()
