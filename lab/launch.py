"""The step between the lab and a program: a short-lived process that goes where the program belongs and becomes it.

`python -S -E -s -m lab.launch SPEC_FD STATUS_FD`. The order is the point: first the cgroup, then the network namespace, and
only then anything else, so that no socket is ever made in a wrong place (this process makes none at all). Standard
library only, without the costly parts of that (dataclasses, pathlib): every container, probe and proxy waits for this.

- A node's process (`weft-agent`, `weft-ztunnel`) keeps the host's processes, and its files unless it runs from a node image.
- A container gets its own mount, process, UTS and IPC namespaces; its program is their process 1.
- A joiner (`weft lab exec`, exec probes) enters those of a running container and waits for its program.

On STATUS_FD: `pid N` once the program's process exists; then the end of file when it is executed, or `error WHY`. With -1 for
STATUS_FD errors go to standard error.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

from lab import syscalls
from lab.rootfs import Root, enter, enter_image

_KEPT_CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31))
"""What container runtimes grant, but MKNOD: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE
NET_RAW SYS_CHROOT AUDIT_WRITE SETFCAP (linux/capability.h). Without NET_ADMIN and SYS_ADMIN a pod cannot leave its network."""
_NOBODY = -1
_NAMESPACES = {
    "net": syscalls.CLONE_NEWNET,
    "uts": syscalls.CLONE_NEWUTS,
    "ipc": syscalls.CLONE_NEWIPC,
    "pid": syscalls.CLONE_NEWPID,
    "mnt": syscalls.CLONE_NEWNS,
}


class Launch(NamedTuple):
    """What to start, and where."""

    argv: tuple[str, ...]
    cgroup: str
    netns: str = ""
    """A namespace's path; empty: the caller's."""
    env: Mapping[str, str] = MappingProxyType({})
    cwd: str = "/"
    log: str = ""
    """Standard output and error are appended here; empty: the caller's."""
    root: Root | None = None
    """A container's root; None: the host's files and processes."""
    join: int = 0
    """A process of a running container whose namespaces to enter; 0: none."""
    hostname: str = ""
    uid: int = 0
    gid: int = 0
    confined: bool = False
    """Keep no capability beyond a container's."""
    image: str = ""
    """A node image's root to run from, as the host's process that it is; empty: the host's root."""
    image_folders: tuple[str, ...] = ()
    """Folders of the host that it sees there, beyond /proc, /sys, /dev and /run."""

    def to_json(self) -> str:
        """As `main` reads it."""
        return json.dumps(self.document())

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**self._asdict(), "env": dict(self.env), "root": self.root and self.root._asdict()}

    @classmethod
    def from_json(cls, text: str) -> "Launch":
        """Read what `to_json` wrote."""
        document: dict[str, Any] = json.loads(text)
        if document["root"] is not None:
            root = document["root"]
            root["hidden"], root["files"], root["volumes"] = (
                tuple(map(_tuple, root[key])) for key in ("hidden", "files", "volumes")
            )
            document["root"] = Root(**root)
        document["argv"], document["image_folders"] = tuple(document["argv"]), tuple(document["image_folders"])
        return cls(**document)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def main() -> None:
    """Read the order, go there, become the program."""
    spec_fd, status_fd = int(sys.argv[1]), int(sys.argv[2])
    if status_fd != _NOBODY:
        os.set_inheritable(status_fd, False)
    try:
        with open(spec_fd, encoding="utf-8") as file:
            launch = Launch.from_json(file.read())
        _go(launch, status_fd)
    except Exception as error:  # whatever it is, the one who asked must hear it
        reason = str(error)
        if isinstance(error, OSError) and error.strerror and not error.filename:
            reason = error.strerror
        if status_fd == _NOBODY:
            print(f"lab: {reason}", file=sys.stderr)
        with suppress(BrokenPipeError):
            _tell(status_fd, f"error {reason}")
        sys.stderr.flush()
        os._exit(127)


def _tell(status_fd: int, line: str) -> None:
    if status_fd != _NOBODY:
        os.write(status_fd, f"{line}\n".encode())


def _go(launch: Launch, status_fd: int) -> None:
    with open(f"{launch.cgroup}/cgroup.procs", "w") as file:
        file.write("0")
    if launch.log:
        _redirect(launch)
    if launch.join:
        _join(launch.join)
        _fork_and_wait(status_fd)
    else:
        if launch.netns:
            _enter_netns(launch.netns)
        if launch.root is not None:
            _contain(launch, launch.root, status_fd)
        else:
            if launch.image:
                enter_image(launch.image, launch.image_folders)
            _tell(status_fd, f"pid {os.getpid()}")
    _become(launch, status_fd)


def _redirect(launch: Launch) -> None:
    log = os.open(launch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.fchown(log, launch.uid, launch.gid)  # programs open /dev/stdout anew
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.setsid()


def _enter_netns(path: str) -> None:
    target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(target, syscalls.CLONE_NEWNET)
    os.close(target)


def _contain(launch: Launch, root: Root, status_fd: int) -> None:
    """Return in process 1 of new namespaces; this process ends, which leaves the new one to the lab's daemon."""
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    child = os.fork()
    if child:
        _tell(status_fd, f"pid {child}")
        os._exit(0)
    syscalls.sethostname(launch.hostname)
    enter(root)


def _join(process: int) -> None:
    targets = [(os.open(f"/proc/{process}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind) for name, kind in _NAMESPACES.items()]
    for target, kind in targets:
        syscalls.setns(target, kind)
        os.close(target)


def _fork_and_wait(status_fd: int) -> None:
    """Return in the child, the first that is inside the process namespace; stay as its parent and end as it ends."""
    child = os.fork()
    if child == 0:
        return
    _tell(status_fd, f"pid {child}")
    if status_fd != _NOBODY:
        os.close(status_fd)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):  # the terminal sends these to the child as well
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: end(child))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def end(child: int) -> None:
    """Have a program end that may have ended by itself meanwhile: a terminal, or `timeout`, tells all of its group."""
    try:
        os.kill(child, signal.SIGTERM)
    except ProcessLookupError:
        pass  # its end is what is waited for


def _become(launch: Launch, status_fd: int) -> None:
    # Where the daemon has given us up it has started another one meanwhile, and nobody hears this: EPIPE.
    _tell(status_fd, "still there")
    if launch.confined:
        syscalls.forbid_keyrings()
        syscalls.keep_capabilities(_KEPT_CAPABILITIES)
    if launch.uid or launch.gid:
        os.setgroups([])
        os.setresgid(launch.gid, launch.gid, launch.gid)
        os.setresuid(launch.uid, launch.uid, launch.uid)
    if launch.join:
        syscalls.die_with_parent(signal.SIGKILL)
    os.chdir(launch.cwd)
    os.umask(0o022)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and programs would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(launch.argv[0], launch.argv, launch.env)
    except OSError as error:
        raise OSError(error.errno, f"cannot run {launch.argv[0]!r}: {error.strerror}") from error


if __name__ == "__main__":
    main()
