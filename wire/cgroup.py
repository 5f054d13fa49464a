"""Where cgroup v2 is mounted: /sys/fs/cgroup in production, /sys/fs/cgroup/unified on hybrid hosts."""

import os
from collections.abc import Container
from functools import cache
from pathlib import Path


def cgroup2_mount(mounts: str = "/proc/self/mounts") -> Path:
    """Find the cgroup v2 mount point.

    Raises: RuntimeError when none is mounted, with the mend.
    """
    for line in Path(mounts).read_text().splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1])
    raise RuntimeError("no cgroup v2 is mounted: mount one with: mount -t cgroup2 none /sys/fs/cgroup/unified")


def cgroup_id(path: Path) -> int:
    """The kernel's id of a cgroup v2 folder, as bpf_get_current_cgroup_id reports it: its inode number."""
    return path.stat().st_ino


def cgroup_of(pid: int) -> Path:
    """The cgroup v2 folder of a process.

    Raises: OSError when the process is gone; RuntimeError when it has no v2 cgroup.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return cgroup2_mount() / line[3:].lstrip("/")
    raise RuntimeError(f"process {pid} has no cgroup v2")


def processes_of(cgroups: Container[int]) -> list[int]:
    """The processes in these cgroups, by id; those in cgroups below them do not count."""
    mount = cgroup2_mount()

    @cache
    def id_of(line: str) -> int:
        return cgroup_id(mount / line[3:].lstrip("/"))

    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            lines = Path("/proc", pid, "cgroup").read_text().splitlines()
            if any(id_of(line) in cgroups for line in lines if line.startswith("0::")):
                found.append(int(pid))
        except OSError:
            continue  # ended meanwhile
    return found
