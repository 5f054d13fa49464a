"""A node for the agent: real namespaces and cgroups, the real process, and a scripted proxy beside it."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import grpc

from mesh.proto import agent_pb2, agent_pb2_grpc, flow_pb2, observer_pb2, observer_pb2_grpc
from wire.cgroup import cgroup2_mount
from wire.places import NodePlaces

ROOT = Path(__file__).parents[2]
NODE = "n1"
ADDRESSES = {"a": ("10.214.0.2/24", "fd14::2/64"), "b": ("10.214.0.3/24", "fd14::3/64")}


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 100.0) -> Any:
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(OSError, grpc.RpcError):
            answer = condition()
            if answer:
                return answer
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s for {what}")


class Node:
    """A node namespace with pods a and b on a bridge; nothing is enrolled yet."""

    def __init__(self, folder: Path) -> None:
        self.prefix = f"wa{os.getpid()}"
        self.folder = folder
        self.cgroup = cgroup2_mount() / self.prefix
        self.places = NodePlaces(NODE, folder / "run/nodes" / NODE, folder / "state/nodes" / NODE)
        self.places.run.mkdir(parents=True)
        self.namespaces: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "WEFT_RUN_DIR": str(folder / "run"),
            "WEFT_STATE_DIR": str(folder / "state"),
            "WEFT_PREFIX": self.prefix,
            "PYTHONPATH": str(ROOT),
        }

    # the stage

    def build(self) -> None:
        """Make it."""
        for name in ("agent", "proxy", "host", "pods/a", "pods/b"):
            (self.cgroup / name).mkdir(parents=True)
        self.add_namespace("node")
        self.ip("node", "link add br0 type bridge", "link set br0 up", "addr add 10.214.0.1/24 dev br0")
        self.ip("node", "addr add fd14::1/64 dev br0 nodad")
        for name in ADDRESSES:
            self.add_pod(name)

    def add_namespace(self, name: str) -> None:
        """A namespace with a loopback."""
        subprocess.run(["ip", "netns", "add", f"{self.prefix}-{name}"], check=True, timeout=100)
        self.namespaces.append(name)
        self.ip(name, "link set lo up")

    def add_pod(self, name: str) -> None:
        """A pod's namespace on the bridge."""
        ip4, ip6 = ADDRESSES[name]
        self.add_namespace(name)
        self.ip(
            "node", f"link add v{name} type veth peer name eth0 netns {self.prefix}-{name}", f"link set v{name} master br0 up"
        )
        self.ip(name, f"addr add {ip4} dev eth0", f"addr add {ip6} dev eth0 nodad", "link set eth0 up")

    def remove_namespace(self, name: str) -> None:
        """As the runtime does when a pod ends."""
        subprocess.run(["ip", "netns", "del", f"{self.prefix}-{name}"], check=True, timeout=100)
        self.namespaces.remove(name)

    def ip(self, namespace: str, *commands: str) -> None:
        """Run `ip` in a namespace."""
        for command in commands:
            subprocess.run(["ip", "-n", f"{self.prefix}-{namespace}", *command.split()], check=True, timeout=100)

    def netns(self, name: str) -> str:
        """Path of a namespace."""
        return f"/run/netns/{self.prefix}-{name}"

    def start(self, namespace: str, cgroup: str, *command: str, **options: Any) -> "subprocess.Popen[bytes]":
        """A process that was in its cgroup and namespace before its first instruction."""
        enter = f'echo $$ >{self.cgroup / cgroup}/cgroup.procs; exec nsenter --net={self.netns(namespace)} -- "$@"'
        process = subprocess.Popen(
            ["sh", "-c", enter, "sh", *command], env=self.environment, cwd=ROOT, stdin=subprocess.DEVNULL, **options
        )
        self.processes.append(process)
        return process

    def tear_down(self) -> None:
        """Remove all of it, what an agent that did not end in order had begun as well."""
        if self.cgroup.exists():
            (self.cgroup / "cgroup.kill").write_text("1")
            wait_until(lambda: "populated 0" in (self.cgroup / "cgroup.events").read_text(), "the end of all processes")
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(100)
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        subprocess.run(["umount", str(self.places.bpffs)], check=False, capture_output=True)
        for name in list(self.namespaces):
            subprocess.run(["ip", "netns", "del", f"{self.prefix}-{name}"], check=False, capture_output=True)
        for path in sorted(self.cgroup.glob("**/"), key=lambda path: -len(path.parts)):
            path.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    # the players

    def begin_agent(self, *more: str) -> "subprocess.Popen[bytes]":
        """The agent, which starts."""
        command = [sys.executable, "-W", "error", "-m", "agent", "--node", NODE, "--cgroup", str(self.cgroup)]
        with (self.folder / "agent.log").open("ab") as log:
            return self.start("node", "agent", *command, "--metrics-port", "15090", *more, stdout=log, stderr=log)

    def start_agent(self, *more: str) -> "subprocess.Popen[bytes]":
        """The agent, serving."""
        process = self.begin_agent(*more)

        def serves() -> bool:
            assert process.poll() is None, (self.folder / "agent.log").read_text()[-3000:]
            return bool(self.status().node)

        wait_until(serves, "the agent")
        return process

    def stop_agent(self, process: "subprocess.Popen[bytes]") -> None:
        """SIGTERM, and a clean end."""
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 0, self.log()

    def start_proxy(self) -> "subprocess.Popen[bytes]":
        """The scripted proxy; its output is read with `proxy_says`."""
        return self.start(
            "node",
            "proxy",
            sys.executable,
            str(Path(__file__).parent / "scripted_proxy.py"),
            str(self.places.zds_socket),
            stdout=subprocess.PIPE,
        )

    def log(self) -> str:
        """The agent's log so far."""
        path = self.folder / "agent.log"
        return path.read_text() if path.exists() else ""

    # what is asked of the agent

    def post(self, path: str, document: dict[str, Any]) -> tuple[int, str]:
        """As a runtime does; status and text."""
        body = json.dumps(document).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(100)
            sock.connect(str(self.places.agent_socket))
            sock.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        status, _, text = answer.partition(b"\r\n\r\n")
        return int(status.split()[1]), text.decode().strip()

    def add_request(self, name: str, **changes: Any) -> dict[str, Any]:
        """The body of a `/cmdadd` for a pod."""
        interfaces = [ip_interface(text) for text in ADDRESSES[name]]
        return {
            "Netns": self.netns(name),
            "PodName": f"pod-{name}",
            "PodNamespace": "demo",
            "IPs": [
                {"Interface": 2, "Address": {"IP": str(one.ip), "Mask": base64.b64encode(one.netmask.packed).decode()}}
                for one in interfaces
            ],
            "UID": f"uid-{name}",
            "ServiceAccount": name,
            "Labels": {"app": name},
            "CgroupPath": str(self.cgroup / "pods" / name),
            **changes,
        }

    def enrol(self, name: str, **changes: Any) -> None:
        """Enrol a pod; must work. The agent waits for a proxy too, but for no longer than runtimes wait."""
        wait_until(lambda: self.status().proxy.ready, "the proxy")
        answer = self.post("/cmdadd", self.add_request(name, **changes))
        assert answer[0] == 200, f"{answer}\n{self.log()}"

    def status(self) -> agent_pb2.StatusResponse:
        """weft.agent.Agent/Status, through agent.sock."""
        with grpc.insecure_channel(f"unix:{self.places.agent_socket}") as channel:
            return agent_pb2_grpc.AgentStub(channel).Status(agent_pb2.StatusRequest(), timeout=100)

    def flows(self, **request: Any) -> list[flow_pb2.Flow]:
        """Stored flows."""
        with grpc.insecure_channel(f"unix:{self.places.hubble_socket}") as channel:
            stub = observer_pb2_grpc.ObserverStub(channel)
            return [
                one.flow for one in stub.GetFlows(observer_pb2.GetFlowsRequest(**request), timeout=100) if one.HasField("flow")
            ]

    # what apps do

    def dial(self, name: str, address: str, port: int, cgroup: str = "") -> str:
        """Connect from a pod; what came back first, or the error's name."""
        script = (
            "import socket,sys\n"
            "try:\n s=socket.create_connection((sys.argv[1],int(sys.argv[2])),60)\n print(s.recv(200).decode().strip())\n"
            "except OSError as e: print(type(e).__name__)"
        )
        process = self.start(
            name, cgroup or f"pods/{name}", sys.executable, "-c", script, address, str(port), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        return process.communicate(timeout=100)[0].decode().strip()


def read_line(process: "subprocess.Popen[bytes]") -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()
