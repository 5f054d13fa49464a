"""One long-running program of the lab (an agent, a proxy, control, a prober), kept running."""

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import cgroup, logs
from lab.launch import Launch
from lab.process import LaunchError, Process, Record

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_HEALTHY_AFTER_S = 30.0
_STOP_GRACE_S = 5.0
_READY_S, _POLL_S = 20.0, 0.02
_BY_SIGNAL = 128
"""Exit codes from here on: the program was ended, and knows nothing of it."""
_LAST_WORDS = 500
_DRAIN_S = 40.0
"""More than a proxy's own deadline."""


def pause_s(failures: int, first_s: float = _FIRST_PAUSE_S, longest_s: float = _LONGEST_PAUSE_S) -> float:
    """How long to wait before attempt number `failures` + 1: doubles each time, up to a limit."""
    return min(longest_s, first_s * 2.0 ** min(failures, 30))


def keep_record(record: Record, path: Path) -> None:
    """Remember a process for the next daemon, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(asdict(record)))
    os.replace(fresh, path)


def adopt(path: Path) -> Process | None:
    """The process that `keep_record` remembered, if it still runs."""
    try:
        document = json.loads(path.read_text())
        return Process.adopt(Record(int(document["pid"]), int(document["started_ticks"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class ProgramState:
    """How a supervised program does."""

    name: str
    pid: int
    """0 while it does not run."""
    restarts: int
    reason: str
    """Why it does not run, or ended last."""


class Program:
    """Runs one program, and again when it ends. `run` is its task; cancelling that leaves the program to the next daemon."""

    def __init__(self, name: str, launch: Callable[[], Launch], record: Path) -> None:
        self.name = name
        self._launch = launch
        self._record = record
        self._process: Process | None = None
        self._successor: Process | None = None
        self._replacing = False
        self._replaced = asyncio.Event()
        self._drains: set[asyncio.Future[None]] = set()
        self._stopping = asyncio.Event()
        self._restarts = 0
        self._reason = "starting"

    @property
    def state(self) -> ProgramState:
        """How it does now."""
        return ProgramState(self.name, self._process.pid if self._process else 0, self._restarts, self._reason)

    async def run(self) -> None:
        """Keep it running until `stop`."""
        failures = 0
        self._process = adopt(self._record)
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                if self._process is None:
                    await self._start()
                assert self._process is not None
                self._reason = ""
                process = self._process
                code = await self._end_of(process)
                if self._process is not process:
                    continue  # its successor runs
                self._reason = _ending(code, Path(self._launch().log))
            except (LaunchError, OSError) as error:
                self._reason = str(error)
            self._process = self._successor
            if self._stopping.is_set():
                break
            failures = 0 if time.monotonic() - began > _HEALTHY_AFTER_S else failures + 1
            wait_s = pause_s(failures - 1) if failures else _FIRST_PAUSE_S
            _log.warning("%s: %s; starting it again in %.1f s", self.name, self._reason, wait_s)
            self._restarts += 1
            try:
                async with asyncio.timeout(wait_s):
                    await self._stopping.wait()
            except TimeoutError:
                pass
        self._record.unlink(missing_ok=True)

    async def _end_of(self, process: Process) -> int | None:
        """Its exit code; anything, once a successor is in its place: that one's end counts then, while this one drains."""
        self._replaced.clear()
        ended, replaced = asyncio.ensure_future(process.wait()), asyncio.ensure_future(self._replaced.wait())
        try:
            await asyncio.wait((ended, replaced), return_when=asyncio.FIRST_COMPLETED)
            return ended.result() if ended.done() else None
        finally:
            ended.cancel()
            replaced.cancel()

    async def _start(self) -> None:
        launch = self._launch()
        own = Path(launch.cgroup)
        Path(launch.log).parent.mkdir(parents=True, exist_ok=True)
        cgroup.create(own)
        if cgroup.populated(own) and not self._drains:  # what a killed one left; who drains carries connections still
            await asyncio.to_thread(cgroup.kill, own)
        self._process = await Process.start(launch)
        try:
            keep_record(self._process.record, self._record)
        except OSError as error:  # on a full disk it runs all the same: the next daemon starts another in its place
            _log.warning("%s: no record of process %d is kept: %s", self.name, self._process.pid, error)
        _log.info("%s runs as process %d", self.name, self._process.pid)

    async def replace(self, unready: Callable[[int], Awaitable[str]]) -> tuple[int, int]:
        """Start it once more beside itself, and end the old process when the new one is ready: both numbers, old and new.

        `unready` says of a process why it is not ready, or nothing. Raises: LaunchError with the reason when the new one does
        not become ready; it is ended then, and the old one goes on. Does not wait until the old one has drained.
        """
        old = self._process
        if old is None or self._replacing:
            raise LaunchError(f"{self.name} is being started already")
        self._replacing = True
        try:
            fresh = await self._succeed(unready)
        finally:
            self._replacing, self._successor = False, None
        _log.info("%s runs as process %d, process %d drains", self.name, fresh.pid, old.pid)
        old.signal(signal.SIGTERM)
        drained = asyncio.ensure_future(_see_off(old))
        self._drains.add(drained)
        drained.add_done_callback(self._drains.discard)
        return old.pid, fresh.pid

    async def _succeed(self, unready: Callable[[int], Awaitable[str]]) -> Process:
        launch = self._launch()
        self._successor = fresh = await Process.start(launch)
        try:
            await self._await_ready(fresh, unready, launch.log)
            keep_record(fresh.record, self._record)
            if self._process is not fresh:  # else the old one has ended, and this one is waited for already
                self._process = fresh
                self._replaced.set()
        except BaseException:
            fresh.signal(signal.SIGKILL)
            raise
        return fresh

    async def _await_ready(self, process: Process, unready: Callable[[int], Awaitable[str]], log: str) -> None:
        ended = asyncio.ensure_future(process.wait())
        reason = "it said nothing"
        try:
            async with asyncio.timeout(_READY_S):
                while reason := await unready(process.pid):
                    if ended.done():
                        raise LaunchError(f"the successor of {self.name} {_ending(ended.result(), Path(log))}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise LaunchError(f"the successor of {self.name} is not ready after {_READY_S:.0f} s: {reason}") from error
        finally:
            ended.cancel()

    async def stop(self) -> None:
        """End it: SIGTERM, then everything in its cgroup."""
        self._stopping.set()
        if self._process is not None:
            self._process.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_GRACE_S):
                    await self._process.wait()
            except TimeoutError:
                _log.warning("%s does not end within %.0f s: killed", self.name, _STOP_GRACE_S)
        path = Path(self._launch().cgroup)
        await asyncio.to_thread(cgroup.kill, path)


def _ending(code: int | None, log: Path) -> str:
    """What became of a program; who ended by itself, and not well, had a reason to: its last line."""
    if code is None:
        return "ended"
    said = logs.tail(log, 1).strip()[:_LAST_WORDS] if 0 < code < _BY_SIGNAL else ""
    return f"ended with code {code}" + (f": {said}" if said else "")


async def _see_off(process: Process) -> None:
    try:
        async with asyncio.timeout(_DRAIN_S):
            await process.wait()
    except TimeoutError:
        process.signal(signal.SIGKILL)
