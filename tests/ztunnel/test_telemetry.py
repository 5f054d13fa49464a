"""What operators see of connections, held to lines and labels recorded from Istio's ztunnel."""

import asyncio
import json
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mesh.event_line import read_line
from mesh.flows import ConnectionEvent, connection_flow
from mesh.identity import Identity
from mesh.inventory import Inventory
from mesh.proto import flow_pb2
from mesh.workload import Service, Workload
from ztunnel import flow_feed, limits, metrics, parties, telemetry
from ztunnel.channel import Closed, EarlyFailure, Offence, Opened, Progress, Revocation, Unasked, WorkerStatus
from ztunnel.connection_record import ConnectionRecord
from ztunnel.flow_feed import UNREAD_REFUSALS, FlowFeed
from ztunnel.limits import Usage
from ztunnel.log_levels import Level
from ztunnel.log_lines import stamp
from ztunnel.telemetry import LOST_AT_ONCE, Telemetry
from ztunnel.zds_session import PodInfo

pytestmark = pytest.mark.unit

POD = PodInfo("pod-uid", "amb", "web-97958b57f-6w6xr", "websa")
ONE, WEBSA = Identity("cluster.local", "amb", "default"), Identity("cluster.local", "amb", "websa")
L = (
    'reporter="destination",source_workload="one",source_canonical_service="canon",source_canonical_revision="rev7",'
    'source_workload_namespace="amb",source_principal="spiffe://cluster.local/ns/amb/sa/default",source_app="canon",'
    'source_version="rev7",source_cluster="Kubernetes",destination_service="hl.amb.svc.cluster.local",'
    'destination_service_namespace="amb",destination_service_name="hl",destination_workload="web",'
    'destination_canonical_service="web",destination_canonical_revision="v3",destination_workload_namespace="amb",'
    'destination_principal="spiffe://cluster.local/ns/amb/sa/websa",destination_app="web",destination_version="v3",'
    'destination_cluster="Kubernetes",request_protocol="tcp",response_flags="FLAG",connection_security_policy="mutual_tls",'
    'source_region="unknown",source_zone="unknown",destination_region="unknown",destination_zone="unknown"'
)


def inventory() -> Inventory:
    known = Inventory()
    known.apply(
        [
            Workload("K//Pod/amb/one", "one", "amb", (ip_address("10.244.1.5"),), canonical_name="canon",
                     canonical_revision="rev7", workload_name="one"),
            Workload("K//Pod/amb/web-97958b57f-6w6xr", "web-97958b57f-6w6xr", "amb", (ip_address("10.244.0.8"),),
                     service_account="websa", canonical_name="web", canonical_revision="v3", workload_name="web"),
            Workload("K//Pod/t/guaranteed", "guaranteed", "t", (ip_address("10.244.0.4"),), workload_name="guaranteed"),
            Service("web", "amb", "web.amb.svc.cluster.local"),
            Service("hl", "amb", "hl.amb.svc.cluster.local"),
            Service("td", "amb", "td.amb.svc.cluster.local"),
        ],
        [],
    )  # fmt: skip
    return known


OUTBOUND = ConnectionRecord(
    7, "pod-uid", "outbound", "HBONE", (ip_address("10.244.1.5"), 41414), (ip_address("10.244.0.8"), 15008),
    hbone_destination="10.244.0.8:8080", source_workload="K//Pod/amb/one", source_identity=ONE,
    destination_workload="K//Pod/amb/web-97958b57f-6w6xr", destination_identity=WEBSA,
    destination_service="amb/web.amb.svc.cluster.local", opened_unix_ns=1_700_000_000_123_456_789,
)  # fmt: skip
DENIED_PLAIN = ConnectionRecord(
    8, "pod-uid", "inbound", "TCP", (ip_address("10.244.0.4"), 40392), (ip_address("10.244.0.8"), 8080),
    source_workload="K//Pod/t/guaranteed", destination_workload="K//Pod/amb/web-97958b57f-6w6xr",
    destination_service="amb/td.amb.svc.cluster.local", flag="DENY", policy="istio-system/istio_converted_static_strict",
    error="connection closed due to policy rejection: explicitly denied by: istio-system/istio_converted_static_strict",
)  # fmt: skip


