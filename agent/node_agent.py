"""One node's agent: its parts, wired, and the order in which they start and stop.

The kernel programs come first, then what an earlier agent left is adopted, and only then anybody is served: a proxy must not
be told of half the pods. On the way out nothing is taken away: programs, maps and links are pinned, and the next agent finds
every pod as this one left it.
"""

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import grpc.aio

from agent.addresses import AddressWatch
from agent.agent_events import AgentEvents
from agent.door import Door
from agent.enrolment import Enrolment
from agent.flow_log import FlowLog
from agent.grpc_serving import STOP_GRACE_S, serve
from agent.hands import Hands
from agent.kernel_events import KernelEvents
from agent.kernel_flows import KernelFlows
from agent.mesh_view import TYPES, MeshView
from agent.metrics import Metrics
from agent.observer import Observer, Peers
from agent.pod import Pod
from agent.pre_mesh import PreMesh
from agent.proxy_flows import ProxyFlows
from agent.records import Records
from agent.settings import Settings
from agent.status import AgentService, Diagnostics
from agent.trusted_proxies import TrustedProxies
from agent.upgrade import proxies_are_back, restore
from agent.zds import ZdsServer
from agent.zds_connection import ProxyPeer
from bpf.loader import load
from bpf.redirect import Redirect
from mesh.event_line import EventLine
from mesh.flows import ConnectionEvent
from mesh.proto import agent_pb2_grpc, flow_pb2, observer_pb2_grpc, peer_pb2_grpc
from mesh.workload import Address
from wire.cgroup import cgroup_id
from wire.grpc_tls import Endpoint
from wire.http_server import HttpServer
from wire.mesh_cache import MeshCache
from wire.netns import netns_cookie, open_home
from wire.xds import NodeMetadata, XdsClient

_log = logging.getLogger(__name__)


