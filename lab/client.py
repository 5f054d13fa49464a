"""The lab as commands use it: up, down, status, exec, logs. Synchronous; talks to the daemon on lab.sock.

Every problem that is a user's to mend is a LabError whose message says what, why and how.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lab import logs, neighbours, teardown
from lab.claim import ClaimError, claim, held, settled
from lab.launch import Launch
from lab.layout import SOURCE_ROOT, Layout
from lab.node import program_environment
from lab.process import listener_of, popen, spawn
from mesh.manifests import Node, Problem, parse
from wire.http_client import request
from wire.http_messages import HttpError

READY_TIMEOUT_S = 120.0
_DAEMON_TIMEOUT_S = 60.0
_ANSWER_S = 30.0
_SILENT_S = 3.0
_POLL_S = 0.05
_QUIET_S = 1.0
_MAX_SOCKET_PATH = 107
_LONGEST_SOCKET = "agent-grpc.sock"
Progress = Callable[[str], None]


class LabError(Exception):
    """What the lab cannot do, why, and how to mend it."""


class ManifestError(LabError):
    """Manifests that were refused; nothing was changed."""

    def __init__(self, problems: Sequence[Mapping[str, Any]]) -> None:
        super().__init__("\n".join(problem_line(one) for one in problems))
        self.problems = problems


def problem_line(problem: Mapping[str, Any]) -> str:
    """A problem in one line: file, document, object, field, reason."""
    where = f"{problem['file']} document {problem['document']}" if problem["document"] else problem["file"]
    return ": ".join(str(part) for part in (where, problem["object"], problem["field"], problem["reason"]) if part)


class Lab:
    """One lab on this machine."""

    def __init__(self, layout: Layout | None = None) -> None:
        self.layout = layout or Layout.from_environment()
        self._daemon = 0

    # Up and down

    def up(
        self,
        files: Mapping[str, str],
        mesh: bool = True,
        progress: Progress = lambda line: None,
        timeout_s: float = READY_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Bring everything in `files` (name -> YAML) up, beside what is up already, and wait until it is ready: its status.

        Raises: ManifestError; LabError with what is not ready and why.
        """
        _require_root()
        read = parse(files)
        if read.refused:
            raise ManifestError([_problem(one) for one in read.problems if not one.warning])
        _require_short_paths(self.layout, [one.name for one in read.objects if isinstance(one, Node)])
        _require_own_places(self.layout)
        with self._alone(progress):
            self._start_daemon(mesh, progress)
        until = time.monotonic() + timeout_s
        answer = self._apply(files, until, progress)
        for problem in answer["problems"]:
            progress(f"warning: {problem_line(problem)}")
        for change in answer["changes"]:
            if change["change"] != "unchanged":
                progress(f"{change['object']} {change['change']}")
        return self._await_ready(until, timeout_s, progress)

    @contextmanager
    def _alone(self, progress: Progress) -> Iterator[None]:
        """One command at a time starts a lab, or removes it. Raises: LabError when another one takes long."""
        name = f"{self.layout.places.prefix}:command"
        with ExitStack() as stack:
            alone = stack.enter_context(held(name, _SILENT_S))
            if not alone:
                progress("waiting for another weft lab up or down that is at work on this lab")
                alone = stack.enter_context(held(name, _DAEMON_TIMEOUT_S))
            if not alone:
                raise LabError("another weft lab up or down is at work on this lab: repeat when it has ended")
            yield

    def _start_daemon(self, mesh: bool, progress: Progress) -> None:
        self.layout = self._settled()
        if listener_of(self.layout.socket):
            if self.status()["mesh"] != mesh:
                progress("putting the mesh on" if mesh else "taking the mesh off")
                self._call("POST", "/mesh", {"enabled": mesh})
            return
        progress("starting the lab")
        layout = self.layout
        try:
            claim(layout)
            layout.logs.mkdir(parents=True, exist_ok=True)
        except ClaimError as error:
            raise LabError(str(error)) from error
        except OSError as error:
            folder = Path(error.filename or layout.ledger)
            mend = "set WEFT_RUN_DIR and WEFT_STATE_DIR to folders that can be written"
            if folder.is_relative_to(layout.cgroup):
                mend = "a lab needs cgroup v2 that it can write, which most containers have not"
            raise LabError(f"{folder} cannot be made: {error.strerror}: {mend}") from error
        log = layout.logs / "lab.log"
        argv = (sys.executable, "-m", "lab", *(() if mesh else ("--no-mesh",)))
        launch = Launch(argv, str(layout.lab_cgroup), env=program_environment(layout), cwd=str(SOURCE_ROOT), log=str(log))
        status, pid = spawn(launch)
        with open(status, encoding="utf-8") as file:
            text = file.read()
        if "error " in text:
            os.waitpid(pid, 0)
            raise LabError(f"the lab's daemon cannot be started: {text.partition('error ')[2].strip()}")
        self._daemon = pid
        until = time.monotonic() + _DAEMON_TIMEOUT_S
        while not self.running():
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._daemon = 0
                raise LabError(f"the lab's daemon ended:\n{logs.tail(log, 5)}")
            if time.monotonic() > until:
                raise LabError(f"the lab's daemon does not answer within {_DAEMON_TIMEOUT_S:.0f} s: see {log}")
            time.sleep(_POLL_S)

    def _settled(self) -> Layout:
        try:
            return settled(self.layout)
        except ClaimError as error:
            raise LabError(str(error)) from error

    def _apply(self, files: Mapping[str, str], until: float, progress: Progress) -> dict[str, Any]:
        told = False
        while True:
            try:
                answer = self._call("POST", "/apply", {"files": dict(files)})
                break
            except LabError as error:
                if not (isinstance(error.__cause__, HttpError) and error.__cause__.status == 503):
                    raise
                if time.monotonic() > until:  # control is still starting
                    reason = self.status()["control"]["reason"]
                    raise LabError(f"{error}{f'; control {reason}' if reason else ''}; see: weft lab logs control") from error
                if not told:
                    progress("waiting for control")
                told = True
                time.sleep(_POLL_S)
        if any(not problem["warning"] for problem in answer["problems"]):
            raise ManifestError([one for one in answer["problems"] if not one["warning"]])
        return answer

    def _await_ready(self, until: float, timeout_s: float, progress: Progress) -> dict[str, Any]:
        shown, shown_at = "", time.monotonic()
        while True:
            status = self.status()
            if not status["unready"]:
                return status
            if time.monotonic() > until:
                reasons = "\n".join(f"  {reason}" for reason in status["unready"])
                raise LabError(f"not ready after {timeout_s:.0f} s:\n{reasons}")
            first = status["unready"][0]
            if first != shown and time.monotonic() - shown_at > _QUIET_S:
                progress(f"waiting: {first}")
                shown, shown_at = first, time.monotonic()
            time.sleep(_POLL_S)

    def down(self, progress: Progress = lambda line: None) -> bool:
        """Remove everything of the lab; whether there was anything.

        Raises: LabError when something cannot be removed.
        """
        _require_root()
        _require_own_places(self.layout)
        with self._alone(progress):
            if not teardown.present(self.layout):
                return False
            progress("removing the lab")
            try:
                teardown.remove(self.layout)
            except (OSError, RuntimeError) as error:
                raise LabError(f"the lab could not be removed whole: {error}; try again") from error
        if self._daemon:
            os.waitpid(self._daemon, 0)  # this very process started it
            self._daemon = 0
        return True

    # Looking

    def running(self) -> bool:
        """Whether the daemon answers."""
        try:
            self._request("GET", "/status", b"", 10.0)
        except (OSError, TimeoutError, HttpError):
            return False
        return True

    def status(self, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        """The whole lab, as `GET /status` gives it. Raises: LabError when none is up, or it does not answer."""
        return self._call("GET", "/status", timeout_s=timeout_s)

    def log_path(self, target: str, container: str = "") -> Path:
        """The log file of `lab`, `control`, a node's part `NODE/agent`, or a pod `NAMESPACE/NAME`.

        Raises: LabError naming what there is.
        """
        if target in ("lab", "control"):
            return self.layout.logs / f"{target}.log"
        first, slash, second = target.partition("/")
        part = self.layout.process_log(first, second)
        if slash and second in ("agent", "ztunnel", "prober") and part.exists():
            return part
        folder = self.layout.container_log(target, "_").parent
        found = sorted(folder.glob("*.log")) if slash and folder.is_dir() else []
        main = [path for path in found if not path.stem.endswith(".init")] or found
        chosen = [path for path in found if path.stem.removesuffix(".init") == container] if container else main
        if len(chosen) == 1:
            return chosen[0]
        if found and container:
            names = ", ".join(path.stem for path in found)
            raise LabError(f"pod {target} has no container {container}: there are logs of {names}")
        if chosen:
            raise LabError(f"pod {target} has several containers: say which: {', '.join(path.stem for path in chosen)}")
        raise LabError(f"there is no log of {target!r}: use lab, control, NODE/agent, NODE/ztunnel or NAMESPACE/POD")

    def log_targets(self, node: str = "") -> list[str]:
        """Everything that has a log: `lab`, `control`, `NODE/PART`; with `node` only that node's parts."""
        parts = sorted(self.layout.logs.glob("nodes/*/*.log"))
        names = [f"{path.parent.name}/{path.stem}" for path in parts if not node or path.parent.name == node]
        return names if node else ["lab", "control", *names]

    def logs(self, target: str, container: str = "", lines: int = 100, follow: bool = False) -> Iterator[str]:
        """The last lines of a log in pieces, then with `follow` what comes, for ever. Raises: LabError as `log_path`."""
        path = self.log_path(target, container)
        text, end = logs.tail_to(path, lines)
        yield text
        if follow:
            yield from logs.follow(path, end)

    def restart(self, node: str) -> dict[str, Any]:
        """Replace the proxy of a node by a new process of it, without a gap: `old` and `new` process, `seconds`.

        Raises: LabError when no such node is up, or the new process does not become ready; the old one serves on then.
        """
        return self._call("POST", "/restart", {"node": node})

    # Inside

    def join(self, pod: str, argv: Sequence[str], container: str = "") -> Launch:
        """The order to run a program inside a pod `namespace/name`. Raises: LabError when it does not run."""
        document = self._call("GET", f"/join?{urlencode({'pod': pod, 'container': container})}")
        launch = Launch.from_json(json.dumps({**document, "argv": list(argv)}))
        if term := os.environ.get("TERM"):
            launch = launch._replace(env={"TERM": term, **launch.env})
        return launch

    def exec(self, pod: str, argv: Sequence[str], container: str = "") -> int:
        """Run a program inside a pod with the caller's standard streams; its exit code (127: it cannot be started).

        Raises: LabError when the pod does not run.
        """
        _require_root()
        if not argv:
            raise LabError("say what to run: weft lab exec NAMESPACE/POD -- COMMAND")
        process = self.popen(pod, argv, container)
        former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
        try:
            code = process.wait()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        return code if code >= 0 else 128 - code

    def popen(self, pod: str, argv: Sequence[str], container: str = "", **options: Any) -> "subprocess.Popen[Any]":
        """Start a program inside a pod, with subprocess.Popen's options for its standard streams.

        Raises: LabError when the pod does not run.
        """
        return popen(self.join(pod, argv, container), **options)

    def run(
        self, pod: str, *argv: str, container: str = "", timeout_s: float = 30.0, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program inside a pod to its end and collect what it prints.

        Raises: LabError when the pod does not run; subprocess.TimeoutExpired.
        """
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        with self.popen(pod, argv, container, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    # The wire

    def _call(
        self, method: str, path: str, document: Mapping[str, Any] | None = None, timeout_s: float = _ANSWER_S
    ) -> dict[str, Any]:
        body = json.dumps(document).encode() if document is not None else b""
        try:
            result: dict[str, Any] = json.loads(self._request(method, path, body, timeout_s))
            return result
        except HttpError as error:
            if isinstance(error.__cause__, EOFError):
                raise self._ended("before it answered") from error
            raise LabError(error.reason) from error
        except TimeoutError as error:
            raise LabError("the lab's daemon does not answer: see weft lab logs lab") from error
        except PermissionError as error:
            raise LabError(f"no permission to open {self.layout.socket}: run as root") from error
        except OSError as error:
            if self.layout.socket.exists():
                raise self._ended(error.strerror or str(error)) from error
            raise LabError("no lab is up: start one with: weft lab up") from error

    def _ended(self, how: str) -> LabError:
        mend = "weft lab up takes over what still runs, weft lab down removes it"
        last = logs.tail(self.layout.logs / "lab.log", 3)
        return LabError(f"the daemon of this lab has ended ({how}): {mend}" + (f"; its last words:\n{last}" if last else ""))

    def _request(self, method: str, path: str, body: bytes, timeout_s: float) -> bytes:
        return asyncio.run(request(self.layout.socket, method, path, body, timeout_s)).check()


def _require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("run as root: the lab makes network namespaces and cgroups")


def _require_own_places(layout: Layout) -> None:
    try:
        reason = neighbours.clash(layout.places, neighbours.labs())
    except RuntimeError as error:  # no cgroup v2
        raise LabError(str(error)) from error
    if reason:
        raise LabError(reason)


def _require_short_paths(layout: Layout, nodes: Sequence[str]) -> None:
    """Unix sockets' paths are short, and what fails for it later does not say so."""
    for name, folder in [("", layout.places.run), *((f"Node {name}: ", layout.places.node(name).run) for name in nodes)]:
        path = folder / _LONGEST_SOCKET
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise LabError(
                f"{name}{path} is longer than the {_MAX_SOCKET_PATH} bytes of a socket's path: "
                "shorten the name, or set WEFT_RUN_DIR to a shorter folder"
            )


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.file,
        "document": problem.document,
        "object": problem.object,
        "field": problem.field,
        "reason": problem.reason,
        "warning": problem.warning,
    }