class World:
    """Telemetry, and everything that it wrote."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 0.0
        self.flows = FlowFeed(lambda: self.now)
        self.telemetry = Telemetry(
            "n1", "", inventory(), self.flows, self.lines.append, {"pod-uid": POD}.get, (limits.NODE, limits.POD)
        )

    def close(self, record: ConnectionRecord, was_open: bool = True) -> None:
        self.telemetry.hear(0, Closed(record, was_open))

    def die(self, worker: int) -> None:
        """A worker dies, and all that it carried is told of."""
        self.telemetry.worker_died(worker)
        while self.telemetry.tell_lost():
            pass

    def texts(self) -> list[list[str]]:
        """The lines without their times."""
        return [line.rstrip("\n").split("\t")[1:] for line in self.lines]

    def metrics(self) -> list[str]:
        return metrics.render(self.telemetry.families()).decode().splitlines()


def test_access_log_lines_as_recorded() -> None:
    world = World()
    world.telemetry.hear(0, Opened(OUTBOUND))
    world.close(replace(OUTBOUND, bytes_sent=76, bytes_received=229, duration_ns=1_900_000))
    world.close(DENIED_PLAIN, was_open=False)
    world.telemetry.hear(
        0,
        EarlyFailure(
            "pod-uid", "inbound", (ip_address("10.244.1.6"), 52490), (ip_address("10.244.0.8"), 15008), "TLS_FAILURE",
            'tls handshake error: "no certificate"',
        ),
    )  # fmt: skip
    assert world.texts() == [
        ["info", "access", "connection complete",
         'src.addr=10.244.1.5:41414 src.workload="one" src.namespace="amb" '
         'src.identity="spiffe://cluster.local/ns/amb/sa/default" src.cluster="Kubernetes" '
         'dst.addr=10.244.0.8:15008 dst.hbone_addr=10.244.0.8:8080 '
         'dst.service="web.amb.svc.cluster.local" dst.workload="web-97958b57f-6w6xr" dst.namespace="amb" '
         'dst.identity="spiffe://cluster.local/ns/amb/sa/websa" dst.cluster="Kubernetes" direction="outbound" '
         'bytes_sent=76 bytes_recv=229 duration="1ms"'],
        ["error", "access", "connection complete",
         'src.addr=10.244.0.4:40392 src.workload="guaranteed" src.namespace="t" src.cluster="Kubernetes" '
         'dst.addr=10.244.0.8:8080 dst.service="td.amb.svc.cluster.local" dst.workload="web-97958b57f-6w6xr" '
         'dst.namespace="amb" dst.cluster="Kubernetes" direction="inbound" bytes_sent=0 bytes_recv=0 duration="0ms" '
         'error="connection closed due to policy rejection: explicitly denied by: istio-system/istio_converted_static_strict"'],
        ["warn", "access", "connection failed",
         'src.addr=10.244.1.6:52490 dst.addr=10.244.0.8:15008 direction="inbound" '
         'error="tls handshake error: \\"no certificate\\""'],
    ]  # fmt: skip


def test_a_line_has_the_time_of_the_end_and_not_of_when_the_worker_told() -> None:
    world = World()
    world.close(replace(OUTBOUND, duration_ns=1_900_000))
    assert world.lines[0].split("\t")[0] == stamp(OUTBOUND.opened_unix_ns + 1_900_000)


def test_an_offender_is_named_in_line_and_metric() -> None:
    world, mallory = World(), Identity("cluster.local", "shop", "mallory")
    error = "h2 failed: ENHANCE_YOUR_CALM: too many resets"
    ends = (ip_address("10.244.1.6"), 52490), (ip_address("10.244.0.8"), 15008)
    for _ in range(2):
        world.telemetry.hear(0, Offence(mallory, "ENHANCE_YOUR_CALM"))
    world.telemetry.hear(1, Offence(None, "UNREAD"))
    world.telemetry.hear(0, EarlyFailure("pod-uid", "inbound", *ends, "-", error, mallory))
    assert f'src.identity="{mallory}"' in world.texts()[0][-1] and error in world.texts()[0][-1]
    assert f'weft_offences_total{{identity="{mallory}",kind="ENHANCE_YOUR_CALM"}} 2' in world.metrics()
    assert 'weft_offences_total{identity="unknown",kind="UNREAD"} 1' in world.metrics()
    world.telemetry.hear(0, Unasked(mallory))
    assert f'weft_questions_refused_total{{identity="{mallory}"}} 1' in world.metrics()


def test_a_failure_is_of_the_pod_here_and_not_of_its_namesake_in_another_cluster() -> None:
    world, known = World(), Inventory()
    pod = Workload("theirs", POD.name, POD.namespace, service_account="websa", node="n1", cluster_id="theirs")
    known.apply([pod, replace(pod, uid="ours", cluster_id="ours")], [])
    limits_of = (limits.NODE, limits.POD)
    world.telemetry = Telemetry("n1", "", known, world.flows, world.lines.append, {"pod-uid": POD}.get, limits_of, "ours")
    ends = (ip_address("10.244.1.6"), 52490), (ip_address("10.244.0.8"), 15008)
    early = EarlyFailure("pod-uid", "inbound", *ends, "TLS_FAILURE", "no")
    (event,) = events_of(world, lambda: world.telemetry.hear(0, early))
    assert event.destination.cluster == "ours"


def test_failures_that_were_not_told_one_by_one_are_counted() -> None:
    world, error = World(), "tls handshake error: timed out or evicted"
    ends = (ip_address("10.244.1.6"), 52490), (ip_address("10.244.0.8"), 15008)
    early = EarlyFailure("pod-uid", "inbound", *ends, "TLS_FAILURE", error)

    def act() -> None:
        world.telemetry.hear(0, early)
        world.telemetry.hear(0, replace(early, count=2700))

    flows = [connection_flow(event).Summary for event in events_of(world, act)]
    assert "last of" not in flows[0] and f"{error} (the last of 2700 in a second)" in flows[1]
    assert "repeated" not in world.texts()[0][-1] and world.texts()[1][-1].endswith(f'error="{error}" repeated=2700')
    assert 'weft_early_failures_total{direction="inbound",flag="TLS_FAILURE"} 2701' in world.metrics()


def test_refused_connections_that_were_not_told_one_by_one_are_counted() -> None:
    world = World()
    refused = replace(OUTBOUND, flag="CONNECT", error="connection refused")
    flows = events_of(world, lambda: world.telemetry.hear(0, Closed(refused, was_open=False, count=300)))
    assert connection_flow(flows[0]).Summary.endswith("connection refused (the last of 300 in a second)")
    assert world.texts()[0][-1].endswith('error="connection refused" repeated=300')
    counts = {line.partition("{")[0]: line.rpartition(" ")[2] for line in world.metrics() if 'reporter="source"' in line}
    names = ("opened", "closed", "failed")
    assert [counts[f"istio_tcp_connections_{name}_total"] for name in names] == ["300"] * 3
    assert counts["istio_tcp_sockets_open"] == "0"


def test_what_pods_and_the_node_hold_of_their_limits() -> None:
    world = World()
    for worker in (0, 1):
        usage = {"pod-uid": Usage((3, 2, 1, 100), (0, 7, 0, 0)), "": Usage((5, 2, 1, 100), (0, 0, 4, 0))}
        world.telemetry.hear(worker, WorkerStatus({}, usage))
    shown, pod = world.metrics(), 'scope="pod",namespace="amb",pod="web-97958b57f-6w6xr"'
    assert (
        f'weft_limit_used{{{pod},kind="streams"}} 4' in shown
        and f'weft_limit_refusals_total{{{pod},kind="streams"}} 14' in shown
    )
    assert 'weft_limit_used{scope="node",kind="connections"} 10' in shown
    assert 'weft_limit_refusals_total{scope="node",kind="handshakes"} 8' in shown
    assert f'weft_limit{{scope="pod",kind="buffered_bytes"}} {limits.POD.buffered_bytes}' in shown
    assert f'weft_limit{{scope="node",kind="connections"}} {limits.NODE.connections}' in shown
    world.telemetry.worker_died(1)
    shown = world.metrics()
    assert f'weft_limit_used{{{pod},kind="buffered_bytes"}} 100' in shown
    assert f'weft_limit_refusals_total{{{pod},kind="streams"}} 14' in shown, "a count never falls"
    world.telemetry.hear(1, WorkerStatus({}, {"": Usage((0, 0, 0, 0), (0, 0, 1, 0))}))
    assert 'weft_limit_refusals_total{scope="node",kind="handshakes"} 9' in world.metrics()


def test_what_a_worker_counted_stays_when_it_ends_and_what_it_held_goes() -> None:
    world = World()
    for worker in (0, 1):
        world.telemetry.hear(worker, WorkerStatus({"endpoint_retries": 5, "connections": 7}, {}))
    for alive in (2, 1, 0):
        shown = world.metrics()
        assert "weft_worker_endpoint_retries_total 10" in shown
        assert "# TYPE weft_worker_endpoint_retries counter" in shown
        assert (f"weft_worker_connections {7 * alive}" in shown) is (alive > 0)
        if alive:
            world.telemetry.worker_died(alive - 1)


def test_offenders_beyond_a_bound_are_counted_together() -> None:
    world = World()
    for number in range(1100):
        world.telemetry.hear(0, Offence(Identity("cluster.local", "shop", f"m{number}"), "PROTOCOL_ERROR"))
    shown = [line for line in world.metrics() if line.startswith("weft_offences_total")]
    assert len(shown) == 1001 and 'weft_offences_total{identity="others",kind="PROTOCOL_ERROR"} 100' in shown


def test_json_lines_levels_and_a_target_that_would_break_the_line() -> None:
    world = World()
    world.telemetry.as_json, world.telemetry.level = True, Level.DEBUG
    record = replace(OUTBOUND, source=(ip_address("fd00::1"), 1), hbone_destination="evil\nhost: x:80")
    world.telemetry.hear(0, Opened(record))
    first = json.loads(world.lines[0])
    assert list(first)[:6] == ["level", "time", "scope", "message", "src.addr", "src.workload"]
    assert (first["level"], first["time"], first["src.addr"]) == ("debug", "2023-11-14T22:13:20.123456Z", "[fd00::1]:1")
    world.telemetry.as_json = False
    world.close(record)
    assert world.lines[1].count("\n") == 1 and "dst.hbone_addr=evil?host:?x:80 " in world.lines[1]
    world.telemetry.level = Level.OFF
    world.close(DENIED_PLAIN, was_open=False)
    assert len(world.lines) == 2


def test_tcp_metrics_of_a_denied_connection_as_recorded() -> None:
    world = World()
    denied = replace(OUTBOUND, direction="inbound", destination_service="amb/hl.amb.svc.cluster.local", flag="DENY", error="no")
    world.close(denied, was_open=False)
    lines = world.metrics()
    for name, flag, value in [
        ("connections_opened", "-", 1), ("connections_closed", "DENY", 1), ("connections_failed", "DENY", 1),
        ("received_bytes", "-", 0), ("sent_bytes", "-", 0),
    ]:  # fmt: skip
        found = [line for line in lines if line.startswith(f"istio_tcp_{name}_total")]
        assert found == [f"istio_tcp_{name}_total{{{L.replace('FLAG', flag)}}} {value}"]
    assert 'istio_tcp_sockets_open{reporter="destination"} 0' in lines and lines[-1] == "# EOF"
    families = {family.name for family in text_string_to_metric_families("\n".join(lines) + "\n")}
    assert "istio_tcp_connections_failed" in families


def sample(world: World, name: str, **labels: str) -> float:
    found = [
        one.value
        for family in text_string_to_metric_families("\n".join(world.metrics()) + "\n")
        for one in family.samples
        if one.name == name and labels.items() <= one.labels.items()
    ]
    return sum(found)


def counted_open(world: World) -> float:
    return sample(world, "istio_tcp_connections_opened_total") - sample(world, "istio_tcp_connections_closed_total")


def nothing_is_open(world: World) -> bool:
    """Neither counted as such, nor known: a worker's end would end it."""
    before = len(world.lines)
    for worker in range(2):
        world.die(worker)
    return counted_open(world) == 0 and len(world.lines) == before


