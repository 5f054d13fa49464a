"""The data worker: one process per core, single-threaded, which carries every byte of this node's pods.

usage: python -m ztunnel.worker --channel FD      started by the supervisor, with OPENSSL_CONF (ztunnel.openssl_conf)

It is told what is true (ztunnel.channel) and tells what happened; it reads no file but resolv.conf, and keeps no state
across its end.
"""

import gc

from wire import endings

if __name__ == "__main__":
    gc.disable()  # as ztunnel.__main__ does
    endings.ignore()

import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ztunnel.pickles  # noqa: F401  how what is in frames is pickled
from mesh.identity import Identity
from mesh.workload import Workload
from ztunnel.arrival import accept_hbone
from ztunnel.channel import (
    HBONE,
    INBOUND,
    OUTBOUND,
    SOCKS,
    AddDNS,
    AddPod,
    Answered,
    CertificateFailed,
    Configure,
    Connections,
    ForgetCertificate,
    PodAdded,
    Profile,
    QueryConnections,
    RemovePod,
    SetCertificate,
    SetLogLevels,
    SetRevoked,
    Shutdown,
    TakeProfile,
    UpdateInventory,
    UpdatePolicies,
    WorkerStatus,
)
from ztunnel.departure import accept_outbound
from ztunnel.dns_service import DNSService
from ztunnel.headroom import Headroom
from ztunnel.inbound_plain import accept_plain
from ztunnel.key_engine import read_keys_fast
from ztunnel.link import Link
from ztunnel.listener import ACCEPTS_PER_EVENT, STRANGERS_PER_EVENT, Listener
from ztunnel.log_lines import apply_levels, log_to_stderr
from ztunnel.loop import Loop
from ztunnel.node import Node
from ztunnel.parent import die_with_parent
from ztunnel.pod import Pod
from ztunnel.shortage import MEND
from ztunnel.socks_client import accept_socks
from ztunnel.standing import Standing
from ztunnel.time_slice import take_short_slices
from ztunnel.tunnel import Tunnel
from ztunnel.walk import ENDINGS_PER_TURN, Walk

TICK_S = 0.25
STATUS_S = 1.0
COLLECT_S = 60.0
FAREWELL_S = 1.0
_ACCEPTS = {OUTBOUND: accept_outbound, INBOUND: accept_plain, HBONE: accept_hbone, SOCKS: accept_socks}
_DNS_TROUBLE = "pod %s/%s: its DNS cannot be served here: %s"
_log = logging.getLogger("ztunnel.worker")


