"""One node: its namespace, its cgroup, its prober, and with the mesh its agent and its proxy.

Every program is inside the node's cgroup and network namespace before it makes a socket: the mesh's programs hang on that
cgroup, and the agent knows the host's own processes and the proxy by theirs.
"""

import asyncio
import os
import sys
from pathlib import Path

from lab import cgroup, fabric, netns, teardown
from lab.addresses import NodeAddresses, control
from lab.claim import require_own_namespace
from lab.launch import Launch
from lab.layout import SOURCE_ROOT, Layout, netns_path
from lab.process import LaunchError, listener_of
from lab.proxy import Surroundings, with_dns
from lab.steps import to_its_end
from lab.supervision import Program, ProgramState
from lab.syscalls import detach, mount
from wire.http_client import request
from wire.http_messages import HttpError
from wire.places import NodePlaces

XDS_PORT = 15012
_READY_TIMEOUT_S = 2.0
_POLL_S = 0.05
_IMAGE_PYTHON = "/opt/weft/bin/python"
_MESH_PARTS = ("agent", "ztunnel")


def control_authority() -> str:
    """Where agents and proxies find weft-control: HOST:PORT."""
    return f"{control()[0].ip}:{XDS_PORT}"


def program_environment(layout: Layout) -> dict[str, str]:
    """What weft's own programs inherit: the lab's places, and nothing else of the shell that started it."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("WEFT_", "BCC_"))}
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **kept,
        "WEFT_PREFIX": layout.places.prefix,
        "WEFT_RUN_DIR": str(layout.places.run),
        "WEFT_STATE_DIR": str(layout.places.state),
        "WEFT_CLUSTER_DOMAIN": layout.domain,
    }


def program_launch(layout: Layout, cgroup_path: Path, netns_name: str, log: Path, argv: list[str]) -> Launch:
    """One of weft's own programs: `python -m ARGV...`, of the node image where WEFT_LAB_IMAGE names the root of one."""
    image = os.environ.get("WEFT_LAB_IMAGE", "")
    return Launch(
        argv=(_IMAGE_PYTHON if image else sys.executable, "-m", *argv),
        cgroup=str(cgroup_path),
        netns=str(netns_path(netns_name)),
        env=program_environment(layout),
        cwd="/" if image else str(SOURCE_ROOT),
        log=str(log),
        image=image,
        image_folders=(str(layout.places.run), str(layout.places.state)) if image else (),
    )


