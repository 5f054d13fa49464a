"""The system calls that Python 3.11's standard library lacks, by way of libc."""

import ctypes
import os

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 1, 23, 24, 36
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into a namespace."""
    _check(_libc.setns(fd, kind), "setns")


def unshare(kinds: int) -> None:
    """Give the calling thread namespaces of its own."""
    _check(_libc.unshare(kinds), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a file system, or bind one place to another. Raises: OSError naming the target."""
    arguments = (source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None)
    _check(_libc.mount(*arguments), f"mount {kind or source} at {target}")


def detach(target: str) -> None:
    """Unmount now, whoever still uses it."""
    _check(_libc.umount2(target.encode(), _MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root, and put the former one at `old`."""
    _check(_libc.pivot_root(new.encode(), old.encode()), f"pivot_root {new}")


def sethostname(name: str) -> None:
    """Name the calling process's UTS namespace."""
    text = name.encode()
    _check(_libc.sethostname(text, len(text)), "sethostname")


def keep_capabilities(kept: frozenset[int]) -> None:
    """Take all other capabilities out of the bounding set: no program that is executed from now on can have them."""
    number = 0
    while _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        if number not in kept:
            _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), f"drop capability {number}")
        number += 1


def die_with_parent(signal_number: int) -> None:
    """Have the calling process get a signal when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "PR_SET_PDEATHSIG")


def become_subreaper() -> None:
    """Become the parent of orphaned descendants, so that their end and exit code can be waited for."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")
