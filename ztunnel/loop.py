"""The worker's event loop: epoll, level-triggered, one thread, nothing that waits anywhere else.

A turn: wait; call the handler of each ready descriptor (one of them is time: ztunnel.alarm); go on with some of what earlier
turns left (ztunnel.rota); then flush what the turn left in `dirty` (so that all small frames for one tunnel leave in one TLS
write and one send); then do what nobody waits for (`afterwards`), and give the CPU away where bulk keeps small messages
waiting, or where there is more to do than the turn had time for. Handlers must not raise: what one does raise is logged and
ends its own object, never the loop. But a MemoryError ends the loop: it comes anywhere, between two halves of a change, so
nobody knows what accounts, timers and policies are worth after it; and to close things takes memory.
"""

import heapq
import itertools
import logging
import select
import time
from collections.abc import Callable
from os import sched_yield
from typing import Protocol

from ztunnel.alarm import Alarm
from ztunnel.frames import SIZES
from ztunnel.limits import NODE, Held
from ztunnel.rota import Rota

IN, OUT, ERROR, HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP
_EXCLUSIVE = select.EPOLLEXCLUSIVE
_EVENTS_PER_TURN = 80
"""The others come with the next turn. The kernel's answer has its place in libc's cache for small pieces, up to 1 KiB."""
OVERTIME_S = 0.001
"""How long a turn goes on with what earlier ones left; one piece of it at least."""
_BUSY_OVERTIME = 1 / 4
"""The part of it in a turn that others take part in."""
_FEW = 3
"""Tunnels that may each do the work of a turn before anybody looks at the clock."""
LATE_S = 0.001
GREETINGS_PER_TURN = 2
"""Handshakes that a turn moves on at once: half a millisecond each. More are left for later."""
LINGER_S = 0.002
"""How long what is in no hurry waits for company."""
BULKY_BYTES = 64 << 10
"""At once: a tenth of a millisecond, and more of it is on its way."""
MANY_BULKY_TURNS = 16
"""A few MiB: it is not the answer to one request."""
_COMPANY_S, _COMPANY_ELSEWHERE_S = 0.05, 0.6
"""So long after a small message, or one of another worker, which is told of a few times a second, bulk gives the CPU away after
each turn: a twelfth of its speed for a third of their p99."""
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
        self._handlers: list[Handler | None] = []
        """By descriptor."""
        self._new: set[int] = set()
        """Descriptors watched since the last wait: what it told of such a number is about one that was closed meanwhile."""
        self.modify = self._epoll.modify
        """(fd, mask): change what a watched descriptor waits for."""
        self.dirty: dict[Flushable, None] = {}
        self.afterwards: list[tuple[Callable[[], None], Crashing]] = []
        """What nobody waits for, and whose it is: done when the turn has written what somebody may wait for."""
        self._lingering: dict[Flushable, float] = {}
        self.now = time.monotonic()
        self.alone = False
        """One descriptor is ready in this turn: what it brings has nobody to leave with."""
        self.crowded = False
        """So many are ready that together they may take long, whatever the bounds of each: see `is_late`."""
        self.bulky = False
        """This turn moved more than `BULKY_BYTES` at once: where small messages come too, whose ends may wait for this CPU."""
        self.bulky_turns = 0
        """Since somebody began to count."""
        self.on_bulk: Callable[[], None] = lambda: None
        """Called when they are `MANY_BULKY_TURNS`."""
        self.small_at = 0.0
        """When the last small message left."""
        self.small_elsewhere_at = 0.0
        """When the last one left another worker of this node, whose ends may wait for this CPU as well."""
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
        self._timers = _Timers()
        self.watch(self._timers.fd, IN, self._timers)

    @property
    def has_company_elsewhere(self) -> bool:
        """Small messages go on in another worker, whose ends wait for this CPU if bulk goes on here."""
        return self.now - self.small_elsewhere_at < _COMPANY_ELSEWHERE_S

    def watch(self, fd: int, mask: int, handler: Handler) -> None:
        """Call `handler.on_event` while the descriptor is ready for `mask`; who watched it before does not any more."""
        if self._handler(fd) is not None:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
            self._new.add(fd)
        self._handlers[fd] = handler

    def _handler(self, fd: int) -> Handler | None:
        """Whose a descriptor is; from here on there is a place for it. -1, a socket that is closed already, is nobody's."""
        if fd < 0:
            return None
        handlers = self._handlers
        if fd >= len(handlers):
            handlers.extend([None] * (fd + 1 - len(handlers)))
        return handlers[fd]

    def watch_shared(self, fd: int, handler: Handler) -> None:
        """Watch a listener that other processes watch too: the kernel wakes one of them."""
        self._handler(fd)
        self._handlers[fd] = handler
        self._epoll.register(fd, IN | _EXCLUSIVE)
        self._new.add(fd)

    def watches(self, fd: int) -> bool:
        """Whether anybody hears of a descriptor."""
        return self._handler(fd) is not None

    def forget(self, fd: int) -> None:
        """Stop watching; before the descriptor is closed, always: unless `forget_closing` is called."""
        if self._handler(fd) is not None:
            self._handlers[fd] = None
            self._epoll.unregister(fd)

    def forget_closing(self, fd: int) -> None:
        """The same for a descriptor that is closed at once and has no duplicate: closing it is what ends the watch."""
        if self._handler(fd) is not None:
            self._handlers[fd] = None

    def linger(self, what: Flushable) -> None:
        """Flush it after LINGER_S, unless `hurry` says that it went earlier."""
        self._lingering.setdefault(what, self.now + LINGER_S)

    def hurry(self, what: Flushable) -> None:
        """It lingers no more."""
        self._lingering.pop(what, None)

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        """Call once, at a monotonic time or soon after it."""
        self._timers.add(when, call)

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """Call again and again."""

        def again() -> None:
            self.call_at(self.now + seconds, again)
            call()

        self.call_at(self.now + seconds, again)

    def may_look_up(self) -> bool:
        """Count one more DNS message, unless this turn has had its share."""
        self.lookups += 1
        if self.lookups == LOOKUPS_PER_TURN + 1:
            self._give_way()
        return self.lookups <= LOOKUPS_PER_TURN

    def _give_way(self) -> None:
        """Others may have the CPU when this turn has written what it has: it will not sleep, and they would wait for a tick."""
        self.afterwards.append((sched_yield, self._timers))

    def is_late(self) -> bool:
        """Whether this turn has used its time up, or others wait already: who comes now goes on source by source, behind them.

        Asked where many are ready: all of them may be one source's, or take as long as they are let.
        """
        return bool(self._left_over) or time.monotonic() - self.now > LATE_S

    def run(self) -> None:
        """Turn until `running` is false."""
        self._turn(None, once=False)

    def turn(self, longest_wait_s: float | None = None) -> None:
        """Wait for something to do, and do it."""
        self._turn(longest_wait_s, once=True)

    def _turn(self, longest_wait_s: float | None, once: bool) -> None:
        poll, clock, handlers, new = self._epoll.poll, time.monotonic, self._handlers, self._new
        dirty, afterwards, left_over, lingering = self.dirty, self.afterwards, self._left_over, self._lingering
        while True:
            wait_s = longest_wait_s
            if dirty or left_over or afterwards or lingering:
                wait_s = self._wait_s(longest_wait_s)
            self.greetings = self.lookups = 0
            new.clear()
            ready = poll(wait_s, _EVENTS_PER_TURN)
            self.now = clock()
            count = len(ready)
            self.alone, self.crowded = count == 1, count > _FEW
            for fd, events in ready:
                handler = handlers[fd]
                if handler is not None and not (new and fd in new):
                    try:
                        handler.on_event(events)
                    except Exception as error:  # the one catch point of a connection: it alone ends
                        self._contain(handler, error)
                        if not self.running:  # whoever comes next would be judged by a change that broke off
                            return
            if left_over:
                self._go_on(self.overtime_s * _BUSY_OVERTIME if ready else self.overtime_s)
            if lingering:
                self._end_lingering()
            if dirty:
                self._flush()
            if afterwards or self.bulky:
                self._finish_up()
            if once or not self.running:
                return
            handler = None  # what has closed is gone, while this waits

    def _wait_s(self, longest_s: float | None) -> float:
        if self.dirty or self._left_over or self.afterwards:  # `dirty`: by `afterwards`
            return 0
        wait = max(0.0, next(iter(self._lingering.values())) - self.now)  # `now` is a turn old: late by as much, never early
        return wait if longest_s is None else min(wait, longest_s)

    def _flush(self) -> None:
        dirty = self.dirty
        while dirty:
            flushable, _ = dirty.popitem()
            try:
                flushable.flush()
            except Exception as error:  # as above
                self._contain(flushable, error)

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
        if self.crowded:
            until = max(until, self.now + self.overtime_s)
        while (what := self.rota.take()) is not None:
            try:
                what.go_on()
            except Exception as error:  # as above
                self._contain(what, error)
            if time.monotonic() >= until:
                break
        if self._left_over:
            self._give_way()

    def _finish_up(self) -> None:
        calls = self.afterwards[:]
        self.afterwards.clear()
        for call, owner in calls:
            try:
                call()
            except Exception as error:  # as above
                self._contain(owner, error)
        if self.bulky:
            self.bulky = False
            self.bulky_turns += 1
            if self.bulky_turns == MANY_BULKY_TURNS:
                self.on_bulk()
            if self.now - self.small_at < _COMPANY_S or self.has_company_elsewhere:
                sched_yield()

    def _contain(self, owner: Crashing, error: Exception) -> None:
        if isinstance(error, MemoryError):
            raise error
        _log.exception("%s failed and is closed", type(owner).__name__)
        try:
            owner.crashed(error)
        except MemoryError:
            raise
        except Exception:
            _log.exception("%s could not be closed cleanly", type(owner).__name__)


class _Timers:
    """What is due by time, first things first, and the alarm that is set to the first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._alarm = Alarm()
        self.fd = self._alarm.fd

    def add(self, when: float, call: Callable[[], None]) -> None:
        """Call once, at a monotonic time or soon after it."""
        heapq.heappush(self._heap, (when, next(self._sequence), call))
        if self._heap[0][0] == when:
            self._alarm.set(when)

    def on_event(self, _events: int) -> None:
        """Something is due."""
        heap, now, due = self._heap, time.monotonic(), []
        while heap and heap[0][0] <= now:
            due.append(heapq.heappop(heap)[2])
        for call in due:  # what they add waits: by the time of a turn that is late it would be due again, for ever
            try:
                call()
            except MemoryError:
                raise
            except Exception:
                _log.exception("a timer failed")
        self._alarm.set(heap[0][0] if heap else None)

    def crashed(self, error: Exception) -> None:
        """See Crashing: without time a worker is none."""
        raise error