def test_bytes_count_from_the_servers_viewpoint_while_the_connection_lives() -> None:
    world = World()
    world.telemetry.hear(0, Opened(OUTBOUND))
    world.telemetry.hear(1, Opened(replace(OUTBOUND, direction="inbound")))
    world.telemetry.hear(0, Progress([(7, 100, 10), (99, 5, 5)]))
    world.telemetry.hear(0, Progress([(7, 150, 20)]))
    assert sample(world, "istio_tcp_received_bytes_total", reporter="source") == 150
    assert sample(world, "istio_tcp_sent_bytes_total", reporter="source") == 20
    assert sample(world, "istio_tcp_sockets_open", reporter="source") == 1 and counted_open(world) == 2
    world.close(replace(OUTBOUND, bytes_sent=175, bytes_received=25))
    world.telemetry.hear(1, Closed(replace(OUTBOUND, direction="inbound", bytes_sent=1000, bytes_received=7), True))
    assert sample(world, "istio_tcp_received_bytes_total", reporter="source") == 175
    assert sample(world, "istio_tcp_sent_bytes_total", reporter="destination") == 1000
    assert sample(world, "istio_tcp_sockets_open") == 0 and nothing_is_open(world)


def test_connections_that_share_a_tunnel_share_its_socket() -> None:
    world = World()
    for number in range(3):
        world.telemetry.hear(0, Opened(replace(OUTBOUND, number=number, direction="inbound")))
    world.telemetry.hear(0, Opened(replace(OUTBOUND, number=3, direction="inbound", protocol="TCP")))
    world.telemetry.hear(0, WorkerStatus({"inbound_tunnels": 1}, {}))
    assert sample(world, "istio_tcp_sockets_open", reporter="destination") == 2


