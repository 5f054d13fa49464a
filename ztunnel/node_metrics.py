"""Metrics of the proxy itself: its pods, its processes, its conversations."""

import os
import resource
from collections.abc import Iterable
from typing import Protocol

from wire.xds import XdsStatus
from ztunnel.config_dump import VERSION
from ztunnel.metrics import Family, counter, gauge
from ztunnel.pods import Pods
from ztunnel.workers import Workers
from ztunnel.zds import ZdsClient

_TERMINATIONS = "The total number of completed connections to xds server (unstable)"
_ACTIVE = "The total number current workloads with active proxies (unstable)"
_PENDING = "The total number current workloads with pending proxies (unstable)"
_STARTED = "The total number of proxies that were started (unstable)"
_STOPPED = "The total number of proxies that were stopped (unstable)"
"""What Istio's metrics are is said in Istio's words."""


class _Xds(Protocol):
    status: XdsStatus


class Measured(Protocol):
    """The parts that are measured."""

    @property
    def workers(self) -> Workers:
        """The data workers."""

    @property
    def pods(self) -> Pods:
        """The pods."""

    @property
    def zds(self) -> ZdsClient:
        """The agent's orders."""

    @property
    def xds(self) -> _Xds | None:
        """The control plane's stream, if there is one."""


def node_families(proxy: Measured, lines_lost: int, istio: str) -> list[Family]:
    """All of them; `istio`: for which release of Istio this one runs (empty: nobody said)."""
    status = proxy.xds.status if proxy.xds else XdsStatus()
    pids = [os.getpid(), *proxy.workers.pids.values()]
    return [
        gauge("istio_build", "Istio component build info", 1, component="ztunnel", tag=istio or VERSION),
        _by("istio_xds_connection_terminations", _TERMINATIONS, "reason", status.terminations.items()),
        _by("istio_xds_message", "Total number of messages received (unstable)", "url", status.messages.items()),
        _by(
            "istio_xds_message_bytes", "Total number of bytes received (unstable)", "url", status.message_bytes.items(), "bytes"
        ),
        gauge("weft_xds_connected", "Whether the control plane is connected", status.connected),
        gauge("weft_zds_connected", "Whether the agent is connected", proxy.zds.connected),
        gauge("workload_manager_active_proxy_count", _ACTIVE, len(list(proxy.pods.running()))),
        gauge("workload_manager_pending_proxy_count", _PENDING, len(proxy.zds.pending)),
        gauge("weft_pods_without_dns", "Pods whose DNS is not served on all addresses", len(proxy.pods.dns_troubles())),
        counter("workload_manager_proxies_started", _STARTED, [((), proxy.pods.started)]),
        counter("workload_manager_proxies_stopped", _STOPPED, [((), proxy.pods.stopped)]),
        gauge("weft_workers", "Data workers that run", len(proxy.workers.alive)),
        counter("weft_worker_restarts", "Data workers that ended and were replaced", [((), proxy.workers.restarts)]),
        counter("weft_worker_hangs", "Data workers that were replaced because they hung", [((), proxy.workers.hangs)]),
        counter("weft_access_log_lost", "Access log lines that nobody took", [((), lines_lost)]),
        gauge("process_open_fds", "Open descriptors of the process that has most of them", max(map(open_fds, pids))),
        gauge("process_max_fds", "Maximum number of file descriptors", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ]


def open_fds(pid: int) -> int:
    """How many descriptors a process has; 0 when it is gone."""
    try:
        # From Linux 6.2 on the folder's size is their number; before they are listed, one by one.
        return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _by(name: str, text: str, label: str, counts: Iterable[tuple[str, int]], unit: str = "") -> Family:
    return counter(name, text, ((((label, key),), count) for key, count in sorted(counts)), unit)
