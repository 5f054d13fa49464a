"""An honest HBONE peer that works beside attackers and writes down what it notices. See tests.lab.attacker."""

import itertools
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from tests.lab.link import Link, Papers

PING = 6
_DATA, _HEADERS, _RST_STREAM = 0, 1, 3
_BEAT_S, _LATE_S = 0.02, 0.05
Span = tuple[float, float]
"""From when to when, by time.monotonic()."""


class Pulse:
    """When a CPU of this machine stood still: on each a thread that does nothing looks whether it had its turn in time."""

    def __init__(self, over: threading.Event) -> None:
        self.pauses: list[Span] = []
        self._over = over
        self.threads = [threading.Thread(target=self._beat, args=(cpu,), daemon=True) for cpu in os.sched_getaffinity(0)]

    def _beat(self, cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        before = time.monotonic()
        while not self._over.wait(_BEAT_S):
            now = time.monotonic()
            if now - before > _BEAT_S + _LATE_S:
                self.pauses.append((before, now))
            before = now


def length_s(span: Span, pauses: Iterable[Span]) -> float:
    """What is left of a span without the pauses in it, which may overlap."""
    began, ended = span
    left = ended - began
    for first, last in sorted(pauses):
        first = max(first, began)
        last = min(last, ended)
        if last > first:
            left -= last - first
            began = last
    return left


def pong(payload: bytes) -> bytes:
    """The frame that answers a PING."""
    return b"\0\0\x08\6\1\0\0\0\0" + payload


class Witness:
    """Streams on a connection that stays, one every 10 ms, and a whole new connection every 150 ms."""

    def __init__(self, host: str, port: int, papers: Papers, opening: bytes, block: bytes) -> None:
        self._place, self._papers, self._opening, self._block = (host, port), papers, opening, block
        self._over = threading.Event()
        self._failures: list[str] = []
        self._spans: dict[str, list[Span]] = {"stream": [], "connection": []}
        self._done = {"stream": 0, "connection": 0}
        self._pulse = Pulse(self._over)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._stay, self._renew)] + self._pulse.threads
        for thread in self._threads:
            thread.start()

    def _connect(self) -> Link:
        return Link(socket.create_connection(self._place, 30), self._papers)

    def _once(self, link: Link, sid: int, first: bool) -> None:
        """One stream: CONNECT, `ping`, its echo, both ends."""
        begin = b"" if not first else self._opening
        head = len(self._block).to_bytes(3, "big") + b"\1\4" + sid.to_bytes(4, "big") + self._block
        data = b"\0\0\4\0\1" + sid.to_bytes(4, "big") + b"ping"
        status, echo, ended, pings = b"", b"", False, b""

        def answered() -> bool:
            nonlocal status, echo, ended, pings
            for kind, flags, stream, payload in link.frames():
                if kind == PING and not flags & 1:
                    pings += pong(payload)
                elif stream == sid and kind == _HEADERS:
                    status = payload[:1]
                    ended = ended or bool(flags & 1)
                elif stream == sid and kind == _DATA:
                    echo += payload
                    ended = ended or bool(flags & 1)
                elif stream == sid and kind == _RST_STREAM:
                    ended = True
            return ended

        link.exchange(begin + head + data, 1, True, answered, 30)
        if pings:
            before = link.sent
            link.exchange(pings, 1, True, lambda: link.sent > before and not link.sending, 10)
        if (status, echo) != (b"\x88", b"ping"):
            raise OSError(f"stream {sid}: status {status!r}, echo {echo!r}, {link.end or 'ended'}")

    def _timed(self, what: str, act: Callable[[], None]) -> None:
        began = time.monotonic()
        act()
        self._spans[what].append((began, time.monotonic()))
        self._done[what] += 1

    def _stay(self) -> None:
        try:
            link = self._connect()
            for sid in itertools.count(1, 2):
                self._timed("stream", lambda sid=sid: self._once(link, sid, sid == 1))  # type: ignore[misc]
                if self._over.wait(0.01):
                    break
            link.sock.close()
        except (OSError, ssl.SSLError) as error:
            self._failures.append(f"standing: {error!r}")

    def _renew(self) -> None:
        while not self._over.wait(0.15):
            try:
                self._timed("connection", self._fresh)
            except (OSError, ssl.SSLError) as error:
                self._failures.append(f"new: {error!r}")

    def _fresh(self) -> None:
        link = self._connect()
        try:
            self._once(link, 1, True)
        finally:
            link.sock.close()

    def counts(self) -> dict[str, int]:
        """All streams until now, and failures."""
        return {"streams": self._done["stream"], "failed": len(self._failures)}

    def lap(self) -> dict[str, list[float]]:
        """What each stream and each connection took since the last lap, in milliseconds; not while a CPU stood still."""
        spans, self._spans = self._spans, {"stream": [], "connection": []}
        return {what: [round(1000 * length_s(one, self._pulse.pauses), 3) for one in some] for what, some in spans.items()}

    def stop(self) -> dict[str, Any]:
        """End it: failures, and of what the last lap took the median and the 99th percentile."""
        self._over.set()
        for thread in self._threads:
            thread.join(100)
        return {"failures": self._failures[:20], **{what: _summary(times) for what, times in self.lap().items()}}


def _summary(times: list[float]) -> dict[str, float]:
    ranked = sorted(times) or [0.0]
    return {"count": len(times), "p50_ms": ranked[len(ranked) // 2], "p99_ms": ranked[len(ranked) * 99 // 100]}
