"""What processes cost: CPU seconds to the nanosecond, and memory as their proportional share.

A process's CPU clock holds the kernel's work on its behalf (system calls), not what interrupts do for it; so the machine's own
busy time is read beside it.
"""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LISTEN = "0A"
"""A socket's state in /proc/net/tcp (include/net/tcp_states.h)."""
_SLABS = Path("/sys/kernel/slab")
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


def forget_files() -> None:
    """Have the kernel forget directory entries and inodes that nobody uses. OSError for who is not root."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def shrink_slabs() -> None:
    """Have the kernel's CPUs give back the free objects that they keep at hand, which its account takes for objects in use.

    Kernels that do not show their slabs as files keep them. OSError for who is not root.
    """
    for file in _SLABS.glob("*/shrink"):
        if not file.parent.is_symlink():
            file.write_text("1")


def kernel_bytes(slabinfo: str | None = None) -> int:
    """Memory that the kernel's objects hold, sockets and epoll entries among them: the machine's, objects in use alone.

    Slabs that are kept for later do not count, so that what was there before makes no difference: `shrink_slabs` comes first.
    """
    text = Path("/proc/slabinfo").read_text() if slabinfo is None else slabinfo
    lines = (line.split() for line in text.splitlines()[2:])
    return sum(int(fields[1]) * int(fields[3]) for fields in lines if len(fields) > 3)


def started_s(pid: int) -> float:
    """When a process started, in seconds of CLOCK_BOOTTIME, in steps of 10 ms. Raises: OSError when it is gone."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[19]) * _TICK_S


def parent(pid: int) -> int:
    """Who started a process. Raises: OSError when it is gone."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[1])


def listens(pid: int, port: int) -> bool:
    """Whether anybody listens at a port in the network namespace of a process. Raises: OSError when it is gone."""
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


def kill(pid: int) -> None:
    """End a process at once; one that is gone is fine."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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