def test_crl_metrics_by_reporter() -> None:
    world = World()
    for one in (
        Revocation("inbound", True),
        Revocation("inbound", True),
        Revocation("outbound", True),
        Revocation("inbound", False),
    ):
        world.telemetry.hear(0, one)
    lines = world.metrics()
    assert 'istio_crl_policy_rejections_total{reporter="destination"} 2' in lines
    assert 'istio_crl_policy_rejections_total{reporter="source"} 1' in lines
    assert 'istio_crl_untracked_connections_total{reporter="destination"} 1' in lines


def test_a_dead_workers_connections_end_in_log_and_metrics() -> None:
    world = World()
    world.telemetry.hear(0, WorkerStatus({"open_connections": 1}, {}))
    world.telemetry.hear(0, Opened(OUTBOUND))
    world.telemetry.hear(0, Progress([(7, 100, 10)]))
    world.telemetry.hear(1, Opened(replace(OUTBOUND, number=7)))
    assert sample(world, "weft_worker_open_connections") == 1
    world.die(0)
    assert counted_open(world) == 1 and sample(world, "istio_tcp_sockets_open") == 1
    assert "bytes_sent=100 bytes_recv=10" in world.lines[0] and "the data worker that carried it ended" in world.lines[0]
    assert sample(world, "weft_worker_open_connections") == 0


