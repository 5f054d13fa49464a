"""Where memory ends: how one tells, and what to do about it."""

from pathlib import Path

MEND = (
    "give the proxy more (its container's or cgroup's limit, RLIMIT_AS), "
    "or lower WEFT_BUFFERED_BYTES_PER_NODE, WEFT_CONNECTIONS_PER_NODE and WEFT_STREAMS_PER_NODE"
)
_VMSTAT = Path("/proc/vmstat")


def oom_kills(vmstat: Path = _VMSTAT) -> int:
    """How many processes the kernel has killed since its start for want of memory, the machine's or a cgroup's."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:  # who confines us may hide it
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