class NodeRun:
    """Owns everything of one node but its pods."""

    def __init__(self, layout: Layout, name: str, addresses: NodeAddresses) -> None:
        self._layout = layout
        self.name = name
        self.addresses = addresses
        self._programs: dict[str, tuple[Program, asyncio.Task[None]]] = {}
        self._proxy_start: asyncio.Task[None] | None = None
        self._proxy_command: tuple[str, ...] = ()
        self._network = ""
        self._rules = ""
        self._reason = "its network is being made"

    @property
    def places(self) -> NodePlaces:
        """Its sockets and folders."""
        return self._layout.places.node(self.name)

    async def prepare(self, group: asyncio.TaskGroup) -> None:
        """Make its network and start its prober; what a former daemon left complete is kept.

        Raises: RuntimeError, OSError when the kernel refuses.
        """
        await to_its_end(self._make_places)
        self._start("prober", group, ["lab.prober", str(self._layout.prober_socket(self.name))], "host")
        self._reason = ""

    def _make_places(self) -> None:
        layout, name = self._layout, self._layout.node_netns(self.name)
        require_own_namespace(name, layout.node_cgroup(self.name))
        for part in ("host", "pods"):
            cgroup.create(layout.node_cgroup(self.name) / part)
        for folder in (self.places.run, self.places.state):
            folder.mkdir(parents=True, exist_ok=True)
        standing = layout.standing(self.name)  # written last: a network without it may be half made
        expected = f"{self.addresses}"
        if not (netns.exists(name) and standing.exists() and standing.read_text() == f"{netns.inode(name)} {expected}"):
            cgroup.kill(layout.node_cgroup(self.name))
            fabric.delete_node(layout, self.name)
            fabric.create_node(layout, self.name, self.addresses)
            standing.parent.mkdir(parents=True, exist_ok=True)
            standing.write_text(f"{netns.inode(name)} {expected}")

    async def set_rules(self, rules: str) -> None:
        """Load the service rules where they changed. Raises: RuntimeError when the kernel refuses."""
        if rules != self._rules:
            await asyncio.to_thread(netns.nft, self._layout.node_netns(self.name), rules)
            self._rules = rules

    async def use_network(self, group: asyncio.TaskGroup, network: str) -> None:
        """Say what the node's network is called; where its agent and proxy were told otherwise, others take their places."""
        if network == self._network:
            return
        self._network = network
        if self.has_mesh:
            await self._stop_proxy()
            await self._stop("agent")
            self._start_agent(group)

    async def start_mesh(self, group: asyncio.TaskGroup, token: str, root_pem: str) -> None:
        """Start the agent, if it does not run. A proxy is for `use_proxy`.

        Raises: OSError when the node's folders cannot be written.
        """
        await asyncio.to_thread(self._write_credentials, token, root_pem)
        self._start_agent(group)

    def _start_agent(self, group: asyncio.TaskGroup) -> None:
        layout = self._layout
        own, pods = layout.node_cgroup(self.name), layout.pods_cgroup(self.name)
        agent = ["agent", "--node", self.name, "--cgroup", str(own), "--pods-cgroup", str(pods)]
        agent += ["--bpffs", str(self.places.bpffs), "--control", control_authority(), "--network", self._network]
        self._start("agent", group, agent)

    async def use_proxy(self, group: asyncio.TaskGroup, command: tuple[str, ...]) -> None:
        """Have this command run as the node's proxy, weft's own where it is empty; another one that runs ends before."""
        if self._proxy_start is not None and command != self._proxy_command:
            await self._stop_proxy()
        if self._proxy_start is None:
            self._proxy_command = command
            self._proxy_start = group.create_task(self._start_proxy(group))

    async def replace_proxy(self) -> tuple[int, int]:
        """Have a new process of weft's own proxy take over from the one that runs: their numbers, old and new.

        Raises: LaunchError where none runs, or the new one does not become ready.
        """
        if self._proxy_command or "ztunnel" not in self._programs:
            raise LaunchError(f"node {self.name} runs no proxy of weft's own")
        return await self._programs["ztunnel"][0].replace(self._successor_unready)

    async def _successor_unready(self, pid: int) -> str:
        if await asyncio.to_thread(listener_of, self.places.admin_socket) != pid:
            return "it does not listen yet"
        return await self._proxy_unready()

    async def _stop_proxy(self) -> None:
        if self._proxy_start is not None:
            self._proxy_start.cancel()
            await asyncio.wait([self._proxy_start])
            self._proxy_start = None
        await self._stop("ztunnel")
        await self._stop("admin")

    async def _start_proxy(self, group: asyncio.TaskGroup) -> None:
        # It may start at any time; but one that begins before its agent serves waits longer and longer between attempts.
        while not self.places.zds_socket.exists():  # noqa: ASYNC110  a file tells nobody that it is there
            await asyncio.sleep(_POLL_S)
        own = ["ztunnel", "--node", self.name, "--control", control_authority()]
        self._start("ztunnel", group, own, foreign=self._proxy_command)
        if self._proxy_command:
            self._start("admin", group, ["lab.admin_relay", str(self.places.admin_socket)])

    def _write_credentials(self, token: str, root_pem: str) -> None:
        for path, text in ((self.places.token, token), (self.places.root, root_pem)):
            fresh = path.with_name(path.name + ".new")  # who runs reads them at any time, and a full disk must leave the former
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w") as file:
                file.write(text)
            os.replace(fresh, path)
        self.places.bpffs.mkdir(exist_ok=True)
        if not os.path.ismount(self.places.bpffs):
            mount("bpf", str(self.places.bpffs), "bpf", 0, "mode=700")

    def _start(
        self, part: str, group: asyncio.TaskGroup, argv: list[str], cgroup_name: str = "", foreign: tuple[str, ...] = ()
    ) -> None:
        if part in self._programs:
            return
        layout = self._layout
        path = layout.node_cgroup(self.name) / (cgroup_name or part)
        cgroup.create(path)

        def launch() -> Launch:
            log = layout.process_log(self.name, part)
            own = program_launch(layout, path, layout.node_netns(self.name), log, argv)
            env = {**own.env, "NETWORK": self._network, "CLUSTER_DOMAIN": layout.domain}
            if foreign:
                return own._replace(argv=foreign, env=self._surroundings().environment(env))
            return own._replace(env=with_dns(env) if part == "ztunnel" else env)

        program = Program(f"{part} of node {self.name}", launch, layout.program_record(self.name, part))
        self._programs[part] = (program, group.create_task(program.run()))

    def _surroundings(self) -> Surroundings:
        return Surroundings(self.places, control_authority(), str(self.addresses.underlay[0].ip))

    @property
    def programs(self) -> dict[str, ProgramState]:
        """How its programs do: `prober`, and with the mesh `agent` and `ztunnel`."""
        return {part: program.state for part, (program, _) in self._programs.items()}

    @property
    def has_mesh(self) -> bool:
        """Whether an agent or a proxy is to run."""
        return any(part in self._programs for part in _MESH_PARTS)

    async def stop_mesh(self) -> None:
        """End the proxy and the agent, and take the mesh's programs off the node."""
        await self._stop_proxy()
        await self._stop("agent")
        await asyncio.to_thread(self._unmount)

    async def _stop(self, part: str) -> None:
        if part in self._programs:
            program, task = self._programs.pop(part)
            await program.stop()
            await task

    def _unmount(self) -> None:
        while os.path.ismount(self.places.bpffs):
            detach(str(self.places.bpffs))

    async def unready(self) -> str:
        """Why the node is not ready, asking its programs; empty when it is."""
        if self._reason:
            return self._reason
        for program, _ in self._programs.values():
            if program.state.pid == 0:
                return f"{program.name} {program.state.reason}"
        if self.has_mesh:
            if "ztunnel" not in self._programs or not self.places.agent_socket.exists():
                return f"agent of node {self.name} does not serve yet"
            reason = await self._proxy_unready()
            if reason:
                return f"ztunnel of node {self.name} is not ready: {reason}"
        return ""

    async def _proxy_unready(self) -> str:
        try:
            (await request(self.places.admin_socket, "GET", "/healthz/ready", timeout_s=_READY_TIMEOUT_S)).check()
        except (FileNotFoundError, ConnectionRefusedError):
            return "it does not answer yet"
        except (OSError, TimeoutError, HttpError) as error:
            return str(error) or "it does not answer"
        return ""

    async def delete(self) -> None:
        """End its programs and remove all of it. Its pods have been deleted before."""
        await self.stop_mesh()
        await self._stop("prober")
        await asyncio.to_thread(teardown.remove_node, self._layout, self.name)