class Worker:
    """Takes the supervisor's messages, and owns the pods."""

    def __init__(self, loop: Loop, channel: socket.socket) -> None:
        self._loop = loop
        self._link = Link(loop, channel, self._take)
        self._node: Node | None = None
        self._pods: dict[str, Pod] = {}
        self._leaving: list[Pod] = []
        """Those that are served no more, while anything of theirs is open."""
        self._unserved: set[str] = set()
        """Uids of pods that we were told of and cannot serve."""
        self._draining = False
        self._log_levels: dict[str, int] = {}
        self._tunnels_until = 0.0
        self._standing: Standing | None = None
        """None: there are no others."""
        self._handlers: dict[type, Callable[[Node, Any, list[int]], None]] = {
            AddPod: self._add_pod,
            AddDNS: self._add_dns,
            RemovePod: self._remove_pod,
            UpdateInventory: self._update_inventory,
            UpdatePolicies: self._update_policies,
            Answered: self._answered,
            SetCertificate: self._set_certificate,
            CertificateFailed: self._certificate_failed,
            ForgetCertificate: lambda node, message, _: node.vault.forget(message),
            SetRevoked: lambda node, message, _: node.revocations.set(message.revoked),
            SetLogLevels: self._set_log_levels,
            QueryConnections: self._tell_connections,
            TakeProfile: self._take_profile,
            Shutdown: self._shut_down,
        }

    def _take(self, message: object, fds: list[int]) -> None:
        if isinstance(message, Configure) and self._node is None:
            self._node = Node(self._loop, message, self._link.emit, Headroom(fds[0], message.worker) if fds else None)
            _close_all(fds)
            if self._node.headroom is not None:
                self._standing = Standing(self._node, self._node.headroom, self._pods, self._unserved)
                self._loop.on_bulk = self._standing.begin_bulk
            self._loop.every(TICK_S, self._tick)
            self._loop.every(STATUS_S, self._report)
            self._loop.every(COLLECT_S, self._collect)
            return
        handler = self._handlers.get(type(message))
        if self._node is None or handler is None:
            _close_all(fds)
            raise ValueError(f"unexpected {type(message).__name__} on the channel")
        handler(self._node, message, fds)

    # --- pods

    def _add_pod(self, node: Node, message: AddPod, fds: list[int]) -> None:
        first_dns = 1 + len(message.ports)
        self._unserved.add(message.uid)
        if len(fds) < first_dns:
            _close_all(fds)
            mend = "" if fds else ": too many are open, raise the limit (RLIMIT_NOFILE)"
            error = f"expected {first_dns} descriptors or more, got {len(fds)}{mend}"
            self._link.emit(PodAdded(message.uid, error, message.number))
            return
        self._close_pod(message.uid)
        pod = Pod(node, message, fds[0])
        error = ""
        left = fds[1:]
        try:
            for port in message.ports:
                at_once = STRANGERS_PER_EVENT if port == HBONE else ACCEPTS_PER_EVENT
                pod.listeners.append(Listener(pod, left.pop(0), _ACCEPTS[port], at_once, has_home=port == OUTBOUND))
            services, left = left, []
            if services:
                pod.dns = DNSService(pod, services)
        except OSError as failure:
            error = str(failure)
            _close_all(left)
            pod.close()
        else:
            self._pods[message.uid] = pod
            self._unserved.discard(message.uid)
        self._link.emit(PodAdded(message.uid, error, message.number))

    def _add_dns(self, _node: Node, message: AddDNS, fds: list[int]) -> None:
        pod = self._pods.get(message.uid)
        if pod is None or self._draining:
            _close_all(fds)
            return
        if not fds:  # lost on the way
            _log.error(_DNS_TROUBLE, pod.namespace, pod.name, "too many descriptors are open, raise the limit (RLIMIT_NOFILE)")
            return
        try:
            if pod.dns is None:
                pod.dns = DNSService(pod, fds)
            else:
                pod.dns.add(fds)
        except OSError as error:  # this pod's trouble, not that of all connections here
            _log.error(_DNS_TROUBLE, pod.namespace, pod.name, error)

    def _remove_pod(self, _node: Node, message: RemovePod, _fds: list[int]) -> None:
        self._unserved.discard(message.uid)
        self._close_pod(message.uid)

    def _close_pod(self, uid: str) -> None:
        pod = self._pods.pop(uid, None)
        if pod is not None:
            self._leaving = [*(one for one in self._leaving if one.is_ending), pod]
            pod.close()

    # --- what is true

    def _update_inventory(self, node: Node, message: UpdateInventory, _fds: list[int]) -> None:
        before = {uid: pod.workload() for uid, pod in self._pods.items()}
        node.inventory.apply(message.upserts, message.removals)
        node.unfinished = message.unfinished
        if node.unfinished:
            return
        node.inventory_changed()
        for pod in self._pods.values():
            pod.pool.inventory_changed()
        if any(_policies_of(before[uid]) != _policies_of(pod.workload()) for uid, pod in self._pods.items()):
            node.ledger.recheck(self._workload_of)
        gc.freeze()  # what is known of the mesh is large, and holds no cycles: collecting must not walk over it

    def _update_policies(self, node: Node, message: UpdatePolicies, _fds: list[int]) -> None:
        node.policies.apply(message.upserts, message.removals)
        node.ledger.recheck(self._workload_of)

    def _certificate_failed(self, node: Node, message: CertificateFailed, _fds: list[int]) -> None:
        if node.vault.failed(message):  # who has no certificate begins nothing, in tunnels from before neither
            self._retire_tunnels(self._pods_of(message.identity))

    def _set_certificate(self, node: Node, message: SetCertificate, _fds: list[int]) -> None:
        before = node.vault.find(message.identity)
        node.vault.set(message)
        now = node.vault.find(message.identity)
        if before is not None and now is not None and now.authorities.key != before.authorities.key:
            self._retire_tunnels(self._pods_of(message.identity), lambda one: not one.is_believed_by(now.authorities))

    def _pods_of(self, identity: Identity) -> list[Pod]:
        """Those of an account, also where the mesh does not know them for a moment: their tunnels are there all the same."""
        account = identity.namespace, identity.service_account
        return [pod for pod in self._pods.values() if (pod.namespace, pod.service_account) == account]

    def _retire_tunnels(self, pods: list[Pod], which: Callable[[Tunnel], bool] = lambda _: True) -> None:
        """Those of both directions take no new streams; what is open goes on. There may be thousands: some a turn."""

        def retire(some: list[Tunnel]) -> None:
            for tunnel in some:
                if which(tunnel):
                    tunnel.drain()

        Walk(self._loop, lambda: [one for pod in pods for one in pod.every_tunnel()], retire, ENDINGS_PER_TURN).begin()

    def _answered(self, node: Node, message: Answered, _fds: list[int]) -> None:
        if node.demands is not None:
            node.demands.answered(message.answers)

    def _workload_of(self, uid: str) -> Workload | None:
        pod = self._pods.get(uid)
        return pod.workload() if pod is not None else None

    def _set_log_levels(self, _node: Node, message: SetLogLevels, _fds: list[int]) -> None:
        apply_levels({**dict.fromkeys(self._log_levels, logging.NOTSET), **message.levels})
        self._log_levels = message.levels

    def _tell_connections(self, node: Node, message: QueryConnections, _fds: list[int]) -> None:
        node.ledger.tell_records(lambda records, unfinished: node.emit(Connections(message.number, records, unfinished)))

    def _take_profile(self, node: Node, message: TakeProfile, _fds: list[int]) -> None:
        from ztunnel import sampling  # only here: a worker that nobody watches does not have it in memory

        end = sampling.begin(message.kind, message.frequency)
        self._loop.call_at(self._loop.now + message.seconds, lambda: node.emit(Profile(message.number, end())))

    # --- time

    def _tick(self) -> None:
        assert self._node is not None
        self._node.tick()
        for pod in self._pods.values():
            pod.outliers.tick(self._loop.now)
        if self._standing is not None:
            self._standing.renew()

    def _report(self) -> None:
        assert self._node is not None
        gauges = self._node.gauges() | {"pods": len(self._pods), "dropped_events": self._link.dropped_events}
        gauges["endpoints_aside"] = len({one for pod in self._pods.values() for one in pod.outliers.aside})
        node = self._node
        usage = {uid: pod.usage() for uid, pod in self._pods.items()}
        usage[""] = node.holder.usage(node.connections, len(node.handshakes))
        self._link.emit(WorkerStatus(gauges, usage))
        if (counts := self._node.dns_counts.take()) is not None:
            self._link.emit(counts)
        self._node.ledger.progress(node.config.tuning.making_s)
        self._node.hellos.release_idle()
        for pod in self._pods.values():
            pod.pool.release_idle()
            pod.netns.release_idle()

    def _collect(self) -> None:
        """Tunnels and their connections refer to each other: find the closed ones. The collector is off on the hot path."""
        gc.collect()

    def _shut_down(self, _node: Node, message: Shutdown, _fds: list[int]) -> None:
        if self._draining:
            return
        self._draining = True
        for pod in self._pods.values():
            pod.drain()
        self._retire_tunnels(list(self._pods.values()))
        self._loop.call_at(self._loop.now + message.deadline_s, self._stop)
        self._tunnels_until = self._loop.now + min(FAREWELL_S, message.deadline_s)
        self._loop.every(TICK_S, self._end_when_done)

    def _end_when_done(self) -> None:
        """End when no connection is open or beginning; tunnels without any have a moment for their GOAWAYs."""
        assert self._node is not None
        if self._node.is_busy:
            self._tunnels_until = self._loop.now + FAREWELL_S
        elif not self._node.tunnels or self._loop.now >= self._tunnels_until:
            self._stop()

    def _stop(self) -> None:
        self._loop.running = False

    def finish(self) -> None:
        """End everything, and report it."""
        for pod in self._pods.values():
            pod.close()
        for pod in (*self._leaving, *self._pods.values()):
            pod.finish()
        if self._node is not None:
            self._node.failures.finish()
        self._link.finish(1.0)


def _policies_of(workload: Workload | None) -> tuple[str, ...]:
    return workload.authorization_policies if workload is not None else ()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def main(arguments: list[str]) -> None:
    """Serve until the supervisor says so, or is gone."""
    _, channel = arguments
    log_to_stderr(os.environ.get("LOG_FORMAT") == "json")
    die_with_parent()
    faulthandler.register(signal.SIGUSR2)  # where we are, for the supervisor when we hang, or for whoever wonders
    read_keys_fast()
    with suppress(OSError):  # who confines us may forbid it: then we wait as everybody does
        take_short_slices()
    loop = Loop()
    worker = Worker(loop, socket.socket(fileno=int(channel)))
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        loop.run()
    except MemoryError:
        _log.error("no memory is left: this worker ends, and another one takes its place; %s", MEND)
        sys.exit(1)  # in no order, which would take memory: the kernel resets what is open
    worker.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
