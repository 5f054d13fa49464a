"""Processes that the lab's daemon started: begun by `lab.launch`, watched by pidfd, found again after the daemon's restart."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.launch import Launch
from lab.layout import SOURCE_ROOT

_START_TIMEOUT_S = 20.0
_MAX_STATUS_BYTES = 4096


class LaunchError(Exception):
    """A program could not be started; the message says why."""


@dataclass(frozen=True, slots=True)
class Record:
    """What tells a process from a later one with its number."""

    pid: int
    started_ticks: int
    """Since boot, field 22 of /proc/PID/stat."""


@dataclass(slots=True)
class Process:
    """A running program. Owns its pidfd, until `wait` has seen the end."""

    record: Record
    _pidfd: int
    _ended: "asyncio.Future[int | None] | None" = None

    @property
    def pid(self) -> int:
        """Its number in the host's process namespace."""
        return self.record.pid

    @classmethod
    async def start(cls, launch: Launch) -> "Process":
        """Start a program where it belongs; return when it is executed.

        Raises: LaunchError when it could not be. Cancel: the program may be running; its cgroup's owner ends it.
        """
        status, launcher = spawn(launch)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                text = await _read_to_end(status)
        except TimeoutError as error:
            os.kill(launcher, signal.SIGKILL)
            await asyncio.to_thread(_reap, launcher)
            raise LaunchError(f"{launch.argv[0]} was not started within {_START_TIMEOUT_S:.0f} s") from error
        lines = dict(line.split(" ", 1) for line in text.splitlines())
        pid = int(lines.get("pid", launcher))
        if pid != launcher or "error" in lines:
            await asyncio.to_thread(_reap, launcher)
        if "error" in lines or "pid" not in lines:
            if pid != launcher:
                await asyncio.to_thread(_reap, pid)
            raise LaunchError(lines.get("error", "the launcher ended without a word"))
        process = cls._open(pid)
        if process is None:
            raise LaunchError(f"{launch.argv[0]} ended at once")
        return process

    @classmethod
    def _open(cls, pid: int) -> "Process | None":
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        try:
            return cls(Record(pid, started_ticks(pid)), pidfd)
        except OSError:
            os.close(pidfd)
            return None

    @classmethod
    def adopt(cls, record: Record) -> "Process | None":
        """Take over what a former daemon started; None when it has ended."""
        process = cls._open(record.pid)
        if process is not None and process.record != record:
            os.close(process._pidfd)
            return None
        return process

    async def wait(self) -> int | None:
        """The exit code once it has ended (128 + n for signal n); None for an adopted one, whose code went elsewhere."""
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = loop.create_future()
            loop.add_reader(self._pidfd, self._on_end, self._ended)
        return await asyncio.shield(self._ended)

    def _on_end(self, ended: "asyncio.Future[int | None]") -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        ended.set_result(_reap(self.pid))

    def signal(self, number: int) -> None:
        """Send a signal; none once it has ended."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass  # ended, and not yet waited for


async def run_joined(launch: Launch, timeout_s: float) -> int | None:
    """Run a program inside a running container to its end: its exit code, or None when it took too long and was killed.

    Raises: LaunchError when it could not be started; OSError without descriptors or memory. Cancel: the program is killed.
    """
    status, launcher = spawn(launch)
    process = Process._open(launcher)
    if process is None:  # it is there until it is reaped: no descriptor is left
        os.close(status)
        os.kill(launcher, signal.SIGKILL)
        await asyncio.to_thread(_reap, launcher)
        raise LaunchError("no descriptor is left to watch it with")
    try:
        async with asyncio.timeout(timeout_s):
            text = await _read_to_end(status)
            code = await process.wait()
    except TimeoutError:
        code, text = None, ""
    finally:
        process.signal(signal.SIGKILL)  # the program goes with its launcher
        await process.wait()
    if "error " in text:
        raise LaunchError(text.partition("error ")[2].strip())
    return code


def _order(launch: Launch) -> int:
    """A descriptor from which a launcher reads its order."""
    spec = os.memfd_create("launch", os.MFD_CLOEXEC)
    os.write(spec, launch.to_json().encode())
    os.lseek(spec, 0, os.SEEK_SET)
    return spec


def _launcher(spec: int, status: int) -> tuple[list[str], dict[str, str]]:
    argv = [sys.executable, "-P", "-s", "-S", "-m", "lab.launch", str(spec), str(status)]
    return argv, {"PYTHONPATH": str(SOURCE_ROOT), "PATH": os.environ.get("PATH", os.defpath)}


def popen(launch: Launch, **options: Any) -> "subprocess.Popen[Any]":
    """Start a program with standard streams of the caller's choice, as subprocess.Popen takes them.

    What cannot be started says so on its standard error and ends with code 127.
    """
    spec = _order(launch)
    try:
        argv, environment = _launcher(spec, -1)
        return subprocess.Popen(argv, env=environment, pass_fds=(spec,), **options)
    finally:
        os.close(spec)


def spawn(launch: Launch) -> tuple[int, int]:
    """Start a launcher without standard streams: (descriptor to read its status from, its pid)."""
    spec = _order(launch)
    status, theirs = os.pipe2(os.O_CLOEXEC)
    quiet = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3)]
    passed = [(os.POSIX_SPAWN_DUP2, spec, 3), (os.POSIX_SPAWN_DUP2, theirs, 4)]
    if theirs == 3:  # the first DUP2 would close it
        passed.reverse()
    argv, environment = _launcher(3, 4)
    try:
        # Python opens descriptors close-on-exec: the launcher has no others than these.
        pid = os.posix_spawn(sys.executable, argv, environment, file_actions=[*quiet, *passed])
    except OSError:
        os.close(status)
        raise
    finally:
        os.close(spec)
        os.close(theirs)
    return status, pid


def listener_of(path: Path) -> int:
    """The process that listens on a unix socket; 0: none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return 0
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iII", credentials)[0])


def started_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot. Raises: OSError when it is gone."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[19])


def _reap(pid: int) -> int | None:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return None  # a former daemon's child
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


async def _read_to_end(descriptor: int) -> str:
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)
    text = bytearray()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _collect(descriptor, text, ended))
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return text.decode(errors="replace")


def _collect(descriptor: int, text: bytearray, ended: asyncio.Future[None]) -> Callable[[], None]:
    def read() -> None:
        try:
            piece = os.read(descriptor, _MAX_STATUS_BYTES)
        except BlockingIOError:
            return
        text.extend(piece)
        if not piece or len(text) > _MAX_STATUS_BYTES:
            _complete(ended)

    return read


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
