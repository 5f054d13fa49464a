"""Whether a data worker hangs: it says nothing for long, though it has the CPU time to speak or wants none.

A look a second at each process decides. Silence is counted in looks, and only in those that came in time: while this process
stands still (a frozen container, a stopped machine) no worker grows older. And only while the worker could have spoken: who is
stopped or watched by a debugger begins anew; who waits for the disk, or for a CPU on a node that is overloaded, is not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import sysconf
from pathlib import Path
from typing import NamedTuple

EVERY_S = 1.0
SPEAKS_EVERY_S = 2.0
"""A worker says something twice as often."""
_LATE = 2.0
"""Looks that come so many times later than they should count for nothing."""
_SHARE = 1 / 3
"""Who has had so much of its silence as CPU time and said nothing never will."""
_TICKS = sysconf("SC_CLK_TCK")


class Look(NamedTuple):
    """A process, for a moment."""

    state: str
    """As /proc has it: R, S, D, T, t."""
    traced: bool
    cpu_s: float
    """Used since it began."""

    @property
    def is_stopped(self) -> bool:
        """By a signal, or by who traces it."""
        return self.state in "Tt"


def look_at(pid: int) -> Look | None:
    """None: it is gone."""
    process = Path(f"/proc/{pid}")
    try:
        fields = (process / "stat").read_text().rpartition(") ")[2].split()
        traced = "\nTracerPid:\t0\n" not in (process / "status").read_text()
    except OSError:
        return None
    return Look(fields[0], traced, (int(fields[11]) + int(fields[12])) / _TICKS)


@dataclass(slots=True)
class _Silence:
    heard_at: float
    cpu_s: float
    looks: int = 0
    last_cpu_s: float = 0.0


class Watchdog:
    """What all looks together say. Time is an argument; a silence is known by what ended before it."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._looked_at: float | None = None
        self._silences: dict[int, _Silence] = {}

    def judge(self, now: float, workers: Mapping[int, tuple[float, Look | None]]) -> tuple[int, str] | None:
        """Take in, of all that are silent, since when, and a look at each: one that hangs, with the evidence.

        One at a time: after it all others have their whole patience again.
        """
        in_time = self._looked_at is not None and now - self._looked_at < _LATE * EVERY_S
        self._looked_at = now
        self._silences = {pid: silence for pid, silence in self._silences.items() if pid in workers}
        for pid, (heard_at, look) in workers.items():
            if look is not None and (evidence := self._consider(pid, heard_at, look, in_time)):
                self._silences.clear()
                return pid, evidence
        return None

    def _consider(self, pid: int, heard_at: float, look: Look, in_time: bool) -> str:
        silence = self._silences.get(pid)
        if silence is None or silence.heard_at != heard_at or look.traced or look.is_stopped:
            self._silences[pid] = _Silence(heard_at, look.cpu_s, last_cpu_s=look.cpu_s)
            return ""
        slept = look.state == "S" and look.cpu_s == silence.last_cpu_s
        silence.last_cpu_s = look.cpu_s
        if in_time and look.state in "RS":
            silence.looks += 1
        used_s = look.cpu_s - silence.cpu_s
        if silence.looks * EVERY_S < self._patience_s:
            return ""
        if slept:
            return f"asleep, after {used_s:.1f} s of CPU"
        return f"busy, with {used_s:.1f} s of CPU" if used_s >= self._patience_s * _SHARE else ""
