"""A container's root: the host's files underneath, everything writable its own.

The host's / is the read-only lower layer of an overlay whose upper layer lives in memory and goes with the container. What
changes while a system runs is not inherited: /tmp, /run, /dev/shm start empty, /proc and /sys are the container's own and
cannot be written where they lead to the kernel's settings, /dev has the harmless devices. The lab's own folders (root key,
tokens, volumes of others) are hidden. Where the kernel refuses the overlay, / is bound read-only, with the usual writable
folders in memory.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

from lab.syscalls import (
    CLONE_NEWNS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SLAVE,
    detach,
    mount,
    pivot_root,
    unshare,
)

_SCRATCH_SIZE = "size=1g,mode=755"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_WRITABLE = {"/tmp": "1777", "/run": "755"}
_WRITABLE_WITHOUT_OVERLAY = {"/var/tmp": "1777", "/var/log": "755", "/var/lib": "755", "/var/cache": "755", "/root": "700"}
_READ_ONLY_PROC = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus")
_HIDDEN_PROC = ("/proc/kcore", "/proc/keys", "/proc/timer_list")
_HOSTS_OWN = ("/proc", "/sys", "/dev", "/run")
"""What a node's process sees of the host, whatever root it runs from."""
_REPLACED = ("/var/lib", "/tmp")
"""Empty in a node image's root while it is used: nothing is ever written there."""
_SYSTEM_FOLDERS = ("/proc", "/sys", "/dev", "/run", "/tmp")


class Root(NamedTuple):
    """What goes into a container's root; all sources are the host's paths."""

    scratch: str
    """An empty folder to mount on. Only seen from inside the container's mount namespace."""
    hidden: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """(source, path in the container): bound, so that later changes of the source are seen."""
    volumes: tuple[tuple[str, str, bool], ...] = ()
    """(source, path in the container, read-only)."""
    passwd: str = ""
    """A line for /etc/passwd where the user has none, as CRI-O adds it: PostgreSQL refuses to run as nobody known."""


def enter(root: Root) -> None:
    """Build the root and make it the caller's. The caller has a private mount namespace and is in its process namespace.

    Raises: OSError that names the mount.
    """
    top, overlay = _base(root.scratch)
    _host_file_systems(top)
    for path, mode in (_WRITABLE if overlay else _WRITABLE | _WRITABLE_WITHOUT_OVERLAY).items():
        mount("tmpfs", top + path, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")
    os.makedirs(top + "/run/lock", mode=0o1777, exist_ok=True)
    _devices(top)
    _kernel(top)
    for path in root.hidden:
        place = _within(top, path)
        if os.path.isdir(place):
            mount("tmpfs", place, "tmpfs", MS_RDONLY, "size=4k,mode=000")
    for source, target, read_only in root.volumes:
        place = _within(top, target)
        os.makedirs(place, exist_ok=True)
        _bind(source, place, read_only)
    for source, target in root.files:
        _bind_file(source, top + target)
    if root.passwd:
        _add_user(root, top)
    os.chdir(top)
    pivot_root(".", ".")
    detach(".")
    os.chdir("/")


def enter_image(root: str, folders: Iterable[str]) -> None:
    """Make a node image's root the caller's, in a mount namespace of its own; the host's /run and `folders` stay what they are.

    What the host mounts later (network namespaces are mounts) is seen. Raises: OSError that names the mount.
    """
    unshare(CLONE_NEWNS)
    mount("", "/", "", MS_REC | MS_SLAVE)
    for path in _REPLACED:
        mount("tmpfs", root + path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for path in dict.fromkeys((*_HOSTS_OWN, *folders)):
        os.makedirs(root + path, exist_ok=True)
        mount(path, root + path, "", MS_BIND | MS_REC)
    os.chroot(root)
    os.chdir("/")


def _within(top: str, path: str) -> str:
    """Where a path of the container is: its links lead to places of the container (/var/run to its /run), not of the host."""
    outside = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.chroot(top)
    try:
        return top + os.path.realpath(path)
    finally:
        os.fchdir(outside)
        os.chroot(".")
        os.close(outside)


def _base(scratch: str) -> tuple[str, bool]:
    mount("tmpfs", scratch, "tmpfs", 0, _SCRATCH_SIZE)
    top, upper, work = (f"{scratch}/{name}" for name in ("root", "upper", "work"))
    for folder in (top, upper, work):
        os.mkdir(folder)
    try:
        mount("overlay", top, "overlay", MS_NODEV, f"lowerdir=/,upperdir={upper},workdir={work}")
        return top, True
    except OSError:
        mount("/", top, "", MS_BIND)
        mount("", top, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NODEV)
        return top, False


def _host_file_systems(top: str) -> None:
    """An overlay shows one file system: bring in what else holds the host's programs, such as a separate /usr or /var."""
    with open("/proc/self/mountinfo") as file:
        mounts = file.read().splitlines()
    for line in mounts:
        fields = line.split()
        target = fields[4].encode().decode("unicode_escape")
        source = fields[fields.index("-") + 2]
        if target == "/" or f"{target}/".startswith(tuple(f"{folder}/" for folder in _SYSTEM_FOLDERS)):
            continue
        if source.startswith("/dev/") and os.path.isdir(top + target):
            _bind(target, top + target, True)


def _bind(source: str, target: str, read_only: bool) -> None:
    mount(source, target, "", MS_BIND)
    if read_only:
        mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NODEV)


def _bind_file(source: str, target: str) -> None:
    try:
        # The host's may be a link that leads nowhere here (systemd-resolved's resolv.conf).
        if os.path.islink(target):
            os.unlink(target)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    except OSError:
        return  # read-only root: nothing to bind over
    mount(source, target, "", MS_BIND)


def _add_user(root: Root, top: str) -> None:
    """In a file of its own over the host's, so that it works on a read-only root too."""
    with open(top + "/etc/passwd") as file:
        known = file.read()
    grown = os.path.join(root.scratch, "passwd")
    with open(grown, "w") as file:
        file.write(f"{known.rstrip()}\n{root.passwd}\n")
    mount(grown, top + "/etc/passwd", "", MS_BIND)


def _devices(top: str) -> None:
    mount("tmpfs", f"{top}/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,mode=755")
    for name in _DEVICES:
        os.close(os.open(f"{top}/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        mount(f"/dev/{name}", f"{top}/dev/{name}", "", MS_BIND)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"{top}/dev/{name}")
    os.mkdir(f"{top}/dev/pts")
    mount("devpts", f"{top}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    os.symlink("pts/ptmx", f"{top}/dev/ptmx")
    os.mkdir(f"{top}/dev/shm")
    mount("tmpfs", f"{top}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")


def _kernel(top: str) -> None:
    mount("proc", f"{top}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for path in _READ_ONLY_PROC:
        if os.path.exists(top + path):
            mount(top + path, top + path, "", MS_BIND | MS_REC)
            mount("", top + path, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for path in _HIDDEN_PROC:
        if os.path.exists(top + path):
            mount(f"{top}/dev/null", top + path, "", MS_BIND)
    # Of the network namespace that the caller is in already.
    mount("sysfs", f"{top}/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
