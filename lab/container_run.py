"""One container of one pod, run and run again as its restart policy says, and asked whether it is ready."""

import asyncio
import errno
import json
import logging
import os
import pwd
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.container import Command, catches_sigterm
from lab.launch import Launch
from lab.layout import Layout, netns_path
from lab.process import LaunchError, Process, Record
from lab.readiness import Readiness, ask
from lab.rootfs import Root
from lab.supervision import pause_s
from lab.wish import PodWish

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_HEALTHY_AFTER_S = 60.0
_STARTING_PERIOD_S = 0.25
"""Between probes until a program has been ready once: nobody waits ten seconds for a lab's web server."""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """How a container does."""

    name: str
    pid: int
    """0 while it does not run."""
    ready: bool
    restarts: int
    exit_code: int | None
    """Of its newest end."""
    reason: str
    """Why it is not ready; empty when it is."""


class ContainerRun:
    """Owns a container's process and its record. `run` is its task; cancelling that leaves the program to the next daemon."""

    def __init__(self, layout: Layout, wish: PodWish, command: Command, log: Path, changed: Callable[[], None]) -> None:
        self._layout = layout
        self.wish = wish
        self.command = command
        self._log = log
        self._changed = changed
        self._record = layout.pod_run(wish.key) / f"container.{command.name}.json"
        self._process: Process | None = None
        self._ready = False
        self._restarts = 0
        self._exit_code: int | None = None
        self._reason = "waiting to start"
        self.finished = False
        """Whether it has ended for good."""
        self._missed = False
        """Whether it ended while no daemon ran: with which code, nobody knows."""

    @property
    def state(self) -> ContainerState:
        """How it does now."""
        pid = self._process.pid if self._process else 0
        return ContainerState(self.command.name, pid, self._ready, self._restarts, self._exit_code, self._reason)

    def adopt(self) -> bool:
        """Take over the program that a former daemon started; whether it still runs."""
        try:
            document = json.loads(self._record.read_text())
            record = Record(int(document["pid"]), int(document["started_ticks"]))
            self._restarts = int(document["restarts"])
            self.finished = bool(document.get("finished"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        if self.finished:
            self._exit_code = document["exit_code"]
            self._reason = _ending(self._exit_code)
        self._process = None if self.finished else Process.adopt(record)
        self._missed = self._process is None and not self.finished
        return self._process is not None

    async def run(self, policy: str) -> None:
        """Keep it running, or run it to its end: policy `Always`, `OnFailure` or `Never`."""
        if self._missed and policy == "Never":
            self.finished, self._reason = True, _ending(None)
        elif self._missed:
            self._restarts += 1
        failures = 0
        while not self.finished:
            began = time.monotonic()
            try:
                if self._process is None:
                    await self._start()
                await self._watch()
            except (LaunchError, OSError) as error:
                self._exit_code = 127
                self._reason = str(error)
            self._process = None
            if policy == "Never" or (policy == "OnFailure" and self._exit_code == 0):
                self.finished = True
                break
            failures = 0 if time.monotonic() - began > _HEALTHY_AFTER_S else failures + 1
            wait_s = pause_s(max(0, failures - 1), _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
            self._restarts += 1
            self._set(False, f"{self._reason}; starting it again in {wait_s:g} s")
            _log.info("%s container %s: %s", self.wish.key, self.command.name, self._reason)
            await asyncio.sleep(wait_s)
        self._set(False, self._reason)
        self._keep_end()

    async def _watch(self) -> None:
        assert self._process is not None
        process = self._process
        async with asyncio.TaskGroup() as group:
            probing = group.create_task(self._probe())
            self._exit_code = await process.wait()
            probing.cancel()
        self._reason = _ending(self._exit_code)

    async def _probe(self) -> None:
        probe = self.command.probe
        if probe is None:
            self._set(True, "")
            return
        self._set(False, "not probed yet")
        readiness, begun = Readiness(probe), False
        await asyncio.sleep(probe.initial_delay_s)
        prober = self._layout.prober_socket(self.wish.node)
        while True:
            reason = await ask(probe, prober, self.wish.address_texts, self.joined(probe.command))
            self._set(readiness.count(not reason), f"not ready: {reason}" if reason else "")
            begun = begun or readiness.ready
            await asyncio.sleep(probe.period_s if begun else min(probe.period_s, _STARTING_PERIOD_S))

    def _set(self, ready: bool, reason: str) -> None:
        if (ready, reason) != (self._ready, self._reason) or not ready:
            self._ready, self._reason = ready, "" if ready else reason
            self._changed()

    async def _start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        process = await Process.start(self._launch())
        try:
            self._keep(process.record)
        except OSError:  # a full disk: it would be forgotten, and run beside the next
            process.signal(signal.SIGKILL)
            await process.wait()
            raise
        self._process = process

    def _keep(self, record: Record) -> None:
        """For the next daemon, as a whole or not at all."""
        fresh = self._record.with_name(self._record.name + ".new")
        state = {"restarts": self._restarts, "finished": self.finished, "exit_code": self._exit_code}
        fresh.write_text(json.dumps(asdict(record) | state))
        os.replace(fresh, self._record)

    def _keep_end(self) -> None:
        try:
            self._keep(Record(0, 0))
        except OSError as error:
            _log.warning("%s container %s: its end is not recorded: %s", self.wish.key, self.command.name, error)

    def _launch(self) -> Launch:
        layout, wish, command = self._layout, self.wish, self.command
        run, volumes = layout.pod_run(wish.key), layout.pod_volumes(wish.key)
        netns = layout.node_netns(wish.node) if wish.host_network else layout.pod_netns(wish.node, wish.key)
        home, passwd = _account(command.uid, command.gid)
        root = Root(
            scratch=str(layout.scratch),
            hidden=tuple(sorted({str(layout.places.state), str(layout.places.run), "/var/lib/weft"})),
            files=((str(run / "hosts"), "/etc/hosts"), (str(run / "resolv.conf"), "/etc/resolv.conf")),
            volumes=tuple((str(volumes / name), target, read_only) for name, target, read_only in command.volumes),
            passwd=passwd,
        )
        return Launch(
            argv=command.argv,
            cgroup=str(layout.pod_cgroup(wish.node, wish.key)),
            netns=str(netns_path(netns)),
            env={"HOME": home, **command.env},
            cwd=command.cwd,
            log=str(self._log),
            root=root,
            hostname=wish.pod.name[:63],
            uid=command.uid,
            gid=command.gid,
            confined=True,
        )

    def joined(self, argv: tuple[str, ...]) -> Launch:
        """How to run another program inside the container, which must run."""
        command = self.command
        return Launch(
            argv=argv,
            cgroup=str(self._layout.pod_cgroup(self.wish.node, self.wish.key)),
            join=self._process.pid if self._process else 0,
            env={"HOME": _account(command.uid, command.gid)[0], **command.env},
            cwd=command.cwd,
            uid=command.uid,
            gid=command.gid,
            confined=True,
        )

    async def terminate(self) -> None:
        """Ask the program to end, and wait until it has."""
        if self._process is None:
            return
        self._process.signal(signal.SIGTERM if _can_end(self._process.pid) else signal.SIGKILL)
        await self._process.wait()


def _ending(code: int | None) -> str:
    if code is None:
        return "ended, its exit code unknown"
    return "completed" if code == 0 else f"ended with code {code}" + (" (killed)" if code == 137 else "")


def _can_end(pid: int) -> bool:
    try:
        return catches_sigterm(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return True  # it has


def _account(uid: int, gid: int) -> tuple[str, str]:
    """The user's home, and a passwd line when this machine does not know the user."""
    try:
        return pwd.getpwuid(uid).pw_dir, ""
    except KeyError:
        return "/", f"user{uid}:x:{uid}:{gid}::/:/bin/sh"


def write_in_place(path: Path, text: str) -> None:
    """Change a file that containers see through a bind mount, which would keep showing a replaced one's old text.

    One write of at least the old length, so that a reader meets no half of a line; the padding goes at once. Raises: OSError.
    """
    content = text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        old_size = os.fstat(descriptor).st_size
        if os.pwrite(descriptor, content.ljust(old_size, b"\n"), 0) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)
