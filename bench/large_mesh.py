"""Rows of the second table about a large mesh: what it costs a proxy, and how long a push takes until it is in force."""

import asyncio
import time

from bench import accounts, scale
from bench.line_up import workers_of
from bench.stage import LoadError, Stage, pids_of
from bench.targets import Judged
from mesh.proto.control_pb2 import ApplyRequest, ManifestFile, PodReport, ReportPodsRequest, StatusRequest
from wire.http_client import request

_NODE = "a"
_POLL_S = 0.005
_TIMEOUT_S = 120.0
_REPORTER = "bench"


def rows(made: Stage) -> list[Judged]:
    """Push a large mesh through the control plane. The lab's daemon is ended before: it would run the pods.

    Nothing can be measured on the stage afterwards.
    """
    for pid in pids_of(made.layout.lab_cgroup):
        accounts.kill(pid)
    before = _memory(made)
    file = ManifestFile(name="large-mesh", yaml=scale.documents())
    answer = made.control.Apply(ApplyRequest(files=[file]), timeout=_TIMEOUT_S)
    problems = [f"{problem.object}: {problem.reason}" for problem in answer.problems if not problem.warning]
    if problems:
        raise LoadError(f"the large mesh was refused: {problems[0]}")
    policies_s = _in_force(made)
    pods = [
        PodReport(
            namespace=namespace,
            name=name,
            uid=f"{namespace}-{name}",
            node=_NODE,
            addresses=[address],
            ready=True,
            enrolled=True,
            phase="Running",
        )
        for namespace, name, address in scale.reports()
    ]
    made.control.ReportPods(ReportPodsRequest(reporter=_REPORTER, pods=pods), timeout=_TIMEOUT_S)
    workloads_s = _in_force(made)
    after = _memory(made)
    grown = {name: (after[name] - before[name]) / 1e6 for name in after}
    total = sum(grown.values())
    name = "10,000 workloads, 1,000 services, 10,000 policies"
    parts = ", ".join(f"{part} {size:.0f}" for part, size in grown.items())
    return [
        Judged.at_most(f"{name}: what one node's proxy grows by", total, 60.0, "MB").noted(f"({parts})"),
        Judged.at_most(f"{name}: from push to in force", policies_s + workloads_s, 1.0, "s").noted(
            f"(services and policies {policies_s:.2f}, workloads {workloads_s:.2f})"
        ),
    ]


def _memory(made: Stage) -> dict[str, int]:
    sizes = {"supervisor": accounts.pss_bytes(made.proxy(_NODE))}
    for number, pid in enumerate(workers_of(made, _NODE)):
        sizes[f"worker {number + 1}"] = accounts.pss_bytes(pid)
    return sizes


def _in_force(made: Stage) -> float:
    """Seconds from now, when control has just published, until the node's proxy has acknowledged all and its workers have it.

    Workers get what they are sent in order: one that answers a later question has taken everything before it.
    """
    begin = time.monotonic()
    while not _acknowledged(made):
        if time.monotonic() - begin > _TIMEOUT_S:
            raise LoadError(f"the proxy of node {_NODE} did not acknowledge a large mesh within {_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
    socket = made.layout.places.node(_NODE).admin_socket
    asyncio.run(request(socket, "GET", "/connections", timeout_s=_TIMEOUT_S)).check()
    return time.monotonic() - begin


def _acknowledged(made: Stage) -> bool:
    status = made.control.Status(StatusRequest(), timeout=_TIMEOUT_S)
    streams = [one for one in status.nodes if one.node == _NODE and one.client.startswith("ztunnel")]
    return bool(streams) and all(one.acked for one in streams)