def lock(settings: Settings) -> int:
    """Make sure that this is the node's only agent; the lock lasts as long as the process.

    Raises: RuntimeError when another one runs.
    """
    settings.places.state.mkdir(parents=True, exist_ok=True)
    fd = os.open(settings.places.state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise RuntimeError(f"another agent of node {settings.node} runs: stop it first") from error
    return fd


def open_redirect(settings: Settings) -> Redirect:
    """Have the programs loaded and told of this node. Raises: RuntimeError or OSError, which names what is missing."""
    began = time.monotonic()
    if not (settings.cgroup / "cgroup.procs").exists():
        raise RuntimeError(f"{settings.cgroup} is no cgroup of version 2: name the node's own with --cgroup")
    settings.pods_cgroup.mkdir(parents=True, exist_ok=True)
    loaded = load(settings.bpffs, settings.cgroup, lambda: _tell(settings, anew=True))
    _log.info(
        "redirect %s in %.2f s: version %.12s at %s",
        "adopted" if loaded.adopted else "loaded",
        time.monotonic() - began,
        loaded.version,
        settings.bpffs,
    )
    if loaded.adopted:
        _tell(settings, anew=False)
    return Redirect(settings.bpffs)


def _tell(settings: Settings, anew: bool) -> None:
    """What the programs must know of this node and its pods before they work."""
    home_fd = open_home()
    try:
        with closing(Redirect(settings.bpffs)) as redirect:
            redirect.set_node(netns_cookie(home_fd, home_fd), cgroup_id(settings.pods_cgroup))
            redirect.exclude(settings.exclusions)
            restore(redirect, Records(settings.places.state / "pods"), anew)
    finally:
        os.close(home_fd)


class NodeAgent:
    """The parts of one agent; made inside a running event loop."""

    def __init__(self, settings: Settings, redirect: Redirect) -> None:
        places = settings.places
        self._settings = settings
        self._redirect = redirect
        self.flows = FlowLog()
        self.events = AgentEvents(settings.node)
        self._cache = MeshCache(places.state / "agent-mesh.sqlite")
        self.view = MeshView(settings.network, self.events, self._cache)
        self.enrolment = Enrolment(Hands(Records(places.state / "pods"), redirect), self._pod_changed)
        self._proxies = TrustedProxies(redirect)
        self.zds = ZdsServer(places.zds_socket, self.enrolment, self._proxies_connected)
        self.enrolment.proxy = self.zds
        self._home_fd = open_home()
        self._own_addresses = AddressWatch(self._home_fd, self._home_fd)
        self._pre_mesh = PreMesh(
            settings.node,
            settings.cluster_id,
            self.enrolment,
            self.view,
            settings.exclusions,
            self._node_addresses,
            self._add_event,
        )
        self.view.on_change(self._pre_mesh.changed)
        self._control = self._control_client() if settings.control else None
        self._diagnostics = Diagnostics(
            node=settings.node,
            control_address=settings.control,
            started_unix_s=int(time.time()),
            enrolment=self.enrolment,
            redirect=redirect,
            zds=self.zds,
            view=self.view,
            exclusions=settings.exclusions,
            control=self._control.status if self._control else None,
        )

    def _control_client(self) -> XdsClient:
        settings = self._settings
        endpoint = Endpoint(settings.control, settings.root, settings.token, settings.cluster_id, "weft-control")
        node = NodeMetadata(
            role="agent",
            name="weft-agent",
            namespace="weft-system",
            instance_ip="127.0.0.1",
            node_name=settings.node,
            cluster_id=settings.cluster_id,
        )
        return XdsClient(endpoint, node, TYPES, self.view.take, self.view.restore())

    async def run(self) -> None:
        """Adopt, then serve until cancelled."""
        await self.enrolment.adopt()
        self.events.started()
        for uid, sentence in self.enrolment.unreadable.items():
            _log.error("pod %s: %s", uid, sentence)
        places = self._settings.places
        grpc_path = places.run / "agent-grpc.sock"
        servers = [
            await serve(places.hubble_socket, 0o660, ["hubble.server.Observer", "observer.Observer"], self._register_hubble),
            await serve(grpc_path, 0o600, ["weft.agent.Agent"], self._register_agent),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                names = KernelFlows(self._settings.node, self.view)
                group.create_task(KernelEvents(self._redirect, self.flows, names, self.enrolment.index).run())
                proxy_flows = ProxyFlows(places.admin_socket, self._add_event, self._add_lost)
                group.create_task(proxy_flows.run())
                group.create_task(self.enrolment.run())
                group.create_task(self.zds.serve())
                group.create_task(self._pre_mesh.run())
                if self._control is not None:
                    group.create_task(self._control.run())
                if self._settings.metrics_port:
                    group.create_task(self._serve_metrics())
                group.create_task(Door(places.agent_socket, grpc_path, self.enrolment).run())
                _log.info("agent of node %s serves: %d pods adopted", self._settings.node, len(self.enrolment.pods()))
        finally:
            self._proxies.close()
            self.flows.stop()
            self.events.stop()
            await asyncio.gather(*(server.stop(STOP_GRACE_S) for server in servers))
            self._cache.close()

    async def _serve_metrics(self) -> None:
        metrics = Metrics(self._diagnostics, self.flows)
        await HttpServer({"GET /metrics": metrics.answer}, max_body_bytes=0).serve(("", self._settings.metrics_port))

    def _register_hubble(self, server: grpc.aio.Server) -> None:
        address = f"unix://{self._settings.places.hubble_socket}"
        observer = Observer(self._settings.node, self.flows, self.events, address)
        observer_pb2_grpc.add_ObserverServicer_to_server(observer, server)
        peer_pb2_grpc.add_PeerServicer_to_server(Peers(self._settings.node, address, self.flows), server)

    def _register_agent(self, server: grpc.aio.Server) -> None:
        agent_pb2_grpc.add_AgentServicer_to_server(AgentService(self._diagnostics), server)

    def _pod_changed(self, pod: Pod, entered: bool) -> None:
        _log.info("pod %s is %s the mesh", pod, "in" if entered else "out of")
        self.events.pod_changed(pod, entered, self.view.identity_of(pod.request, self._settings.node))
        self._pre_mesh.changed()

    def _proxies_connected(self, peers: Sequence[ProxyPeer]) -> None:
        self._proxies.connected(peers)
        proxies_are_back(self._redirect, [peer.pid for peer in peers])

    def _node_addresses(self) -> frozenset[Address]:
        return frozenset(self._own_addresses.read())

    def _add_event(self, event: ConnectionEvent | EventLine) -> None:
        self.flows.add(event, self.enrolment.index(), time.time())

    def _add_lost(self, count: int) -> None:
        self.flows.add_lost(flow_pb2.OBSERVER_EVENTS_QUEUE, count)


def remove_pins(bpffs: Path) -> None:
    """Take the redirect away: without its pins nothing of it lives on."""
    for folder in ("links", "hooks", "programs", "maps"):
        for pin in sorted((bpffs / folder).glob("*")):
            pin.unlink()
        if (bpffs / folder).is_dir():
            (bpffs / folder).rmdir()
    (bpffs / "version").unlink(missing_ok=True)
