"""A second proxy on a node, as a rolling upgrade starts one beside the first: in a cgroup and a network namespace apart."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from lab import cgroup
from lab.launch import Launch
from lab.layout import SOURCE_ROOT, netns_path
from lab.node import control_authority, program_environment
from lab.process import popen
from lab.proxy import Surroundings
from tests.lab.mesh import Mesh
from tests.lab.world import eventually

_QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL}


class Successor:
    """Runs for the length of a `with` block, in control's namespace: it finds no port taken by the node's proxy."""

    def __init__(self, mesh: Mesh, node: str, command: tuple[str, ...], folder: Path) -> None:
        """`command` is a foreign proxy's, or empty for weft's own, which keeps to `folder`."""
        layout = mesh.layout
        places = layout.places.node(node)
        self._cgroup = layout.node_cgroup(node) / "ztunnel-next"
        self._netns = layout.control_netns
        surroundings = Surroundings(places, control_authority(), "172.30.0.2")
        env = surroundings.environment(program_environment(layout))
        env |= {"WEFT_RUN_DIR": str(folder / "run"), "WEFT_STATE_DIR": str(folder / "state")}
        argv = command or (sys.executable, "-m", "ztunnel", "--node", node)
        self._launch = Launch(argv, str(self._cgroup), str(netns_path(self._netns)), env, str(SOURCE_ROOT))
        self._folders = (folder / "run" / "nodes" / node, folder / "state" / "nodes" / node)
        self._log = layout.process_log(node, "successor")

    def __enter__(self) -> "Successor":
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
        cgroup.create(self._cgroup)
        self._process = popen(self._launch._replace(log=str(self._log)), **_QUIET)
        eventually(self._ready)
        return self

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        url = "http://127.0.0.1:15021/healthz/ready"
        argv = ["ip", "netns", "exec", self._netns, "curl", "-sf", "-m", "1", url]
        return subprocess.run(argv, stdout=subprocess.DEVNULL, check=False).returncode == 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and self._log.exists():
            print(self._log.read_text()[-4000:])
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.kill(self._process.pid, number)
            try:
                self._process.wait(4)
                break
            except subprocess.TimeoutExpired:
                continue
        cgroup.kill(self._cgroup)
        cgroup.remove(self._cgroup)
