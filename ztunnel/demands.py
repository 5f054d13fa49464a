"""Who waits for the control plane to tell of something, on demand: a worker's questions, their answers, and the bounds of both.

A connection that meets a name that nobody knows asks for it and waits; it goes on when all of its names are answered (each once
for all who wait for it) and nothing new is missing, and is refused when the answer was, or none comes in time: to go on without
knowing would be to go past a waypoint. What was answered a moment ago is not asked for again.
"""

from collections.abc import Callable
from typing import NamedTuple

from ztunnel.channel import Demand, FromWorker, Unasked
from ztunnel.loop import Deadlines, Loop
from ztunnel.questions import Asker, Questions

MAX_WAITING = 4096
"""Connections of this worker."""
MAX_WAITING_PER_ASKER = 256
"""So that a pod, or a peer, that asks for the whole internet keeps nobody else from asking."""
FRESH_S = 2.0
MAX_FRESH = 8192
MAX_NAME = 512
_ROUNDS = 4
"""An address, its waypoint, the way to it, and one to spare."""


class _Waiter(NamedTuple):
    """One connection."""

    asker: Asker
    missing: Callable[[], list[str]]
    go: Callable[[str], None]
    names: set[str]
    """Not answered yet."""
    rounds: int


class Demands:
    """One per worker of a node on demand."""

    def __init__(self, loop: Loop, emit: Callable[[FromWorker], None], timeout_s: float, rate_per_s: float) -> None:
        """`rate_per_s`: names that each may have asked for."""
        self._loop = loop
        self._emit = emit
        self._questions = Questions(rate_per_s)
        self._mentions = Questions(rate_per_s)
        self._waiters: dict[object, _Waiter] = {}
        self._by_name: dict[str, dict[object, None]] = {}
        self._per_asker: dict[str, int] = {}
        self._fresh: dict[str, tuple[float, str]] = {}
        """Names that were answered, until when that counts, and why not if they were refused."""
        self._mentioned: dict[str, float] = {}
        """Names that were asked for although nobody waits, until when that is enough."""
        self.deadlines = Deadlines(timeout_s)
        self.refused = 0
        """Connections that were not let wait, or waited in vain."""

    def __len__(self) -> int:
        return len(self._waiters)

    def ask(self, who: object, asker: Asker, missing: Callable[[], list[str]], go: Callable[[str], None]) -> bool:
        """Ask for what is `missing`; False: nothing is, go on at once. Else `go` is called later, with why not or nothing."""
        return self._ask(who, asker, missing, go, _ROUNDS)

    def _ask(self, who: object, asker: Asker, missing: Callable[[], list[str]], go: Callable[[str], None], rounds: int) -> bool:
        names, error = self._open(missing()) if rounds else (set(), "")
        if error or not names:
            if error:
                self._later(go, error)
            return bool(error)
        new = [name for name in names if name not in self._by_name]
        refusal = self._refusal(asker, names, len(new))
        if refusal:
            self._later(go, refusal)
            return True
        self._waiters[who] = _Waiter(asker, missing, go, names, rounds - 1)
        self._per_asker[asker.key] = self._per_asker.get(asker.key, 0) + 1
        for name in names:
            self._by_name.setdefault(name, {})[who] = None
        self.deadlines.add(who, self._loop.now, lambda: self._expire(who))
        if new:
            self._emit(Demand(tuple(new)))
        return True

    def _refusal(self, asker: Asker, names: set[str], new: int) -> str:
        """Why nobody may wait for these names now; empty where one may, and then the new ones count."""
        if len(self._waiters) >= MAX_WAITING or self._per_asker.get(asker.key, 0) >= MAX_WAITING_PER_ASKER:
            return f"too many connections wait for the control plane to tell of their destinations: {min(names)}"
        if new and not self._questions.allow(asker.key, new, self._loop.now):
            self._emit(Unasked(asker.identity))
            return (
                f"the control plane is not asked for {min(names)}: {asker.identity} asks for too much (WEFT_QUESTIONS_PER_POD)"
            )
        return ""

    def _open(self, names: list[str]) -> tuple[set[str], str]:
        """Those of the names that are to be asked for, and the first refusal among the others."""
        left = set()
        for name in names:
            until, error = self._fresh.get(name, (0.0, ""))
            if until > self._loop.now:
                if error:
                    return set(), f"{name}: {error}"
            elif len(name) <= MAX_NAME:
                left.add(name)
        return left, ""

    def _later(self, go: Callable[[str], None], error: str) -> None:
        self.refused += 1
        self._loop.call_at(self._loop.now, lambda: go(error))

    def mention(self, name: str) -> None:
        """Ask for what would be good to know, and wait for nothing."""
        now = self._loop.now
        if name in self._by_name or self._fresh.get(name, (0.0, ""))[0] > now or self._mentioned.get(name, 0.0) > now:
            return
        if not self._mentions.allow("", 1, now):
            return  # strangers' addresses: it is good to know whose they are, and no more
        self._mentioned.pop(name, None)
        self._mentioned[name] = now + FRESH_S
        if len(self._mentioned) > MAX_FRESH:
            del self._mentioned[next(iter(self._mentioned))]
        self._emit(Demand((name,)))

    def answered(self, answers: dict[str, str]) -> None:
        """The control plane answered, and what it said is in the inventory."""
        for name, error in answers.items():
            self._remember(name, error)
            for who in self._by_name.pop(name, {}):
                waiter = self._waiters.get(who)
                if waiter is None:  # the one before it took it along
                    continue
                waiter.names.discard(name)
                if error:
                    self._go(who, f"{name}: {error}")
                elif not waiter.names:
                    self._look_again(who)

    def _remember(self, name: str, error: str) -> None:
        self._fresh.pop(name, None)
        self._fresh[name] = (self._loop.now + FRESH_S, error)
        if len(self._fresh) > MAX_FRESH:
            del self._fresh[next(iter(self._fresh))]

    def _look_again(self, who: object) -> None:
        waiter = self._waiters[who]
        self.forget(who)
        if not self._ask(who, waiter.asker, waiter.missing, waiter.go, waiter.rounds):
            waiter.go("")

    def _expire(self, who: object) -> None:
        names = ", ".join(sorted(self._waiters[who].names))
        self._go(who, f"the control plane did not tell of {names} within {self.deadlines.timeout_s:g} s")

    def _go(self, who: object, error: str) -> None:
        waiter = self._waiters[who]
        self.refused += 1
        self.forget(who)
        waiter.go(error)

    def forget(self, who: object) -> None:
        """Who waited is gone."""
        waiter = self._waiters.pop(who, None)
        if waiter is None:
            return
        self.deadlines.discard(who)
        key = waiter.asker.key
        self._per_asker[key] -= 1
        if not self._per_asker[key]:
            del self._per_asker[key]
        for name in waiter.names:
            others = self._by_name.get(name)
            if others is not None:
                others.pop(who, None)
                if not others:
                    del self._by_name[name]
