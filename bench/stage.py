"""The lab that the bench stands on: up, down, its processes, its pods' addresses, and the load clients inside pods."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from bench.accounts import command_of, parent, started_s
from bench.topology import NODES, PODS, SOURCES, Place, manifests
from lab.layout import Layout, netns_path
from mesh.proto.control_pb2 import ApplyRequest, DeleteRequest, DescribeRequest, ManifestFile
from mesh.proto.control_pb2_grpc import ControlStub
from wire.http_client import request
from wire.http_messages import HttpError

_LOAD, _SERVER, _NAMES = (Path(__file__).with_name(name) for name in ("load.py", "load_server.py", "name_load.py"))
_NAMESERVER = "10.96.0.10"
"""Any will do: the proxy answers in its name."""
_SLACK_S = 60.0
_WEFT = (sys.executable, "-m", "cli.main")
CONGESTION = "cubic"
_TIME_WAITS, _TIME_WAIT_S = "net.ipv4.tcp_max_tw_buckets", 61.0
_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


class LoadError(RuntimeError):
    """A load did not do what it was ordered to."""


class LoadClient:
    """The load generator's client inside a pod."""

    def __init__(self, place: Place, process: "subprocess.Popen[str]") -> None:
        self.place = place
        self._process = process

    def order(self, load: str, **details: Any) -> None:
        """Start a load; `answer` waits for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"load": load, **details}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What the load found. Raises: LoadError with its reason."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"the load client in {self.place.key} ended: see its error above")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise LoadError(f"load in {self.place.key}: {found['error']}")
        return found

    def run(self, load: str, **details: Any) -> dict[str, Any]:
        """Carry out a load."""
        self.order(load, **details)
        return self.answer()


@dataclass(slots=True)
class Stage:
    """A lab that is up."""

    layout: Layout
    control: ControlStub
    clients: dict[str, LoadClient] = field(default_factory=dict)

    def address(self, place: Place, version: int = 4) -> str:
        """A pod's address."""
        answer = self.control.Describe(DescribeRequest(kind="workloads"), timeout=10)
        for text in answer.resources_json:
            workload = json.loads(text)
            if (workload["namespace"], workload["name"]) == (place.namespace, place.name):
                return str(next(one for one in workload["workloadIps"] if (":" in one) == (version == 6)))
        raise LoadError(f"the control plane knows no workload {place.key}")

    def netns(self, place: Place) -> Path:
        """A pod's network namespace."""
        return netns_path(self.layout.pod_netns(place.node, place.key))

    def node_pids(self, part: str) -> dict[int, str]:
        """Processes of `agent` or `ztunnel`, with the node that they serve."""
        return {pid: node for node in NODES for pid in pids_of(self.layout.node_cgroup(node) / part)}

    def pod_pids(self, places: Iterator[Place] | tuple[Place, ...] = PODS) -> list[int]:
        """Processes of pods."""
        return [pid for place in places for pid in pids_of(self.layout.pod_cgroup(place.node, place.key))]

    def proxy(self, node: str) -> int:
        """The supervisor of a node's proxy that started last; 0: none runs."""
        found = {}
        for pid in pids_of(self.layout.node_cgroup(node) / "ztunnel"):
            with suppress(OSError):  # gone since: it was killed to see how soon the next one listens
                if command_of(pid) == "ztunnel":
                    found[pid] = (parent(pid), started_s(pid))
        # A worker has the command line of its supervisor until it is executed.
        started = {pid: at_s for pid, (its_parent, at_s) in found.items() if its_parent not in found}
        return max(started, key=started.__getitem__, default=0)

    def await_ready(self, node: str) -> None:
        """Wait for a node's proxy. Raises: LoadError after a minute."""
        deadline = time.monotonic() + _SLACK_S
        while not self.is_ready(node):
            if time.monotonic() > deadline:
                raise LoadError(f"the proxy of node {node} is not ready within {_SLACK_S:g} s")
            time.sleep(0.005)

    def await_end(self, pid: int) -> None:
        """Wait for a process to end. Raises: LoadError after a minute."""
        deadline = time.monotonic() + _SLACK_S
        while Path(f"/proc/{pid}/stat").exists():
            if time.monotonic() > deadline:
                raise LoadError(f"process {pid} has not ended within {_SLACK_S:g} s")
            time.sleep(0.02)

    def is_ready(self, node: str) -> bool:
        """Whether a node's proxy says that it is ready."""

        async def call() -> bool:
            try:
                answer = await request(self.layout.places.node(node).admin_socket, "GET", "/healthz/ready", timeout_s=2)
            except (OSError, TimeoutError):
                return False
            return answer.status == 200

        return asyncio.run(call())

    def log_errors_alone(self, node: str) -> None:
        """Have a node's proxy log as its contenders do: nothing of connections that go well. Raises: LoadError."""

        async def call() -> None:
            (await request(self.layout.places.node(node).admin_socket, "POST", "/logging?level=access=error")).check()

        try:
            asyncio.run(call())
        except (OSError, TimeoutError, HttpError) as error:
            raise LoadError(f"log level of node {node}'s proxy: {error}") from error

    def apply(self, yaml: str) -> None:
        """Put manifests in force. Raises: LoadError with the problems."""
        answer = self.control.Apply(ApplyRequest(files=[ManifestFile(name="bench", yaml=yaml)]), timeout=10)
        if any(not problem.warning for problem in answer.problems):
            raise LoadError("; ".join(f"{problem.object}: {problem.reason}" for problem in answer.problems))

    def delete(self, yaml: str) -> None:
        """Take manifests out of force."""
        self.control.Delete(DeleteRequest(files=[ManifestFile(name="bench", yaml=yaml)]), timeout=10)


