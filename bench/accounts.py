"""What processes cost: CPU seconds to the nanosecond, and memory as their proportional share.

A process's CPU clock holds the kernel's work on its behalf (system calls), not what interrupts do for it; so the machine's own
busy time is read beside it.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_BUSY_FIELDS = (1, 2, 3, 6, 7)
"""user, nice, system, irq and softirq of /proc/stat's first line."""


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that processes have used, all threads, user and system. Processes that are gone count nothing."""
    total = 0.0
    for pid in pids:
        try:
            # The kernel's number for another process's CPU clock: see clock_getcpuclockid(3).
            total += time.clock_gettime_ns((~pid << 3) | 2) / 1e9
        except OSError:
            continue
    return total


def machine_cpu_s() -> float:
    """CPU seconds that the whole machine was busy since it started, with interrupts; in steps of 10 ms."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(int(fields[index]) for index in _BUSY_FIELDS) * _TICK_S


def stolen_s() -> float:
    """CPU seconds that the hypervisor gave to others."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) * _TICK_S


def pss_bytes(pid: int) -> int:
    """A process's proportional share of memory: shared pages count by their sharers. Raises: OSError when it is gone."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has no memory")


def kernel_tcp_bytes() -> int:
    """Memory that TCP's buffers hold in the network namespace of the caller, and system-wide since Linux 2.4."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            fields = line.split()
            return int(fields[fields.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def command_of(pid: int) -> str:
    """What a process is, in a few words. Raises: OSError when it is gone."""
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    words = [word.decode(errors="replace") for word in arguments]
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    return os.path.basename(words[0])


def pin(pids: Iterable[int], cpus: set[int]) -> None:
    """Let all threads of processes run on these CPUs alone. Threads that are gone are left out."""
    for pid in pids:
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                os.sched_setaffinity(int(thread), cpus)
            except OSError:
                continue