def test_tens_of_thousands_are_told_of_in_pieces_whoever_dies_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    world, count = World(), 3 * LOST_AT_ONCE
    for number in range(count):
        for worker in (0, 1):
            world.telemetry.hear(worker, Opened(replace(OUTBOUND, number=number)))
    died_at = OUTBOUND.opened_unix_ns + 5_000_000
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(time_ns=lambda: died_at))
    world.telemetry.worker_died(0)
    assert not world.lines and counted_open(world) == 2 * count, "nothing at once"
    assert world.telemetry.tell_lost() and len(world.lines) == LOST_AT_ONCE
    died_at += 2_000_000
    world.telemetry.worker_died(1)
    world.telemetry.hear(0, Opened(replace(OUTBOUND, number=1)))  # of the one in its place
    world.telemetry.worker_died(0)
    world.telemetry.hear(0, Opened(replace(OUTBOUND, number=1)))
    pieces = 1
    while world.telemetry.tell_lost():
        pieces += 1
        assert len(world.lines) == pieces * LOST_AT_ONCE
        assert counted_open(world) == sample(world, "istio_tcp_sockets_open") == 2 * count + 2 - len(world.lines)
    assert len(world.lines) == 2 * count + 1 and counted_open(world) == 1 and not world.telemetry.tell_lost()
    durations = [line.rpartition(' duration="')[2].partition('"')[0] for line in world.lines]
    assert durations == ["5ms"] * count + ["7ms"] * (count + 1), "until its worker died, not until it was told of"
    world.close(replace(OUTBOUND, number=1, bytes_sent=3))
    assert sample(world, "istio_tcp_sockets_open") == 0 and nothing_is_open(world)


