"""A lab with the mesh for tests: client, near server and outsider on node a, far server on node b, and puppets in each."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.process import listener_of, popen
from tests.frozen import frozen_group
from tests.lab.puppet import ARGV, Puppet
from tests.lab.world import World, eventually
from wire.http_client import request

NODES = """
apiVersion: v1
kind: Node
metadata: {name: a}
---
apiVersion: v1
kind: Node
metadata: {name: b}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
"""
ECHO_PORT = 7000
_ACCESS = re.compile(r"\d{4}-\d\d-\d\dT[^\t]*\t.*\taccess\t")
OPTIONS: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


def pod(name: str, node: str, labels: str = "", extra: str = "", container: str = "") -> str:
    """A pod of namespace shop that waits for puppets, under a service account of its own name."""
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}{labels}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  {extra}
  containers: [{{name: c, command: [sleep, infinity]{container}}}]
---
"""


def service(name: str) -> str:
    """A service in front of the pods `app: NAME`, for the echo port."""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{ipFamilyPolicy: PreferDualStack, selector: {{app: {name}}}, ports: [{{port: {ECHO_PORT}}}]}}
---
"""


def authentication(mode: str) -> str:
    """A PeerAuthentication of the namespace."""
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: mode, namespace: shop}}
spec: {{mtls: {{mode: {mode}}}}}
---
"""


PODS = (
    pod("client", "a")
    + pod("near", "a")
    + pod("far", "b")
    + pod("outsider", "a", ", istio.io/dataplane-mode: none")
    + service("near")
    + service("far")
)


