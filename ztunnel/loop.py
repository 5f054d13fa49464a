"""The worker's event loop: epoll, level-triggered, one thread, nothing that waits anywhere else.

A turn: wait; call the handler of each ready descriptor; go on with some of what earlier turns left (ztunnel.rota); then flush
what the turn left in `dirty` (so that all small frames for one tunnel leave in one TLS write and one send); then do what nobody
waits for (`afterwards`); then what is due by time. Handlers must not raise: what one does raise is logged and ends its own
object, never the loop.
"""

import heapq
import itertools
import logging
import select
import time
from collections.abc import Callable
from typing import Protocol

from ztunnel.frames import SIZES
from ztunnel.limits import NODE, Held
from ztunnel.rota import Rota

IN, OUT, ERROR, HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP
_EXCLUSIVE = select.EPOLLEXCLUSIVE
_LONGEST_WAIT_S = 60.0
OVERTIME_S = 0.001
"""How long a turn goes on with what earlier ones left; one piece of it at least."""
_BUSY_OVERTIME = 1 / 4
"""The part of it in a turn that others take part in."""
GREETINGS_PER_TURN = 2
"""Handshakes that a turn moves on at once: half a millisecond each. More are left for later."""
LINGER_S = 0.002
"""How long what is in no hurry waits for company."""
LOOKUPS_PER_TURN = 2
"""DNS messages that a turn takes in at once, of all pods and nameservers: 50 to 200 us each. More are left for later."""
_log = logging.getLogger("ztunnel.worker")


class Crashing(Protocol):
    """Whatever the loop calls."""

    def crashed(self, error: Exception) -> None:
        """A call raised what it should not have: give everything back, now."""


class Handler(Crashing, Protocol):
    """What a descriptor belongs to."""

    def on_event(self, events: int) -> None:
        """The descriptor is ready."""


class Flushable(Crashing, Protocol):
    """What writes at the end of a turn."""

    def flush(self) -> None:
        """Write everything that the turn left."""


