"""A word to whoever waits for the next state: no values, no queue."""

from collections.abc import Callable


class Notice:
    """Listeners that are called after a change."""

    def __init__(self) -> None:
        self._listeners: dict[int, Callable[[], None]] = {}
        self._next = 0

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change (it must not block); returns what ends that."""
        number = self._next
        self._next += 1
        self._listeners[number] = listener

        def silence() -> None:
            self._listeners.pop(number, None)

        return silence

    def give(self) -> None:
        """Call every listener."""
        for listener in list(self._listeners.values()):
            listener()