def test_series_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 2)
    world = World()
    for uid in ("K//Pod/a/a", "K//Pod/a/b", "K//Pod/a/c"):
        world.telemetry.hear(0, Opened(replace(OUTBOUND, source_workload=uid, source_identity=Identity("td", "a", uid[-1]))))
    assert sample(world, "istio_tcp_connections_opened_total") == 2 and sample(world, "weft_metrics_overflow_total") == 1


def events_of(world: World, act: Any) -> list[ConnectionEvent]:
    """What a reader that was there before `act` gets, read as the agent does."""
    found = [read_line(json.dumps(one).encode()) for one in flows_of(world, act)]
    return [one for one in found if isinstance(one, ConnectionEvent)]


def flows_of(world: World, act: Any) -> list[Any]:
    """What a reader that was there before `act` gets."""

    async def run() -> list[Any]:
        stream = world.flows.stream()
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        act()
        text = await reading
        await stream.aclose()
        assert not world.flows.has_readers
        return [json.loads(line) for line in text.splitlines()]

    return asyncio.run(run())


def test_a_reader_that_comes_late_learns_what_was_refused() -> None:
    world = World()
    world.telemetry.hear(0, Opened(OUTBOUND))
    world.close(OUTBOUND)
    for number in range(UNREAD_REFUSALS + 1):
        world.close(replace(DENIED_PLAIN, number=number, opened_unix_ns=number + 1), was_open=False)

    async def run(count: int) -> list[str]:
        stream, lines = world.flows.stream(), []
        while len(lines) < count:
            lines += (await asyncio.wait_for(anext(stream), 5)).decode().splitlines()
        await stream.aclose()
        return lines

    flows = [json.loads(line) for line in asyncio.run(run(UNREAD_REFUSALS))]
    assert len(flows) == UNREAD_REFUSALS and {flow["phase"] for flow in flows} == {"denied"}
    assert flows[0]["time_ns"] == 2, "the oldest had to go"
    assert len(flows_of(world, lambda: world.close(DENIED_PLAIN, was_open=False))) == 1, "what was read is not told again"


def test_flows_name_what_happened() -> None:
    world = World()

    def act() -> None:
        world.telemetry.hear(0, Opened(OUTBOUND))
        world.close(DENIED_PLAIN, was_open=False)
        world.close(replace(OUTBOUND, duration_ns=5_000_000, bytes_sent=3))
        world.telemetry.hear(0, EarlyFailure(
            "pod-uid", "inbound", (ip_address("10.244.1.5"), 1), (ip_address("10.244.0.8"), 15008), "TLS_FAILURE", "expired",
        ))  # fmt: skip
        world.close(replace(OUTBOUND, flag="CONNECT", error="http status: 503 Service Unavailable"), was_open=False)
        world.close(replace(OUTBOUND, flag="CERT_REVOKED", error="peer certificate revoked"), was_open=False)

    flows = [connection_flow(event) for event in events_of(world, act)]
    verdicts = [flow_pb2.Verdict.Name(flow.verdict) for flow in flows]
    assert verdicts == ["FORWARDED", "DROPPED", "FORWARDED", "DROPPED", "ERROR", "DROPPED"]
    assert (flows[0].l4.TCP.destination_port, flows[0].IP.destination, flows[0].IP.encrypted) == (8080, "10.244.0.8", True)
    assert flows[0].destination_service.name == "web" and flows[0].node_name == "n1"
    assert "istio_converted_static_strict" in flows[1].Summary and flows[1].source.pod_name == "guaranteed"
    assert "3 bytes sent" in flows[2].Summary
    assert (flows[3].source.pod_name, flows[3].destination.pod_name) == ("one", "web-97958b57f-6w6xr")
    assert "no acceptable identity: expired" in flows[3].Summary
    assert "http status: 503" in flows[4].Summary
    assert flows[5].Summary == "refused, no acceptable identity: peer certificate revoked"


def test_a_slow_reader_loses_the_oldest_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_feed, "QUEUE_EVENTS", 3)
    world = World()
    denials = [replace(DENIED_PLAIN, source=(ip_address("10.244.0.4"), port)) for port in range(10)]
    lines = flows_of(world, lambda: [world.close(record, was_open=False) for record in denials])
    assert [line["source"]["port"] for line in lines[:-1]] == [7, 8, 9]
    assert lines[-1] == {"lost": 7} and world.flows.lost == 7


