"""Throw-away labs for tests: inline manifests in, a running lab out, nothing left behind.

    with World(MANIFESTS) as world:
        done = world.run("shop/client", "curl", "-s", "http://web/")

Every world has a prefix and folders of its own, so that it runs beside a lab that is up and beside other worlds.
"""

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from types import TracebackType
from typing import Any, TypeVar

from lab import logs
from lab.client import Lab
from lab.launch import Launch
from lab.layout import Layout, netns_path
from lab.node import program_environment
from lab.process import popen
from wire.http_messages import HttpError
from wire.places import Places

T = TypeVar("T")
_numbers = itertools.count(1)
_POLL_S = 0.05


def unique_layout() -> Layout:
    """Names that no other lab of this machine has."""
    name = f"wt{os.getpid()}x{next(_numbers)}"
    return Layout(Places(Path(f"/run/{name}"), Path(f"/var/lib/{name}"), name))


def eventually(check: Callable[[], T], timeout_s: float = 100.0) -> T:
    """What `check` returns once it is true, or None; until then it may raise AssertionError, LookupError, OSError, HttpError.

    Raises: AssertionError with its newest value when the time is up.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            value = check()
            if value or value is None:
                return value
            problem = AssertionError(f"still {value!r} after {timeout_s:g} s")
        except (AssertionError, LookupError, OSError, HttpError) as error:  # the latter: of who begins, or ends, just now
            problem = AssertionError(repr(error))
        if time.monotonic() > until:
            raise problem
        time.sleep(_POLL_S)


class World(Lab):
    """A lab that lasts as long as its `with` block."""

    def __init__(
        self, manifests: str | Mapping[str, str], mesh: bool = True, timeout_s: float = 150.0, layout: Layout | None = None
    ) -> None:
        super().__init__(layout or unique_layout())
        self._files = {"world.yaml": dedent(manifests)} if isinstance(manifests, str) else dict(manifests)
        self._mesh = mesh
        self._timeout_s = timeout_s

    def __enter__(self) -> "World":
        try:
            self.up(self._files, self._mesh, timeout_s=self._timeout_s)
        except BaseException:
            print(self.newest_logs())
            self.down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            print(self.newest_logs())
        self.down()

    def apply(self, manifests: str, wait: bool = True) -> dict[str, Any]:
        """Apply more manifests; with `wait` until all is ready: the lab's status."""
        files = {"more.yaml": dedent(manifests)}
        if wait:
            return self.up(files, self._mesh, timeout_s=self._timeout_s)
        return self._call("POST", "/apply", {"files": files})

    def delete(self, manifests: str) -> dict[str, Any]:
        """Delete the objects of manifests, and wait until all that is left is ready: the lab's status."""
        self._call("POST", "/delete", {"files": {"gone.yaml": dedent(manifests)}})
        return self.up({}, self._mesh, timeout_s=self._timeout_s)

    @contextmanager
    def having(self, manifests: str, wait: bool = True) -> Iterator[None]:
        """More objects for the length of a `with` block."""
        self.apply(manifests, wait)
        try:
            yield
        finally:
            self.delete(manifests)

    def pod(self, key: str) -> dict[str, Any]:
        """A pod's status. Raises: KeyError when there is none such."""
        for pod in self.status()["pods"]:
            if f"{pod['namespace']}/{pod['name']}" == key:
                return dict(pod)
        raise KeyError(key)

    def program(self, node: str, part: str) -> int:
        """The pid of a node's `agent`, `ztunnel` or `prober`; 0 while it does not run."""
        return int(next(one for one in self.status()["nodes"] if one["name"] == node)["programs"][part]["pid"])

    def await_program(self, node: str, part: str) -> int:
        """The same, once it runs: a signal to 0 would be the test's own."""
        return eventually(lambda: self.program(node, part))

    def output(self, pod: str, *argv: str, timeout_s: float = 100.0) -> str:
        """What a program prints that succeeds inside a pod.

        Raises: AssertionError with what it said when it fails.
        """
        done: subprocess.CompletedProcess[str] = self.run(pod, *argv, timeout_s=timeout_s)
        assert done.returncode == 0, f"{argv} in {pod}: exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def on_node(self, node: str, argv: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a program of a node's host: in its network namespace and its cgroup `host`, on this machine's files."""
        layout = self.layout
        launch = Launch(
            tuple(argv),
            str(layout.node_cgroup(node) / "host"),
            netns=str(netns_path(layout.node_netns(node))),
            env=program_environment(layout),
        )
        return popen(launch, **options)

    def newest_logs(self, lines: int = 40) -> str:
        """The end of every log, for a failed test."""
        paths = sorted(self.layout.logs.rglob("*.log"))
        return "\n".join(f"==> {path.relative_to(self.layout.logs)} <==\n{logs.tail(path, lines)}" for path in paths)
