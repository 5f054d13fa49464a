"""weft-lab: the cluster's objects in, nodes and pods of this machine out.

    objects (weft-control) -> desired (pure) -> what differs -> nodes and pods -> reports, names, service rules

One loop makes what runs like what is desired, as often as either changes. Every pod lives in a task of its own and is
not waited for; a pod that ends keeps its key until it is gone, and the loop comes back for its successor. What no object
asks for is removed only after the first whole set of objects. When the daemon ends, everything goes on; the next adopts it.
"""

import asyncio
import json
import logging
import shutil
import uuid
from collections.abc import Sequence
from typing import Any

from lab import cgroup, fabric, netns, orphans
from lab.addresses import NodeAddresses, control
from lab.claim import require_own_namespace
from lab.control_link import ControlLink
from lab.desired import Desired, desired
from lab.endpoints import Endpoint
from lab.enrolment import EnrolmentError, withdraw
from lab.hosts import service_lines
from lab.layout import Layout
from lab.ledger import load, save
from lab.logs import bound_logs
from lab.node import XDS_PORT, NodeRun, program_launch
from lab.pod import PodRun, PodState
from lab.service_rules import rules
from lab.supervision import Program
from lab.syscalls import become_subreaper
from lab.wish import PodWish
from mesh.manifests import Node, Object, from_dict

_log = logging.getLogger(__name__)
_RETRY_S = 1.0
_DEBOUNCE_S = 0.02
_LOG_CHECK_S = 5.0


