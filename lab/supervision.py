"""One long-running program of the lab (an agent, a proxy, control, a prober), kept running."""

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import cgroup
from lab.launch import Launch
from lab.process import LaunchError, Process, Record

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_HEALTHY_AFTER_S = 30.0
_STOP_GRACE_S = 5.0


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
        self._stopping = asyncio.Event()
        self._restarts = 0
        self._reason = "starting"
        self._cgroup: Path | None = None

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
                code = await self._process.wait()
                self._reason = f"ended with code {code}" if code is not None else "ended"
            except (LaunchError, OSError) as error:
                self._reason = str(error)
            self._process = None
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

    async def _start(self) -> None:
        launch = self._launch()
        self._cgroup = Path(launch.cgroup)
        Path(launch.log).parent.mkdir(parents=True, exist_ok=True)
        self._cgroup.mkdir(parents=True, exist_ok=True)
        if cgroup.populated(self._cgroup):  # what a killed supervisor left: its workers
            await asyncio.to_thread(cgroup.kill, self._cgroup)
        self._process = await Process.start(launch)
        keep_record(self._process.record, self._record)
        _log.info("%s runs as process %d", self.name, self._process.pid)

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