class Mesh(World):
    """The running lab, with a puppet per pod and per node's host, made when first asked for."""

    evidence_since = datetime.fromtimestamp(0, UTC)
    """What is older is no flow and no line of the access log: another test's, on the same lab."""

    def __init__(self, manifests: str = NODES + PODS) -> None:
        super().__init__(manifests, timeout_s=200)
        self._puppets: dict[str, Puppet] = {}
        self._addresses: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for puppet in self._puppets.values():
            puppet.end()
        super().__exit__(kind, error, trace)

    def up(self, *what: Any, **how: Any) -> dict[str, Any]:
        """As any lab's; and each data worker has heard all that its supervisor has acknowledged."""
        status = super().up(*what, **how)
        for node in status["nodes"]:
            if "ztunnel" in node["programs"]:
                eventually(partial(self._workers_answer, node["name"]))
        return status

    def _workers_answer(self, node: str) -> bool:
        """In turn: what they were told before they have taken in. A foreign proxy cannot be asked so."""
        reply = asyncio.run(request(self.layout.places.node(node).admin_socket, "GET", "/connections"))
        return reply.status == 404 or (bool(reply.check()) and "silent-workers" not in reply.headers)

    def puppet(self, name: str) -> Puppet:
        """The puppet in pod `shop/NAME`."""
        return self._puppet(name, lambda: popen(self.join(f"shop/{name}", ARGV), **OPTIONS))

    def host(self, node: str) -> Puppet:
        """The puppet among a node's own processes."""
        return self._puppet(f"host of {node}", lambda: self.on_node(node, ARGV, **OPTIONS))

    def _puppet(self, name: str, start: Callable[[], "subprocess.Popen[str]"]) -> Puppet:
        with self._lock:
            if name not in self._puppets:
                self._puppets[name] = Puppet(start())
            return self._puppets[name]

    def dismiss(self, name: str) -> None:
        """End a pod's puppet, before the pod goes."""
        self._puppets.pop(name).end()

    def address(self, name: str, version: int = 4) -> str:
        """An address of pod `shop/NAME`."""
        if name not in self._addresses:  # stable, and asked for while the daemon stands still
            self._addresses[name] = self.pod(f"shop/{name}")["addresses"]
        return self._addresses[name][0 if version == 4 else 1]

    # Processes

    def config_dump(self, node: str) -> Any:
        """What a node's proxy knows."""
        target = self.layout.places.node(node).admin_socket
        return json.loads(asyncio.run(request(target, "GET", "/config_dump")).check())

    def admin(self, node: str) -> int:
        """The process that answers on the admin socket of a node's proxy; 0: none does."""
        return listener_of(self.layout.places.node(node).admin_socket)

    def workers(self, node: str) -> list[int]:
        """The pids of a node's data workers."""
        supervisor = self.program(node, "ztunnel")
        return [pid for pid in self.processes(node, "ztunnel") if pid != supervisor]

    def processes(self, node: str, part: str) -> list[int]:
        """Every living process of a node's agent or proxy."""
        path = self.layout.node_cgroup(node) / part / "cgroup.procs"
        return [pid for pid in map(int, path.read_text().split()) if not _has_ended(pid)]

    def kill_proxy(self, node: str) -> None:
        """SIGKILL a node's proxy, and wait until its workers are gone, too. The lab starts another."""
        self._kill_proxy(node, self.await_program(node, "ztunnel"))

    @contextmanager
    def without_proxy(self, node: str) -> Iterator[None]:
        """A node's proxy is killed and stays away for the length of a `with` block; then the lab starts another."""
        proxy = self.await_program(node, "ztunnel")
        with frozen_group(self.layout.lab_cgroup):
            self._kill_proxy(node, proxy)
            yield

    def _kill_proxy(self, node: str, supervisor: int) -> None:
        # Each process by itself: one whose threads have all begun to end is listed no more, and has its listeners open still.
        before = self.processes(node, "ztunnel")
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: all(map(_has_ended, before)))

    def await_ready(self, timeout_s: float = 100.0) -> None:
        """Until the lab says that everything is ready."""

        def unready() -> bool:
            reasons = self.status()["unready"]
            assert not reasons, reasons
            return True

        eventually(unready, timeout_s)

    # What operators see

    def weft(self, *arguments: str, code: int = 0) -> str:
        """Standard output of the `weft` command for this lab, which must end with `code`."""
        running = self.start_weft(*arguments)
        output, error = running.communicate(timeout=100)
        assert running.returncode == code, f"{arguments}: exit {running.returncode}: {error}"
        return output

    def start_weft(self, *arguments: str) -> "subprocess.Popen[str]":
        """The `weft` command for this lab, running."""
        places = self.layout.places
        names = {"WEFT_RUN_DIR": str(places.run), "WEFT_STATE_DIR": str(places.state), "WEFT_PREFIX": places.prefix}
        command = [str(Path(sys.executable).with_name("weft")), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env={**os.environ, **names}, stdout=pipe, stderr=pipe, text=True)

    def flows(self, *filters: str) -> list[dict[str, Any]]:
        """The newest flows that match options of `weft observe`."""
        since = self.evidence_since.isoformat()
        lines = self.weft("observe", "--last", "200", "--since", since, "-o", "json", *filters).splitlines()
        return [one["flow"] for one in map(json.loads, lines) if "flow" in one]  # others say how many were lost

    def await_flow(self, words: str, *filters: str) -> dict[str, Any]:
        """The newest flow whose summary holds `words`."""

        def look() -> dict[str, Any]:
            found = self.flows(*filters)
            matching = [flow for flow in found if words in flow.get("Summary", "")]
            assert matching, f"no flow with {words!r} in {[flow.get('Summary') for flow in found]}"
            return matching[-1]

        return eventually(look)

    def metrics(self, node: str) -> str:
        """What a node's proxy shows Prometheus."""
        reply = asyncio.run(request(self.layout.places.node(node).admin_socket, "GET", "/metrics"))
        return reply.check().decode()

    def log(self, target: str) -> str:
        """All that is left of a log: what the lab moved aside when it outgrew its bounds, and what came since."""
        path = self.log_path(target)
        aside = path.with_name(path.name + ".1")
        return "".join(one.read_text(errors="replace") for one in (aside, path) if one.exists())

    def await_access_log(self, node: str, *words: str) -> str:
        """The newest line of a proxy's access log that holds all of these words."""

        def look() -> str:
            lines = [line for line in self.log(f"{node}/ztunnel").splitlines() if _ACCESS.match(line)]
            lines = [line for line in lines if datetime.fromisoformat(line.partition("\t")[0]) >= self.evidence_since]
            found = [line for line in lines if all(word in line for word in words)]
            assert found, f"no line with {words} among {lines[-10:]}"
            return found[-1]

        return eventually(look)


def _has_ended(pid: int) -> bool:
    """By proc_pid_stat(5): its first thread may have ended before others, which keep its listeners open until they end."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return fields[0] == "Z" and int(fields[17]) <= 1