class Daemon:
    """The lab's one long-running process. Made inside its event loop."""

    def __init__(self, layout: Layout, mesh: bool) -> None:
        self.layout = layout
        self.mesh = mesh
        self.ledger = load(layout.ledger)
        self.ledger.domain = layout.domain
        self.nodes: dict[str, NodeRun] = {}
        self.wanted = Desired()
        self.problems: dict[str, str] = {}
        """What could not be done and is tried again: subject -> why."""
        self._trouble: dict[str, str] = {}
        """The same as far as it is found out anew."""
        self._pods: dict[str, tuple[PodRun, asyncio.Task[None]]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._objects: Sequence[Object] | None = None
        self._dirty, self._changed = asyncio.Event(), asyncio.Event()
        self._reconciled: Sequence[Object] | None = None
        self.control = Program("control", self._control_launch, layout.programs / "control.json")
        self.link = ControlLink(layout.places)
        self._retrying: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup

    def _control_launch(self) -> Any:
        listen = [f"{one.ip}:{XDS_PORT}" if one.version == 4 else f"[{one.ip}]:{XDS_PORT}" for one in control()]
        layout = self.layout
        argv = ["control", *(word for address in listen for word in ("--listen", address)), "--cluster-domain", layout.domain]
        return program_launch(layout, layout.control_cgroup, layout.control_netns, layout.logs / "control.log", argv)

    async def run(self) -> None:
        """Run until cancelled. Cancel: nodes, pods and their programs go on; the next daemon adopts them."""
        become_subreaper()
        await asyncio.to_thread(self._make_fabric)
        async with self.link, asyncio.TaskGroup() as self._group:
            self._group.create_task(self.control.run())
            self._group.create_task(self._watch())
            self._group.create_task(self._reconcile_forever())
            self._group.create_task(self._publish_forever())
            self._group.create_task(self._bound_logs_forever())

    def _make_fabric(self) -> None:
        layout = self.layout
        for folder in (layout.run, layout.state, layout.places.control_state):
            folder.mkdir(parents=True, exist_ok=True)
        for name in (layout.fabric_netns, layout.control_netns):
            require_own_namespace(name, layout.control_cgroup)
        cgroup.create(layout.control_cgroup)
        standing = layout.run / "fabric"
        if standing.exists() and all(netns.exists(name) for name in (layout.fabric_netns, layout.control_netns)):
            return
        cgroup.kill(layout.control_cgroup)
        shutil.rmtree(layout.run / "nodes", ignore_errors=True)  # their links hung on the former fabric
        fabric.create_fabric(layout)
        standing.touch()

    # What comes in

    async def _watch(self) -> None:
        async for documents in self.link.objects():
            self.take(documents)

    def take(self, documents: Sequence[dict[str, Any]]) -> None:
        """Take a whole set of objects."""
        objects = []
        for document in documents:
            try:
                objects.append(from_dict(document))
            except ValueError as error:
                _log.error("control sent an object that cannot be read: %s", error)
        self._objects = objects
        self._dirty.set()

    def set_mesh(self, mesh: bool) -> None:
        """Put the mesh on or off the same topology."""
        self.mesh = mesh
        self._dirty.set()

    @property
    def settled(self) -> bool:
        """Whether the newest objects have been acted upon."""
        return self._objects is not None and self._reconciled is self._objects and not self._dirty.is_set()

    def pod_states(self) -> list[PodState]:
        """How every pod does that has been placed, those that are ending included."""
        return [run.state for _, (run, _) in sorted(self._pods.items())]

    def pod(self, key: str) -> PodRun | None:
        """The pod `namespace/name`."""
        return self._pods[key][0] if key in self._pods else None

    # What follows from it

    async def _reconcile_forever(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            objects = self._objects
            if objects is None:
                continue
            self._trouble = {}
            try:
                await self._reconcile(objects)
                self._reconciled = objects
            except (OSError, RuntimeError, TimeoutError) as error:
                self._trouble["the lab"] = str(error)
            self.problems = self._trouble  # at once: who waits shall not see them come and go
            self._changed.set()
            if self.problems:
                for subject, reason in self.problems.items():
                    _log.warning("%s: %s; trying again", subject, reason)
                if self._retrying is None or self._retrying.done():
                    self._retrying = self._group.create_task(self._retry())

    async def _retry(self) -> None:
        await asyncio.sleep(_RETRY_S)
        self._dirty.set()

    async def _reconcile(self, objects: Sequence[Object]) -> None:
        wanted = desired(objects, self.ledger, self.mesh, lambda: str(uuid.uuid4()), self.layout.domain)
        await asyncio.to_thread(save, self.ledger, self.layout.ledger)
        if self._reconciled is None:
            for node, uid in await asyncio.to_thread(orphans.remove, self.layout, wanted):
                await self._forget(node, uid)
        self.wanted = wanted
        self._remove_pods(wanted)
        await self._remove_nodes(wanted)
        await self._add_nodes(wanted, objects)
        await self._set_mesh(wanted)
        self._refresh_names(self._endpoints())
        for key, wish in wanted.pods.items():
            if wish.node in self.nodes:
                self._keep_pod(key, wish)

    async def _forget(self, node: str, uid: str) -> None:
        try:
            await withdraw(self.layout, node, uid)
        except EnrolmentError as error:
            _log.info("pod %s of node %s: %s", uid, node, error)  # an agent that is not there finds it gone by itself

    def _remove_pods(self, wanted: Desired) -> None:
        for key, (run, task) in list(self._pods.items()):
            wish = wanted.pods.get(key)
            if key not in self._leaving and (wish is None or wish.life != run.wish.life):
                self._leaving[key] = self._group.create_task(self._end_pod(key, run, task))

    async def _end_pod(self, key: str, run: PodRun, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait([task])
        try:
            await run.delete()
        except (OSError, RuntimeError, TimeoutError) as error:
            _log.error("%s could not be removed whole: %s", key, error)
        del self._pods[key], self._leaving[key]
        self._changed.set()
        self._dirty.set()

    def _keep_pod(self, key: str, wish: PodWish) -> None:
        if key in self._leaving:
            return  # its successor's turn comes when it is gone
        if key in self._pods:
            self._pods[key][0].update(wish)
            return
        run = PodRun(self.layout, wish, self._changed.set)
        run.set_names(self._names(wish.pod.namespace, self._endpoints()))
        self._pods[key] = (run, self._group.create_task(self._live(run)))
        self._changed.set()

    async def _live(self, run: PodRun) -> None:
        try:
            await run.run()
        except Exception:  # one pod's trouble must not end the others
            _log.exception("%s: the lab failed", run.wish.key)
            run.give_up("the lab failed: see the log with: weft lab logs lab")

    # Nodes

    async def _remove_nodes(self, wanted: Desired) -> None:
        gone = [name for name, node in self.nodes.items() if wanted.nodes.get(name) != node.addresses]
        waiting = [task for key, task in self._leaving.items() if self._pods[key][0].wish.node in gone]
        if waiting:
            await asyncio.wait(waiting)
        for name in gone:
            node = self.nodes.pop(name)
            await node.delete()
            await asyncio.to_thread(fabric.route_nodes, self.layout, self._addresses(), node.addresses.ranges)
            if name not in wanted.nodes:
                self.ledger.forget_node(name)

    async def _add_nodes(self, wanted: Desired, objects: Sequence[Object]) -> None:
        fresh = [NodeRun(self.layout, name, addresses) for name, addresses in wanted.nodes.items() if name not in self.nodes]
        results = await asyncio.gather(*(node.prepare(self._group) for node in fresh), return_exceptions=True)
        for node, result in zip(fresh, results, strict=True):
            if isinstance(result, RuntimeError | OSError | TimeoutError):
                self._trouble[f"Node {node.name}"] = str(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                self.nodes[node.name] = node
        if fresh:
            await asyncio.to_thread(fabric.route_nodes, self.layout, self._addresses())
        await self._write_ranges([one for one in objects if isinstance(one, Node) and not one.pod_cidrs])

    def _addresses(self) -> dict[str, NodeAddresses]:
        return {name: node.addresses for name, node in self.nodes.items()}

    async def _write_ranges(self, nodes: Sequence[Node]) -> None:
        """Write the ranges that the lab chose into their Node objects: control checks pods' addresses against them."""
        files = {}
        for node in nodes:
            if node.name in self.nodes:
                document = node.to_dict()
                document["spec"] = {**document.get("spec", {}), "podCIDRs": self.range_texts(node.name)}
                files[node.file_name] = json.dumps(document)
        if files:
            try:
                await self.link.apply(files)
            except OSError as error:
                self._trouble["podCIDRs"] = str(error)

    def range_texts(self, node: str) -> list[str]:
        """The pod ranges of a node that the lab has."""
        return [str(network) for network in self.nodes[node].addresses.ranges]

    async def _set_mesh(self, wanted: Desired) -> None:
        for name, node in self.nodes.items():
            if not self.mesh:
                if not any(state.enrolled for state in self.pod_states() if state.wish.node == name):
                    await node.stop_mesh()
                continue
            try:
                await node.use_network(self._group, wanted.networks[name])
                if not node.has_mesh:
                    token, root_pem = await self.link.node_token(name)
                    await node.start_mesh(self._group, token, root_pem)
                await node.use_proxy(self._group, wanted.proxies[name])
            except OSError as error:
                self._trouble[f"Node {name}"] = str(error)

    # What goes out

    async def _publish_forever(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(_DEBOUNCE_S)
            self._changed.clear()
            endpoints = self._endpoints()
            text = rules(self.wanted.services, endpoints)
            try:
                self._refresh_names(endpoints)
                for node in list(self.nodes.values()):
                    await node.set_rules(text)
                await self.link.report([state for state in self.pod_states() if state.wish.node in self.nodes])
            except (OSError, RuntimeError) as error:
                _log.warning("%s; trying again", error)
                await asyncio.sleep(_RETRY_S)
                self._changed.set()
            if not self.mesh and any(node.has_mesh for node in self.nodes.values()):
                self._dirty.set()  # its pods may all be withdrawn by now

    def _endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(state.wish.pod, tuple(one.ip for one in state.wish.own_addresses), state.ready)
            for state in self.pod_states()
            if state.addresses and state.wish.key not in self._leaving
        ]

    def _names(self, namespace: str, endpoints: Sequence[Endpoint]) -> str:
        return service_lines(namespace, self.wanted.services, endpoints, self.layout.domain)

    def _refresh_names(self, endpoints: Sequence[Endpoint]) -> None:
        texts = {run.wish.pod.namespace: "" for run, _ in self._pods.values()}
        texts = {namespace: self._names(namespace, endpoints) for namespace in texts}
        for run, _ in self._pods.values():
            run.set_names(texts[run.wish.pod.namespace])

    async def _bound_logs_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOG_CHECK_S)
            await asyncio.to_thread(bound_logs, self.layout.logs)
