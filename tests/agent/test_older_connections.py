"""Connections older than their pod's enrolment: which are closed, which are kept and shown, and how often they are told of."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest

from agent import pre_mesh
from agent.agent_events import AgentEvents
from agent.mesh_view import MeshView
from agent.pod import Pod, PodRequest
from agent.pre_mesh import PreMesh
from bpf.sock_destroy import Connection, State
from mesh.exclusions import NOTHING, Exclusions
from mesh.flows import ConnectionEvent
from mesh.workload import Address, Workload
from tests.strict import STRICT
from wire.mesh_cache import MeshCache

pytestmark = pytest.mark.unit

POD = Pod(PodRequest("uid-1", "demo", "web", "web", "/run/netns/web"), (4, 1), 7, "boot")
GONE = Pod(PodRequest("uid-2", "demo", "gone", "gone", "/run/netns/gone"), (4, 2), 8, "boot")
STRANGE = Pod(PodRequest("uid-3", "demo", "strange", "strange", "/run/netns/strange"), (4, 3), 9, "boot")
WEB = Workload(
    "Kubernetes//Pod/demo/web",
    "web",
    "demo",
    addresses=(ip_address("10.0.0.2"),),
    service_account="web",
    cluster_id="Kubernetes",
    authorization_policies=(STRICT.key,),
)
CLIENT, NODE = ip_address("10.0.0.3"), ip_address("10.0.0.9")


def connection(cookie: int, local_port: int = 8080, remote: Any = CLIENT) -> Connection:
    return Connection(ip_address("10.0.0.2"), local_port, remote, 40_000, State.ESTABLISHED, 0, socket.AF_INET, cookie)


class Machine:
    """Enrolment and hands of a node with connections from before."""

    def __init__(self, *living: Connection) -> None:
        self.living = list(living)
        self.closed: list[tuple[int, list[int]]] = []
        self.netns_fds = {POD.uid: 50, GONE.uid: 51, STRANGE.uid: 52}
        self.captured = {POD.uid, GONE.uid}
        self.looked_at: list[str] = []
        self.hands = self
        self.pod = POD

    def pods(self) -> dict[str, Pod]:
        return {pod.uid: pod for pod in (GONE, STRANGE, self.pod)}

    def is_captured(self, uid: str) -> bool:
        return uid in self.captured

    def netns_of(self, uid: str) -> int | None:
        return self.netns_fds.get(uid)

    async def blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def older_connections(self, uid: str, _netns_fd: int) -> tuple[list[Connection], set[int]]:
        self.looked_at.append(uid)
        if uid != POD.uid:
            raise OSError(3, "its namespace is gone")
        return list(self.living), {8080, 9090}

    def close_connections(self, netns_fd: int, chosen: Iterable[Connection]) -> int:
        cookies = [one.cookie for one in chosen]
        self.closed.append((netns_fd, cookies))
        self.living = [one for one in self.living if one.cookie not in cookies]
        return len(cookies)


class Watched:
    """What is made of a machine's connections, and what was told."""

    def __init__(self, machine: Machine, folder: Path, exclusions: Exclusions = NOTHING) -> None:
        self.told: list[ConnectionEvent] = []
        self.machine, self.view = machine, MeshView("", AgentEvents("n1"), MeshCache(folder / "mesh.sqlite"))
        enrolment = cast(Any, machine)
        self.pre_mesh = PreMesh("n1", "Kubernetes", enrolment, self.view, exclusions, self.node_addresses, self.told.append)
        self.asked = 0

    def node_addresses(self) -> frozenset[Address]:
        self.asked += 1
        return frozenset({NODE})

    def learn(self, *workloads: Workload, strict: bool = True) -> None:
        self.view.inventory.apply(list(workloads), [])
        self.view.policies.apply([STRICT] if strict else [], [] if strict else [STRICT.key])
        self.pre_mesh.changed()

    def said(self) -> list[tuple[str, str, int]]:
        return [
            (event.phase, event.direction, (event.destination if event.direction == "inbound" else event.source).port)
            for event in self.told
        ]


