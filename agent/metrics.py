"""Prometheus metrics of the agent, all `weft_agent_*`; traffic has Istio's names and is counted by the proxy."""

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent.flow_log import FlowLog
from agent.status import Diagnostics
from mesh.proto.agent_pb2 import StatusResponse
from wire.http_messages import Request, Response
from wire.seldom import Seldom

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Answers `GET /metrics`."""

    def __init__(self, diagnostics: Diagnostics, flows: FlowLog) -> None:
        self._diagnostics = diagnostics
        self._flows = flows
        self._newest = Seldom(self._render)

    async def answer(self, _: Request) -> Response:
        """The state of this moment, or of one just before."""
        return Response(body=await self._newest.get(), content_type=CONTENT_TYPE)

    async def _render(self) -> bytes:
        status = await self._diagnostics.gather()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Once([*of_status(status, self._diagnostics.local_ports), *of_flows(self._flows)]))
        return bytes(generate_latest(registry))


class Once(Collector):
    """Metrics that were gathered for one answer."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _gauge(name: str, help_text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """Samples of the same labels are one: a pod that leaves late, and the one that came in its name."""
    sums: dict[tuple[str, ...], float] = {}
    for values, number in samples:
        sums[values] = sums.get(values, 0) + number
    metric = GaugeMetricFamily(f"weft_agent_{name}", help_text, labels=labels)
    for values, number in sums.items():
        metric.add_metric(values, number)
    return metric


def _counter(name: str, help_text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    metric = CounterMetricFamily(f"weft_agent_{name}", help_text, labels=labels)
    for values, number in samples:
        metric.add_metric(values, number)
    return metric


def of_status(status: StatusResponse, local_ports: int) -> list[Metric]:
    """Metrics out of the diagnostics."""
    wrong = _gauge("problems", "Sentences in the diagnostics that say what is wrong.", (), [((), len(status.problems))])
    return [*_of_node(status), *_of_pods(status, local_ports), *_of_kernel(status), wrong]


def _of_node(status: StatusResponse) -> Iterator[Metric]:
    yield _gauge("build_info", "The running version.", ("version",), [((status.version,), 1)])
    yield _gauge("start_time_seconds", "When the agent started, Unix time.", (), [((), status.started_unix_s)])
    yield _gauge("proxy_connected", "1 while a proxy is connected over ZDS.", (), [((), status.proxy.connected)])
    yield _gauge("proxy_ready", "1 while the proxy has acknowledged its snapshot.", (), [((), status.proxy.ready)])
    yield _gauge("control_connected", "1 while the stream to control is open.", (), [((), status.control.connected)])
    yield _gauge("control_resources", "Resources held of the mesh.", (), [((), status.control.resources)])


def _of_pods(status: StatusResponse, local_ports: int) -> Iterator[Metric]:
    states = Counter(pod.state for pod in status.pods)
    yield _gauge(
        "pods", "Pods by state.", ("state",), [((state,), states[state]) for state in ("enrolled", "pending", "failed")]
    )
    yield _gauge(
        "pod_troubles",
        "What is wrong with a pod: that it is not wholly in the mesh, and each of its annotations that is refused.",
        ("namespace", "pod"),
        [((pod.namespace, pod.name), (pod.state != "enrolled") + len(pod.troubles)) for pod in status.pods],
    )
    captured = [
        ((pod.namespace, pod.name, family), used)
        for pod in status.pods
        for family, used in (("ipv4", pod.captured_v4), ("ipv6", pod.captured_v6))
    ]
    labels = ("namespace", "pod", "family")
    yield _gauge("captured_connections", "Captured outbound connections that are open.", labels, captured)
    yield _gauge(
        "captured_connections_share",
        "The same, as a share of the pod's local ports; 1 means that no further connection can be captured.",
        labels,
        [(pod, used / local_ports) for pod, used in captured],
    )


def _of_kernel(status: StatusResponse) -> Iterator[Metric]:
    used = [((one.name,), one.used) for one in status.maps]
    yield _gauge("map_entries", "Used entries of a kernel map.", ("map",), used)
    room = [((one.name,), one.capacity) for one in status.maps]
    yield _gauge("map_capacity", "Entries that a kernel map can hold.", ("map",), room)
    attached = [((one.name, one.hook), one.attached) for one in status.programs]
    yield _gauge("program_attached", "1 where a kernel program is attached.", ("program", "hook"), attached)
    counts = [((reason,), count) for reason, count in sorted(status.counters.items())]
    yield _counter("kernel_events", "What the kernel programs did, by reason.", ("reason",), counts)


def of_flows(flows: FlowLog) -> list[Metric]:
    """Metrics out of the flow log."""
    return [
        _counter("flows", "Flows seen.", ("verdict",), [((name,), count) for name, count in sorted(flows.by_verdict.items())]),
        _counter(
            "lost_flows",
            "Events that never became flows.",
            ("source",),
            [((name,), count) for name, count in flows.lost.items()],
        ),
        _gauge("stored_flows", "Flows that can be asked for.", (), [((), len(flows.ring))]),
    ]