def pids_of(cgroup: Path) -> list[int]:
    """The processes in a cgroup and below it."""
    found = []
    for file in (cgroup / "cgroup.procs", *cgroup.glob("**/cgroup.procs")):
        try:
            found += [int(line) for line in file.read_text().splitlines()]
        except OSError:
            continue  # removed meanwhile
    return sorted(set(found))


@contextmanager
def stage(say: Callable[[str], None], keep: bool) -> Iterator[Stage]:
    """Bring the lab up for the body, with a load client in both client pods; take it down afterwards unless `keep`."""
    layout = Layout.from_environment()
    with ExitStack() as stack:
        if not keep:
            stack.callback(_weft, "lab", "down")
        with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
            file = Path(folder) / "bench.yaml"
            file.write_text(manifests(_SERVER.read_text()))
            say("lab up")
            _weft("lab", "down")
            _weft("lab", "up", str(file))
        force_cubic(layout)
        channel = stack.enter_context(
            grpc.insecure_channel(f"unix:{layout.places.control_socket}", options=[("grpc.default_authority", "localhost")])
        )
        made = Stage(layout, ControlStub(channel))
        for node in NODES:
            made.log_errors_alone(node)
        for place in PODS:
            if place.name == "client":
                _inside(layout, place, ["ip", "route", "add", "local", SOURCES, "dev", "lo"])
                made.clients[place.namespace] = stack.enter_context(load_client(place))
        yield made


def _weft(*arguments: str) -> None:
    result = subprocess.run([*_WEFT, *arguments], stdout=subprocess.DEVNULL, timeout=300)
    if result.returncode:
        raise LoadError(f"weft {' '.join(arguments)}: exit code {result.returncode}, see its error above")


def _inside(layout: Layout, place: Place, command: list[str]) -> None:
    netns = netns_path(layout.pod_netns(place.node, place.key))
    subprocess.run(["nsenter", f"--net={netns}", "--", *command], check=True, timeout=10)


@contextmanager
def load_client(place: Place) -> Iterator[LoadClient]:
    """A further load client in a pod, in a session of its own as the pod's other programs are (see `pair.start`)."""
    command = [*_WEFT, "lab", "exec", place.key, "--", "/usr/bin/python3", "-c", _LOAD.read_text()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        try:
            yield LoadClient(place, process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_SLACK_S)
            except subprocess.TimeoutExpired:
                process.kill()


def ask_names(place: Place, name: str, rate: float, seconds: float) -> dict[str, float]:
    """Have a pod ask for a name, over and over. Raises: LoadError."""
    order = [_NAMES.read_text(), _NAMESERVER, "53", name, str(rate), str(seconds)]
    command = [*_WEFT, "lab", "exec", place.key, "--", "/usr/bin/python3", "-c", *order]
    said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _SLACK_S, start_new_session=True)
    if said.returncode:
        raise LoadError(f"questions in {place.key}: {said.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(said.stdout)
    return found


def force_cubic(layout: Layout) -> None:
    """Set the congestion control of every namespace of the lab: the machine's default (BBR, say) would be measured too.

    Namespaces may choose only what the machine allows to everybody: cubic is added to that list for this moment, if it has to.
    """
    allowed = _ALLOWED.read_text()
    try:
        if CONGESTION not in allowed.split():
            _ALLOWED.write_text(f"{allowed.strip()} {CONGESTION}")
        _set_everywhere(layout, "net.ipv4.tcp_congestion_control", CONGESTION)
    finally:
        if CONGESTION not in allowed.split():
            _ALLOWED.write_text(allowed)


@contextmanager
def without_time_wait(layout: Layout) -> Iterator[None]:
    """For the body, connections that end leave nothing in the kernel; those of before are waited for, a minute.

    Else 500 bytes of each of some ten thousand would go at any time, and be taken for memory that others give back.
    """
    before = _set_everywhere(layout, _TIME_WAITS, "0")
    try:
        time.sleep(_TIME_WAIT_S)
        yield
    finally:
        _set_everywhere(layout, _TIME_WAITS, before)


def _set_everywhere(layout: Layout, name: str, value: str) -> str:
    """Set a sysctl in every namespace of the lab; returns what the first one had."""
    names = [layout.fabric_netns, layout.control_netns, *(layout.node_netns(node) for node in NODES)]
    names += [layout.pod_netns(place.node, place.key) for place in PODS]
    before = ""
    for netns in names:
        enter = ["nsenter", f"--net={netns_path(netns)}", "--", "sysctl"]
        if not before:
            asked = subprocess.run([*enter, "-n", name], check=True, capture_output=True, text=True, timeout=10)
            before = asked.stdout.strip()
        subprocess.run([*enter, "-qw", f"{name}={value}"], check=True, timeout=10)
    return before