def watching(watched: Watched, scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        task = asyncio.create_task(watched.pre_mesh.run())
        await scenario()
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_what_policies_deny_is_closed_and_all_else_is_kept_and_told_of_once(tmp_path: Path, eventually: Any) -> None:
    machine = Machine(connection(1), connection(2, 41_000), connection(3, remote=NODE), connection(4, 9090))
    watched = Watched(machine, tmp_path, Exclusions(inbound_ports=(9090,)))

    async def scenario() -> None:
        watched.learn(WEB)
        await eventually(lambda: machine.closed)
        kept = [("kept", "outbound", 41_000), ("kept", "inbound", 8080), ("kept", "inbound", 9090)]
        assert machine.closed == [(50, [1])] and watched.said() == [("denied", "inbound", 8080), *kept]
        assert watched.asked == 1, "the kernel is not asked for each connection"
        denied = watched.told[0]
        assert (denied.policy, denied.pre_mesh, denied.source.address) == (STRICT.key, True, CLIENT)
        assert (denied.policy_object, denied.node) == ("a STRICT PeerAuthentication", "n1") and STRICT.key in denied.reason
        assert [event.source.kind == "host" for event in watched.told] == [False, False, True, False]
        machine.living.append(connection(5))
        watched.learn()
        await eventually(lambda: len(machine.closed) == 2)
        assert machine.closed[1] == (50, [5]) and watched.said()[4:] == [("denied", "inbound", 8080)]
        assert set(machine.looked_at) == {GONE.uid, POD.uid}, "nor is anything closed of a pod that is not captured"

    watching(watched, scenario)


def test_what_a_pods_own_exclusions_let_in_is_kept(tmp_path: Path, eventually: Any) -> None:
    machine = Machine(connection(4, 9090), connection(1))
    machine.pod = replace(POD, request=replace(POD.request, exclusions=Exclusions(inbound_ports=(9090,))))
    watched = Watched(machine, tmp_path)

    async def scenario() -> None:
        watched.learn(WEB)
        await eventually(lambda: machine.closed)
        assert machine.closed == [(50, [1])] and watched.said() == [("kept", "inbound", 9090), ("denied", "inbound", 8080)]

    watching(watched, scenario)


def test_nothing_is_decided_before_the_pod_and_its_policies_are_known(tmp_path: Path, eventually: Any) -> None:
    machine = Machine(connection(1))
    watched = Watched(machine, tmp_path)

    async def scenario() -> None:
        watched.learn(replace(WEB, service_account="other"))
        await eventually(lambda: machine.looked_at.count(POD.uid) == 1)
        watched.learn(WEB, strict=False)
        await eventually(lambda: watched.told)
        assert watched.said() == [("kept", "inbound", 8080)] and not machine.closed
        watched.learn(strict=True)
        await eventually(lambda: machine.closed)
        assert watched.said()[1:] == [("denied", "inbound", 8080)]

    watching(watched, scenario)


def test_nothing_is_closed_in_a_namespace_that_became_another(tmp_path: Path, eventually: Any) -> None:
    machine = Machine(connection(1))
    watched = Watched(machine, tmp_path)
    leave = machine.older_connections

    def leaving(uid: str, netns_fd: int) -> tuple[list[Connection], set[int]]:
        found = leave(uid, netns_fd)
        machine.netns_fds[uid] = 60
        return found

    machine.older_connections = leaving  # type: ignore[method-assign]

    async def scenario() -> None:
        watched.learn(WEB)
        await eventually(lambda: watched.told)
        assert not machine.closed
        watched.learn()
        await eventually(lambda: machine.closed)
        assert machine.closed == [(60, [1])]

    watching(watched, scenario)


def test_they_are_looked_at_though_nothing_changes_and_those_of_a_pod_that_comes_anew_are_told_of_anew(
    tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pre_mesh, "_RECHECK_S", 0.01)
    machine = Machine(connection(1))
    watched = Watched(machine, tmp_path)

    async def scenario() -> None:
        watched.learn(WEB, strict=False)
        await eventually(lambda: machine.looked_at.count(POD.uid) > 3)
        machine.living.append(connection(2, 41_000))
        await eventually(lambda: len(watched.told) > 1)
        told = [("kept", "inbound", 8080), ("kept", "outbound", 41_000)]
        assert watched.said() == told
        pods, looks = machine.pods, list[int]()

        def nobody() -> dict[str, Pod]:
            looks.append(len(machine.looked_at))
            return {}

        monkeypatch.setattr(machine, "pods", nobody)
        await eventually(lambda: len(looks) > 2)
        assert len(machine.looked_at) == looks[0]
        monkeypatch.setattr(machine, "pods", pods)
        await eventually(lambda: len(watched.told) > 3)
        assert watched.said() == told * 2

    watching(watched, scenario)
