"""The life of one pod: network, enrolment, init containers, containers, end.

Order is a promise: the pod's network stands before the agent hears of it, and the agent has it before the first program
runs, so that no program of an enrolled pod ever makes an uncaptured socket. An agent that cannot enrol a pod keeps it
from starting, and the reason shows in the pod's state.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from lab import cgroup, fabric, netns, teardown
from lab.claim import require_own_namespace
from lab.container import Facts, command
from lab.container_run import ContainerRun, ContainerState, write_in_place
from lab.enrolment import EnrolmentError, enrol, withdraw
from lab.hosts import hosts_file, resolver_file
from lab.layout import Layout
from lab.steps import to_its_end
from lab.supervision import pause_s
from lab.wish import PodWish
from mesh.manifests import Container, PodSpec

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class PodState:
    """How a pod does."""

    wish: PodWish
    addresses: list[str]
    """Empty until its network stands."""
    phase: str
    ready: bool
    enrolled: bool
    restarts: int
    reason: str
    containers: list[ContainerState] = field(default_factory=list)


class PodRun:
    """Owns everything of one pod. `run` is its task; cancelling that leaves the pod to the next daemon, `delete` ends it."""

    def __init__(self, layout: Layout, wish: PodWish, changed: Callable[[], None]) -> None:
        self._layout = layout
        self.wish = wish
        self._changed = changed
        self._names = ""
        self._networked = False
        self._enrolled_as: PodWish | None = None
        self._cleared = asyncio.Event()
        self._wanted = asyncio.Event()
        self._phase = "Pending"
        self._reason = "waiting for its network"
        self._runs: list[ContainerRun] = []

    # What others see

    @property
    def state(self) -> PodState:
        """How it does now."""
        states = [run.state for run in self._runs]
        running = bool(states) and self._phase == "Running"
        ready = running and all(one.ready for one in states)
        reason = next((f"container {one.name}: {one.reason}" for one in states if one.reason), "") or self._reason
        addresses = self.wish.address_texts if self._networked else []
        restarts = sum(one.restarts for one in states)
        done = self._phase in ("Succeeded",)
        shown = "" if ready or done else reason
        return PodState(self.wish, addresses, self._phase, ready, self._enrolled_as is not None, restarts, shown, states)

    def container(self, name: str = "") -> ContainerRun | None:
        """The container of this name, or the first; None when the pod has none such (yet)."""
        return next((run for run in self._runs if not name or run.command.name == name), None)

    # What changes it

    def update(self, wish: PodWish) -> None:
        """Take a wish that differs in labels, annotations or enrolment only."""
        self.wish = wish
        for run in self._runs:
            run.wish = wish
        self._wanted.set()

    def set_names(self, shared: str) -> None:
        """Take the services' names as this pod's namespace sees them. Raises: OSError when they cannot be written."""
        if shared != self._names:
            if self._networked:
                self._write_names(shared)
            self._names = shared

    async def run(self) -> None:
        """Live until cancelled."""
        try:
            await self._prepare()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_enrolment())
                await self._run_containers()
        except ValueError as error:  # nothing that trying again would mend
            self._set("Failed", str(error))

    def give_up(self, reason: str) -> None:
        """Show that nothing more will come of it."""
        self._set("Failed", reason)

    def _set(self, phase: str, reason: str) -> None:
        self._phase, self._reason = phase, reason
        self._changed()

    async def _prepare(self) -> None:
        failures = 0
        while not self._networked:
            try:
                await to_its_end(self._make_places)
                self._networked = True
                self._set("Pending", "waiting to be enrolled" if self.wish.enrol else "")
            except (RuntimeError, OSError) as error:
                self._set("Pending", f"no network yet: {error}")
                await asyncio.sleep(pause_s(failures, longest_s=_LONGEST_PAUSE_S))
                failures += 1

    def _make_places(self) -> None:
        layout, wish = self._layout, self.wish
        name = layout.pod_netns(wish.node, wish.key)
        require_own_namespace(name, layout.pod_cgroup(wish.node, wish.key))
        cgroup.create(layout.pod_cgroup(wish.node, wish.key))
        run = layout.pod_run(wish.key)
        standing = run / "network"  # written last: a network without it may be half made
        if not wish.host_network and not (
            netns.exists(name) and standing.exists() and standing.read_text() == self._network_mark(name)
        ):
            cgroup.kill(layout.pod_cgroup(wish.node, wish.key))
            shutil.rmtree(run, ignore_errors=True)
            fabric.create_pod(layout, wish.node, wish.key, wish.addresses, wish.ranges)
        run.mkdir(parents=True, exist_ok=True)
        layout.scratch.mkdir(parents=True, exist_ok=True)
        for volume in wish.pod.spec.volumes:
            path = layout.pod_volumes(wish.key) / volume
            path.mkdir(parents=True, exist_ok=True)
            os.chmod(path, 0o777)
        write_in_place(
            run / "resolv.conf", resolver_file(wish.pod.namespace, wish.domain, (network[1] for network in wish.ranges))
        )
        self._write_names(self._names)
        if not wish.host_network:
            standing.write_text(self._network_mark(name))

    def _network_mark(self, name: str) -> str:
        parent = self._layout.node_netns(self.wish.node)
        return f"{self.wish.uid} {netns.inode(name)} {netns.inode(parent)}"

    def _write_names(self, shared: str) -> None:
        wish = self.wish
        text = hosts_file(wish.pod.name, [one.ip for one in wish.own_addresses], shared)
        write_in_place(self._layout.pod_run(wish.key) / "hosts", text)

    # Enrolment

    async def _keep_enrolment(self) -> None:
        marker = self._layout.pod_run(self.wish.key) / "enrolled"
        if marker.exists():
            self._enrolled_as = self.wish
        failures = 0
        while True:
            self._wanted.clear()
            wish = self.wish
            try:
                await self._enrol_or_withdraw(wish)
                failures = 0
            except EnrolmentError as error:
                self._reason = f"{'not enrolled' if wish.enrol else 'not withdrawn'}: {error}"
                self._changed()
                await asyncio.sleep(pause_s(failures, longest_s=_LONGEST_PAUSE_S))
                failures += 1
                continue
            marker.touch() if wish.enrol else marker.unlink(missing_ok=True)
            if not self._cleared.is_set() or self._reason:
                self._cleared.set()
                self._reason = ""
            self._changed()
            await self._wanted.wait()

    async def _enrol_or_withdraw(self, wish: PodWish) -> None:
        before = self._enrolled_as
        if wish.enrol and (before is None or _marks(before) != _marks(wish)):
            await enrol(self._layout, wish)
            self._enrolled_as = wish
        elif not wish.enrol and before is not None:
            await withdraw(self._layout, wish.node, wish.uid)
            self._enrolled_as = None

    # Containers

    def _run_of(self, container: Container, init: bool = False) -> ContainerRun:
        facts = Facts(self.wish.node, tuple(self.wish.address_texts))
        log = self._layout.container_log(self.wish.key, container.name, init)
        return ContainerRun(self._layout, self.wish, command(self.wish.pod, container, facts), log, self._changed)

    async def _run_containers(self) -> None:
        spec = self.wish.pod.spec
        runs = [self._run_of(one) for one in spec.containers]
        adopted = [run for run in runs if run.adopt()]
        if not adopted:
            # What a daemon that was ended in the middle of a start left without a record.
            await to_its_end(cgroup.kill, self._layout.pod_cgroup(self.wish.node, self.wish.key))
            await self._cleared.wait()
            await self._run_init_containers(spec)
        self._runs = runs
        self._set("Running", "")
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(run.run(spec.restart_policy))
        failed = [run.state for run in runs if run.state.exit_code != 0]
        self._set("Failed" if failed else "Succeeded", "")

    async def _run_init_containers(self, spec: PodSpec) -> None:
        done = self._layout.pod_run(self.wish.key) / "initialised"
        if done.exists():
            return
        for one in spec.init_containers:
            run = self._run_of(one, init=True)
            self._runs = [run]
            self._set("Pending", f"init container {one.name} runs")
            await run.run("Never" if spec.restart_policy == "Never" else "OnFailure")
            if run.state.exit_code != 0:
                raise ValueError(f"init container {one.name} {run.state.reason}")
        self._runs = []
        done.touch()

    # The end

    async def delete(self) -> None:
        """End the pod and remove all of it. `run` has been cancelled before."""
        layout, wish = self._layout, self.wish
        path = layout.pod_cgroup(wish.node, wish.key)
        try:
            async with asyncio.timeout(wish.pod.spec.grace_period_s), asyncio.TaskGroup() as group:
                for run in self._runs:
                    group.create_task(run.terminate())
        except TimeoutError:
            pass
        await asyncio.to_thread(cgroup.kill, path)
        if self._enrolled_as is not None:
            try:
                await withdraw(layout, wish.node, wish.uid)
            except EnrolmentError as error:
                _log.warning("%s: %s; its namespace goes all the same", wish.key, error)
        await asyncio.to_thread(teardown.remove_pod, layout, wish.node, wish.key)


def _marks(wish: PodWish) -> tuple[dict[str, str], dict[str, str]]:
    """What the agent is told anew when it changes."""
    return wish.pod.labels, wish.pod.metadata.annotations