class Deadlines:
    """Things that must happen within one and the same time: what is oldest is due first. Add, discard and find are O(1)."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._due: dict[object, tuple[float, Callable[[], None]]] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, what: object, now: float, expire: Callable[[], None]) -> None:
        """Start the time of one thing, or start it again."""
        self._due.pop(what, None)
        self._due[what] = (now + self.timeout_s, expire)

    def discard(self, what: object) -> None:
        """It happened, or does not matter any more."""
        self._due.pop(what, None)

    def evict(self, what: object) -> None:
        """Let one expire before its time."""
        due = self._due.pop(what, None)
        if due is not None:
            due[1]()

    def evict_oldest(self) -> None:
        """Let the oldest expire before its time."""
        if self._due:
            self.evict(next(iter(self._due)))

    def expire(self, now: float) -> None:
        """Call everything that is due."""
        while self._due:
            what, (at, call) = next(iter(self._due.items()))
            if at > now:
                return
            del self._due[what]
            call()


class Loop:
    """One per worker."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self.modify = self._epoll.modify
        """(fd, mask): change what a watched descriptor waits for."""
        self.dirty: dict[Flushable, None] = {}
        self.afterwards: list[tuple[Callable[[], None], Crashing]] = []
        """What nobody waits for, and whose it is: done when the turn has written what somebody may wait for."""
        self._lingering: dict[Flushable, float] = {}
        self.now = time.monotonic()
        self.running = True
        self.held = Held(NODE.buffered_bytes)
        """Bytes that wait in the worker for slow receivers."""
        self.sizes = SIZES
        """What peers of tunnels may send."""
        self.rota = Rota()
        self._left_over = self.rota.waiting
        self.overtime_s = OVERTIME_S
        self.greetings = 0
        """Handshakes moved on in this turn."""
        self.lookups = 0
        """DNS messages taken in this turn."""
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()

    def watch(self, fd: int, mask: int, handler: Handler) -> None:
        """Call `handler.on_event` while the descriptor is ready for `mask`; who watched it before does not any more."""
        (self._epoll.modify if fd in self._handlers else self._epoll.register)(fd, mask)
        self._handlers[fd] = handler

    def watch_shared(self, fd: int, handler: Handler) -> None:
        """Watch a listener that other processes watch too: the kernel wakes one of them."""
        self._handlers[fd] = handler
        self._epoll.register(fd, IN | _EXCLUSIVE)

    def forget(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed, always: unless `forget_closing` is called."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def forget_closing(self, fd: int) -> None:
        """The same for a descriptor that is closed at once and has no duplicate: closing it is what ends the watch."""
        self._handlers.pop(fd, None)

    def linger(self, what: Flushable) -> None:
        """Flush it after LINGER_S, unless `hurry` says that it went earlier."""
        self._lingering.setdefault(what, self.now + LINGER_S)

    def hurry(self, what: Flushable) -> None:
        """It lingers no more."""
        self._lingering.pop(what, None)

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        """Call once, at a monotonic time or soon after it."""
        heapq.heappush(self._timers, (when, next(self._sequence), call))

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Call again and again."""

        def again() -> None:
            self.call_at(self.now + seconds, again)
            call()

        self.call_at(self.now + seconds, again)

    def may_look_up(self) -> bool:
        """Count one more DNS message, unless this turn has had its share."""
        self.lookups += 1
        return self.lookups <= LOOKUPS_PER_TURN

    def run(self) -> None:
        """Turn until `running` is false."""
        while self.running:
            self.turn()

    def turn(self, longest_wait_s: float = _LONGEST_WAIT_S) -> None:
        """Wait for something to do, and do it."""
        wait = self._wait_s(longest_wait_s)
        self.greetings = self.lookups = 0
        ready = self._epoll.poll(wait)
        self.now = time.monotonic()
        handlers = self._handlers
        for fd, events in ready:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.on_event(events)
                except Exception as error:  # the one catch point of a connection: it alone ends
                    self._contain(handler, error)
        if self._left_over:
            self._go_on(self.overtime_s * _BUSY_OVERTIME if ready else self.overtime_s)
        dirty = self.dirty
        if self._lingering:
            self._end_lingering()
        while dirty:
            flushable, _ = dirty.popitem()
            try:
                flushable.flush()
            except Exception as error:  # as above
                self._contain(flushable, error)
        if self.afterwards:
            self._finish_up()
        if self._timers and self._timers[0][0] <= self.now:
            self._fire()

    def _wait_s(self, longest_s: float) -> float:
        if self.dirty or self._left_over or self.afterwards:  # `dirty` and `afterwards`: by a timer
            return 0
        wait = longest_s
        if self._timers:
            wait = self._timers[0][0] - self.now  # `now` is a turn old: a timer may be late by as much, never early
        if self._lingering:
            wait = min(wait, next(iter(self._lingering.values())) - self.now)
        return wait if wait > 0 else 0

    def _end_lingering(self) -> None:
        due = self.now
        while self._lingering:
            what, until = next(iter(self._lingering.items()))
            if until > due:
                return
            del self._lingering[what]
            self.dirty[what] = None

    def _go_on(self, overtime_s: float) -> None:
        until = time.monotonic() + overtime_s
        while (what := self.rota.take()) is not None:
            try:
                what.go_on()
            except Exception as error:  # as above
                self._contain(what, error)
            if time.monotonic() >= until:
                return

    def _finish_up(self) -> None:
        calls, self.afterwards = self.afterwards, []
        for call, owner in calls:
            try:
                call()
            except Exception as error:  # as above
                self._contain(owner, error)

    def _contain(self, owner: Crashing, error: Exception) -> None:
        _log.exception("%s failed and is closed", type(owner).__name__)
        try:
            owner.crashed(error)
        except Exception:
            _log.exception("%s could not be closed cleanly", type(owner).__name__)

    def _fire(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            _, _, call = heapq.heappop(self._timers)
            try:
                call()
            except Exception:
                _log.exception("a timer failed")