def test_a_flood_of_ordinary_connections_is_thinned_out_and_a_refusal_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_feed, "_BURST", 100.0)
    world = World()
    opened = Opened(OUTBOUND)

    def act() -> None:
        for _ in range(150):
            world.telemetry.hear(0, opened)
        world.close(DENIED_PLAIN, was_open=False)

    async def run() -> list[Any]:
        stream, lines = world.flows.stream(), []
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        act()
        lines += (await reading).splitlines()
        while b'"denied"' not in b"".join(lines):
            lines += (await anext(stream)).splitlines()
        await stream.aclose()
        return lines

    lines = asyncio.run(run())
    opened_lines = [line for line in lines if b'"opened"' in line]
    assert len(opened_lines) == 100 and world.flows.lost == 50 and b'{"lost":50}' in b"".join(lines)
    world.now = 1.0
    assert flows_of(world, lambda: [world.telemetry.hear(0, opened)])[0]["phase"] == "opened"


def test_a_connection_that_was_over_before_it_was_told_is_counted_and_shown_as_two_moments() -> None:
    world = World()
    record = replace(OUTBOUND, duration_ns=5_000_000, bytes_sent=3)
    events = events_of(world, lambda: world.telemetry.hear(0, Closed(record, was_open=True, told=False)))
    assert len(events) == 1
    assert [(event.phase, event.bytes_sent, event.duration_ns) for event in events[0].moments()] == [
        ("opened", 0, 0),
        ("closed", 3, 5_000_000),
    ]
    assert sample(world, "istio_tcp_connections_opened_total") == sample(world, "istio_tcp_connections_closed_total") == 1
    assert len(world.lines) == 1 and nothing_is_open(world)


def test_what_is_remembered_of_workloads_is_forgotten_when_the_mesh_changes() -> None:
    world, known = World(), inventory()
    telemetry = Telemetry("n1", "", known, world.flows, world.lines.append, lambda _: None, (limits.NODE, limits.POD))

    def act() -> None:
        telemetry.hear(0, Opened(OUTBOUND))
        known.apply([Workload("K//Pod/amb/one", "one", "amb", canonical_name="renamed")], [])
        telemetry.mesh_changed()
        telemetry.hear(0, Opened(replace(OUTBOUND, number=8)))

    events = events_of(world, act)
    assert ["k8s:app=canon" in event.source.labels for event in events] == [True, False]
    assert "k8s:app=renamed" in events[1].source.labels
    apps = [line for line in metrics.render(telemetry.families()).decode().splitlines() if "connections_opened_total{" in line]
    assert sorted(line.partition('source_app="')[2].partition('"')[0] for line in apps) == ["canon", "renamed"]


def test_connections_of_the_same_workloads_differ_in_all_that_is_their_own() -> None:
    world = World()
    ends = [("10.244.1.5", 1, "10.244.0.8:8080", "p/a"), ("10.244.1.5", 2, "10.244.0.8:9090", "p/a"), ("fd00::5", 3, "", "p/b")]
    records = [
        replace(OUTBOUND, number=number, source=(ip_address(address), number), hbone_destination=target, policy=policy)
        for address, number, target, policy in ends
    ]
    events = events_of(world, lambda: [world.telemetry.hear(0, Opened(record)) for record in records])
    told = [(str(event.source.address), event.source.port, event.destination.port, event.policy) for event in events]
    assert told == [("10.244.1.5", 1, 8080, "p/a"), ("10.244.1.5", 2, 9090, "p/a"), ("fd00::5", 3, 15008, "p/b")]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parties, "_MAX_REMEMBERED", 3)
    monkeypatch.setattr(parties, "_MAX_TAILS", 4)
    tcp = metrics.TcpMetrics()
    directory = parties.Directory("n1", inventory(), tcp)
    for number in range(20):
        record = replace(OUTBOUND, hbone_destination=f"10.244.0.8:{number}", source_workload=f"K//Pod/amb/{number // 2}")
        directory.line(directory.of(record), record, over=False, untold=False)
        assert len(directory._parties) <= 3 and len(directory._tails) <= 4
