"""Metrics of the proxy itself, and what is said of those that are Istio's."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.inventory import Inventory
from wire.xds import XdsStatus
from ztunnel.dns_metrics import DNSMetrics
from ztunnel.metrics import TcpMetrics, render, revocation_families
from ztunnel.node_metrics import node_families, open_fds

pytestmark = pytest.mark.unit

SAID = """
HELP istio_tcp_connections_opened The total number of TCP connections opened.
TYPE istio_tcp_connections_opened counter
HELP istio_tcp_connections_closed The total number of TCP connections closed.
TYPE istio_tcp_connections_closed counter
HELP istio_tcp_connections_failed The total number of TCP connections that failed to establish (unstable).
TYPE istio_tcp_connections_failed counter
HELP istio_tcp_received_bytes The size of total bytes received during request in case of a TCP connection.
TYPE istio_tcp_received_bytes counter
HELP istio_tcp_sent_bytes The size of total bytes sent during response in case of a TCP connection.
TYPE istio_tcp_sent_bytes counter
HELP istio_tcp_sockets_open The current number of open TCP sockets (unstable).
TYPE istio_tcp_sockets_open gauge
HELP istio_crl_policy_rejections The total number of connections rejected due to CRL certificate revocation (unstable).
TYPE istio_crl_policy_rejections counter
HELP istio_crl_untracked_connections The total number of connections not tracked for CRL enforcement (unstable).
TYPE istio_crl_untracked_connections counter
HELP istio_on_demand_dns The total number of requests that used on-demand DNS (unstable).
TYPE istio_on_demand_dns counter
HELP istio_dns_requests Total number of DNS requests (unstable).
TYPE istio_dns_requests counter
HELP istio_dns_upstream_requests Total number of DNS requests forwarded to upstream (unstable).
TYPE istio_dns_upstream_requests counter
HELP istio_dns_upstream_failures Total number of DNS requests that failed to forward upstream (unstable).
TYPE istio_dns_upstream_failures counter
HELP istio_dns_upstream_request_duration_seconds Total time in seconds Istio takes to get DNS response from upstream (unstable).
TYPE istio_dns_upstream_request_duration_seconds histogram
UNIT istio_dns_upstream_request_duration_seconds seconds
HELP istio_build Istio component build info.
TYPE istio_build gauge
HELP istio_xds_connection_terminations The total number of completed connections to xds server (unstable).
TYPE istio_xds_connection_terminations counter
HELP istio_xds_message Total number of messages received (unstable).
TYPE istio_xds_message counter
HELP istio_xds_message_bytes Total number of bytes received (unstable).
TYPE istio_xds_message_bytes counter
UNIT istio_xds_message_bytes bytes
HELP workload_manager_active_proxy_count The total number current workloads with active proxies (unstable).
TYPE workload_manager_active_proxy_count gauge
HELP workload_manager_pending_proxy_count The total number current workloads with pending proxies (unstable).
TYPE workload_manager_pending_proxy_count gauge
HELP workload_manager_proxies_started The total number of proxies that were started (unstable).
TYPE workload_manager_proxies_started counter
HELP workload_manager_proxies_stopped The total number of proxies that were stopped (unstable).
TYPE workload_manager_proxies_stopped counter
"""
"""Lines of Istio's ztunnel of August 2026."""


def test_what_istios_metrics_are_is_said_in_istios_words() -> None:
    nothing: Any = SimpleNamespace(
        xds=SimpleNamespace(status=XdsStatus()),
        zds=SimpleNamespace(connected=True, pending=()),
        pods=SimpleNamespace(running=list, dns_troubles=list, started=0, stopped=0),
        workers=SimpleNamespace(pids={}, alive=(), restarts=0, hangs=0),
    )
    families = [*TcpMetrics().families(), *revocation_families({}), *DNSMetrics(Inventory()).families()]
    shown = render([*families, *node_families(nothing, 0, "")]).decode().splitlines()
    said = [line.removeprefix("# ") for line in shown if line.startswith("# ") and line != "# EOF"]
    assert [line for line in said if not line.split()[1].startswith(("weft_", "process_"))] == SAID.split("\n")[1:-1]


def test_descriptors_of_any_process_are_counted() -> None:
    script = (
        "import os, sys\n"
        "for count in (100, 50):\n"
        "    [os.open('/dev/null', 0) for _ in range(count)]\n"
        "    print('there', flush=True)\n"
        "    sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        before = open_fds(process.pid)
        assert 103 <= before <= 110
        process.stdin.write(b"more\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"there\n"
        assert open_fds(process.pid) == before + 50
        process.kill()
        process.wait()
        assert open_fds(process.pid) == 0
