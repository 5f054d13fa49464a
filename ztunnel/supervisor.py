"""The proxy's control half: hears the agent, the control plane and the CA, and keeps the data workers told.

Nothing here touches a byte of traffic: the workers carry that, each with the whole present state. So what is slow or away
(control plane, CA, a reader of logs) costs a connection nothing that is open, and a busy worker delays no answer here.

Start: pods' listeners and workers first (ztunnel.front), then what the disk remembers of the mesh and the kernel's keyring of
its keys; the control plane whenever it answers.
End (SIGTERM, SIGINT, SIGHUP, POST /quitquitquit): listeners close, workers drain for a while; a second signal ends at once.
What drains is told of the mesh, of policies and of pods that go until its last moment.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import ztunnel.pickles  # noqa: F401  how what is in frames is pickled
from mesh.identity import Identity
from mesh.resources import ADDRESS_TYPE
from mesh.trust_domains import TrustDomains
from wire import endings
from wire.followed_file import FollowedFile
from wire.grpc_tls import Endpoint
from wire.mesh_cache import MeshCache
from wire.xds import NodeMetadata, XdsClient
from ztunnel import config_dump, dashboard
from ztunnel.admin import Admin
from ztunnel.certificate_source import certificate_source, sealing_token
from ztunnel.certificates import Certificate
from ztunnel.channel import (
    Answered,
    Configure,
    Demand,
    FromWorker,
    NeedCertificate,
    SetCertificate,
    SetLogLevels,
    UpdateInventory,
    UpdatePolicies,
)
from ztunnel.config import Config
from ztunnel.control_plane import read_local_file
from ztunnel.crl_file import CrlFile
from ztunnel.flow_feed import FlowFeed
from ztunnel.front import Front
from ztunnel.gaps import Gaps
from ztunnel.issuer import CertificateMessage, Issuer
from ztunnel.key_store import KeyStore
from ztunnel.line_output import LineOutput
from ztunnel.log_levels import Level, LogLevels
from ztunnel.losses import Losses
from ztunnel.mesh_view import TYPE_URLS, MeshView
from ztunnel.metrics import Family
from ztunnel.nameservers import read_search
from ztunnel.node_metrics import node_families
from ztunnel.pods import DEDICATED_UID, OWN_UID
from ztunnel.profiler import Profiler
from ztunnel.residents import Residents
from ztunnel.shortage import MEND
from ztunnel.shown_config import dump_config
from ztunnel.telemetry import Telemetry
from ztunnel.workers import OpenConnections, Statement
from ztunnel.zds_session import PodInfo, StartError, ZdsProtocolError

if TYPE_CHECKING:
    from mesh.local_mesh import LocalMesh

_WARM_UP_AFTER_S = 0.5
"""A large mesh is in force before certificates for it are prefetched; who needs one at once asks at once."""
_REVOKED = "Revoked: a list of CRL_PATH names it, and whoever reads that list refuses it until it is renewed"
_log = logging.getLogger(__name__)


class Supervisor:
    """One node's proxy. Made and run inside an event loop."""

    def __init__(self, config: Config, front: Front) -> None:
        """`front`: what has begun already."""
        self.config = config
        self._front = front
        self._end = asyncio.Event()
        self._signalled = False
        """A first signal came: /quitquitquit and then SIGTERM, as Kubernetes sends both, is one of each."""
        self._in_pieces = False
        """A large mesh is on its way."""
        self.workers, self.pods, self.zds = front.workers, front.pods, front.zds
        try:
            self._cache = MeshCache(config.state / "mesh.sqlite")
        except OSError as error:
            raise OSError(f"{config.state}: {error.strerror}: name a folder that can be written (WEFT_STATE_DIR)") from error
        self._residents = Residents(config.node, config.impersonates)
        self.view = MeshView(self._cache, self._mesh_changed, TrustDomains(config.trust_domain, config.trust_domain_aliases))
        self._crl = CrlFile(config.crl, self.workers.broadcast) if config.crl else None
        self._gaps = Gaps(self.view, self.pods.infos, config.network, config.node, config.cluster_id)
        self._ca = certificate_source(config, self.pods.uids)
        keys = KeyStore(config.installation, config.node, sealing_token(config))
        self._issuer = Issuer(self._ca, keys, self._residents, self._tell_certificate)
        self._output = LineOutput(sys.stdout.fileno())
        self.flows = FlowFeed(time.monotonic)
        self._telemetry = Telemetry(
            config.node,
            config.network,
            self.view.inventory,
            self.flows,
            self._output.write,
            self.pods.pod,
            (config.node_limits, config.pod_limits),
            config.cluster_id,
        )
        self._telemetry.as_json = config.log_json
        self._losses = Losses(self._telemetry.tell_lost)
        self.log_levels = LogLevels(config.log_level, self._set_access_level)
        self.log_levels.on_change = self._log_levels_changed
        if config.local_mesh is not None:
            self.view.take_local(config.local_mesh)
        self.xds = self._xds_client(config.xds) if config.xds is not None else None
        self.profiler = Profiler(self.workers)
        self._admin = Admin(self, config.ipv6)
        self._exit_code = 0

    def _xds_client(self, endpoint: Endpoint) -> XdsClient:
        named = (ADDRESS_TYPE,) if self.config.on_demand else ()
        node = _node_metadata(self.config)
        return XdsClient(endpoint, node, TYPE_URLS, self.view.take, self.view.restore(), named, self._demands_answered)

    def _set_access_level(self, level: Level) -> None:
        self._telemetry.level = level

    def _tell_certificate(self, message: CertificateMessage) -> None:
        if self._crl is not None and isinstance(message, SetCertificate):
            self._crl.know(message.roots_pem)
        self.workers.broadcast(message)

    def _log_levels_changed(self) -> None:
        self.workers.broadcast(SetLogLevels(self.log_levels.levels))

    # --- what workers are told

    def statements(self, index: int) -> Iterator[Statement]:
        """All that is known, for a worker that starts."""
        config = self.config
        yield (
            Configure(
                config.node,
                config.network,
                config.cluster_id,
                config.trust_domain,
                index,
                config.keep_source_address,
                config.enhanced_baggage,
                config.localhost_app_tunnel,
                config.packet_mark,
                tls12=config.tls12,
                resolv_conf=config.resolv_conf,
                cluster_domain=config.cluster_domain,
                preferred_service_namespace=config.preferred_service_namespace,
                ipv6=config.ipv6,
                on_demand=config.on_demand,
                trust_domain_aliases=config.trust_domain_aliases,
                node_limits=config.node_limits.share(config.workers),
                pod_limits=config.pod_limits.share(config.workers),
                offender_pause_s=config.offender_pause_s,
                tuning=config.tuning.share(config.workers),
                socks5=config.socks5,
                policies_at_info=config.policies_at_info,
                search_domains=read_search(config.resolv_conf) if config.dedicated_to is not None else None,
            ),
            [self.workers.headroom_fd] if config.workers > 1 else (),
        )
        if self._crl is not None:
            yield self._crl.statement(), ()
        for message in chain((SetLogLevels(self.log_levels.levels),), self.view.statements(), self._issuer.statements()):
            yield message, ()
        yield from self.pods.statements()

    def _mesh_changed(self, message: UpdateInventory | UpdatePolicies) -> None:
        self.workers.broadcast(message)
        self._gaps.look_soon()
        if isinstance(message, UpdateInventory):
            self._telemetry.mesh_changed()
            self._residents.update(message.upserts, message.removals)
            if message.unfinished:
                self._in_pieces = True
            elif self._in_pieces:
                self._in_pieces = False
                asyncio.get_running_loop().call_later(_WARM_UP_AFTER_S, self._issuer.residents_changed)
            else:
                self._issuer.residents_changed()

    def _demands_answered(self, answers: Mapping[str, str]) -> None:
        self.workers.broadcast(Answered(dict(answers)))

    def pods_changed(self) -> None:
        """A pod came or went: so did its identity."""
        self._gaps.look_soon()
        self._residents.set_pods(self.pods.accounts())
        self._issuer.residents_changed()

    def pods_complete(self) -> None:
        """The agent has named all pods."""
        self._issuer.residents_complete()

    # --- what workers say

    def hear(self, worker: int, message: FromWorker) -> None:
        """What a worker needs, or reports."""
        if isinstance(message, NeedCertificate):
            self._issuer.need(message.identity)
        elif isinstance(message, Demand):
            if self.xds is not None:
                self.xds.demand(ADDRESS_TYPE, message.names)
        else:
            self._telemetry.hear(worker, message)

    def worker_died(self, worker: int) -> None:
        """Its connections are gone."""
        self._telemetry.worker_died(worker)
        self._losses.begin()

    # --- what others ask

    def waits_for(self) -> list[str]:
        """What is missing for readiness: tasks by Istio's names, and in brackets why."""
        missing = []
        if self._end.is_set():
            missing.append("proxy (its successor: this one is draining)")
        if not self.workers.alive:
            missing.append("proxy (data workers)")
        missing += [f"proxy ({one})" for one in self.workers.silent(time.monotonic())]
        if self.xds is not None and not self.xds.ready and not self.view.restored:
            missing.append(f"state manager (control plane {self.xds.address}: {self.xds.status.last_error or 'asked'})")
        if self.config.dedicated_to is not None:
            missing += [] if list(self.pods.running()) else ["proxy (its pod's listeners)"]
        elif not self.zds.connected:
            missing.append(f"workload proxy manager (agent {self.config.zds_socket}: {self.zds.last_error})")
        elif not self.zds.ready:
            missing.append("workload proxy manager (the agent's list of pods)")
        return missing

    def families(self) -> list[Family]:
        """All metrics."""
        return [*self._telemetry.families(), *node_families(self, self._output.lost, self._istio_version)]

    @property
    def _istio_version(self) -> str:
        return str(self.config.node_metadata.get("ISTIO_VERSION", ""))

    async def connections(self) -> OpenConnections:
        """The open connections, with their workers."""
        return await self.workers.query_connections()

    async def config_dump(self) -> config_dump.JSON:
        """Everything that is known."""
        rows, silent = await self.workers.query_connections()
        return {
            **config_dump.dump_mesh(self.view),
            "version": config_dump.dump_version(self._istio_version),
            "config": dump_config(self.config),
            "controlPlane": config_dump.dump_control(self.xds),
            "certificates": config_dump.dump_certificates(self._certificates()),
            "workloadState": config_dump.dump_pods(self.pods.infos(), self.zds.pending, [record for _, record in rows]),
            **({"silentWorkers": silent} if silent else {}),
        }

    async def dashboard(self) -> str:
        """The page for a browser."""
        records = [record for _, record in (await self.workers.query_connections()).records]
        version = config_dump.VERSION
        pods, states = self.pods.infos(), self._certificates()
        return dashboard.page(self.config.node, version, self.waits_for(), pods, self.zds.troubles, records, states)

    def _certificates(self) -> list[tuple[Identity, str, Certificate | None]]:
        """All, with their states: one that is revoked stays until it is renewed, and is shown as what it is."""
        states, lists = self._issuer.states(), self._crl
        if lists is None:
            return states
        return [(who, _REVOKED if one is not None and lists.names(one.chain_pem) else state, one) for who, state, one in states]

    def step_aside(self) -> None:
        """Write no more of what the successor will have read, and writes itself."""
        self._cache.hold()

    def step_back(self) -> None:
        """There is no successor any more: what came meanwhile is written, though nothing else may come for days."""
        self._cache.resume()
        asyncio.get_running_loop().run_in_executor(None, self._cache.keep_waiting)  # a disk that hangs keeps nobody waiting

    def quit(self) -> None:
        """Drain and end."""
        self._end.set()

    # --- its life

    async def run(self) -> int:
        """Serve until told to end: the exit status.

        Raises: OSError when an admin port is taken.
        """
        endings.listen(self._on_signal)
        config = self.config
        self._front.join(self)
        tasks = [asyncio.ensure_future(self._watch("the data workers", self._front.run_workers))]
        try:
            await self._admin.listen(config.admin_socket, config.admin_port, config.metrics_port, config.readiness_port)
            parts = [("certificates", self._issuer.run), ("pods' DNS", self.pods.keep_dns)]
            parts.append(("ZDS", self._serve_agent) if config.dedicated_to is None else ("the pod", self._serve_own_namespace))
            if config.service_account and config.dedicated_to is None:
                own = PodInfo(OWN_UID, config.pod_namespace, config.pod_name, config.service_account)
                tasks.append(asyncio.ensure_future(self.pods.start_own(own)))
            if self._crl is not None:
                parts.append(("revocation lists", self._crl.run))
            if config.local_mesh_file is not None:
                parts.append(("the local mesh", partial(self._follow_local_mesh, config.local_mesh_file)))
            if self.xds is not None:
                parts.append(("xDS", self.xds.run))
            tasks += [asyncio.ensure_future(self._watch(name, run)) for name, run in parts]
            control = self.xds.address if self.xds else "none"
            _log.info("node %s: %d data workers, control plane %s", config.node, config.workers, control)
            await self._end.wait()
            await self._drain()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close()
            await self._front.predecessor.aclose()
        return self._exit_code

    async def _watch(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run one part; its unexpected end is the end of all, so that somebody starts us anew."""
        try:
            await run()
        except Exception as error:
            self._exit_code = 1
            self._end.set()  # before the words: these may need memory that is not there
            if _is_want_of_memory(error):
                _log.critical("%s: no memory is left: ending; %s", name, MEND)
            else:
                _log.exception("%s broke: ending", name)

    async def _serve_agent(self) -> None:
        try:
            await self._front.obey()
        except ZdsProtocolError as error:
            _log.error("the agent broke the protocol: %s: ending", error)
            self._exit_code = 1
            self._end.set()

    async def _serve_own_namespace(self) -> None:
        """Without an agent: the one pod in whose namespace this proxy runs."""
        namespace, name, service_account = self.config.dedicated_to or ("", "", "")
        try:
            await self.pods.start(PodInfo(DEDICATED_UID, namespace, name, service_account), self._front.home_fd)
        except StartError as error:
            _log.error("%s/%s cannot be served: %s: ending", namespace, name, error)
            self._exit_code = 1
            self._end.set()
        else:
            self.pods_complete()

    async def _follow_local_mesh(self, file: FollowedFile) -> None:
        def take(local: "LocalMesh") -> None:
            self.view.take_local(local)
            counts = (file.path, len(local.workloads), len(local.services), len(local.policies))
            _log.info("%s: %d workloads, %d services, %d policies are told here", *counts)

        await file.follow(partial(read_local_file, file.path), take, "what it told before stays in force")

    async def _drain(self) -> None:
        _log.info("draining for at most %g s", self.config.drain_s)
        self._admin.retire()
        self.pods.drain()
        await self.workers.shut_down(self.config.drain_s)

    async def _close(self) -> None:
        self.pods.close()
        await self._losses.finish()
        await self._admin.close()
        await self._ca.close()
        await self._output.drain()
        self._cache.close()
        os.close(self._front.home_fd)

    def _on_signal(self, number: int) -> None:
        if self._signalled:
            _log.warning("second signal: ending at once")
            os._exit(128 + number)  # the workers follow when their channel closes
        self._signalled = True
        self._end.set()


def _is_want_of_memory(error: Exception) -> bool:
    """Of a part, or of any of its tasks."""
    return isinstance(error, MemoryError) or (isinstance(error, ExceptionGroup) and error.subgroup(MemoryError) is not None)


def _node_metadata(config: Config) -> NodeMetadata:
    return NodeMetadata(
        "ztunnel",
        config.pod_name,
        config.pod_namespace,
        config.instance_ip,
        config.node,
        config.cluster_id,
        config.node_metadata,
    )
