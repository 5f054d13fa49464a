"""A connection that somebody does not take is offered to others, a few at most, and goes where the mesh has it by now."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import cast

import pytest

from mesh.workload import NetworkAddress, Service, TunnelProtocol, Workload
from ztunnel.attempts import Attempts
from ztunnel.channel import AddPod, Configure
from ztunnel.loop import Loop
from ztunnel.node import Node
from ztunnel.outbound import Outbound
from ztunnel.pod import Pod
from ztunnel.route import Request
from ztunnel.stream import TunnelStream
from ztunnel.tuning import Tuning
from ztunnel.ways import Way

pytestmark = pytest.mark.unit

KEY = "ns/web.ns.svc.cluster.local"
CLIENT = Workload("c", "c", "ns", (ip_address("10.0.0.1"),), protocol=TunnelProtocol.HBONE)
SERVERS = [
    Workload(
        f"s{number}",
        f"s{number}",
        "ns",
        (ip_address(f"10.0.0.{10 + number}"),),
        protocol=TunnelProtocol.HBONE,
        services={KEY: {80: 8080}},
    )
    for number in range(4)
]
WEB = Service("web", "ns", "web.ns.svc.cluster.local", (NetworkAddress("", ip_address("10.96.0.1")),), {80: 8080})
TO_WEB = Request(CLIENT, CLIENT.addresses[0], ip_address("10.96.0.1"), 80)


@pytest.fixture
def pod() -> Iterator[Pod]:
    tuning = Tuning(endpoint_attempts=3, outlier_failures=5)
    node = Node(Loop(), Configure("n", "", "Kubernetes", "cluster.local", 0, tuning=tuning), lambda _: None)
    made = Pod(node, AddPod("uid", "ns", "c", "default"), os.open("/proc/self/ns/net", os.O_RDONLY))
    yield made
    made.close()
    made.finish()
    os.close(node.home_fd)


def tell(pod: Pod, *known: Workload | Service) -> None:
    pod.node.inventory.apply(known, [])
    pod.node.inventory_changed()


def begun(pod: Pod, request: Request = TO_WEB) -> tuple[Attempts, Way]:
    attempts, way = Attempts(pod, request), pod.ways.find(request)
    assert isinstance(way, Way)
    attempts.begin(way)
    return attempts, way


def uid_of(way: Way) -> str:
    assert way.route.workload is not None
    return way.route.workload.uid


def test_each_attempt_is_another_endpoint_and_the_last_one_is_known_as_such(pod: Pod) -> None:
    tell(pod, CLIENT, WEB, *SERVERS)
    attempts, way = begun(pod)
    tried = [uid_of(way)]
    while not attempts.is_last:
        assert attempts.failed(way.route.choice)
        other = attempts.another(None)
        assert other is not None
        way = other
        tried.append(uid_of(way))
    assert len(set(tried)) == 3 == attempts.count
    assert attempts.failed(way.route.choice) and attempts.another(None) is None
    assert pod.node.retries == 2


def test_where_nobody_was_chosen_nobody_else_is_to_blame_or_to_be_had(pod: Pod) -> None:
    tell(pod, CLIENT, SERVERS[0])
    attempts, way = begun(pod, TO_WEB._replace(destination=SERVERS[0].addresses[0], port=8080))
    assert way.route.choice is None and not attempts.failed(way.route.choice)


def test_a_service_that_is_gone_has_no_other_endpoint_and_its_address_is_not_dialled_in_plain(pod: Pod) -> None:
    tell(pod, CLIENT, WEB, *SERVERS)
    attempts, way = begun(pod)
    attempts.failed(way.route.choice)
    pod.node.inventory.apply([], [KEY])
    pod.node.inventory_changed()
    found = pod.ways.find(TO_WEB)
    assert isinstance(found, Way) and found.route.protocol == "TCP", "as what the mesh does not know passes through"
    assert attempts.another(None) is None and attempts.count == 1 and not pod.node.retries


def test_who_waits_goes_elsewhere_once_when_the_mesh_has_it_so(pod: Pod) -> None:
    tell(pod, CLIENT, WEB, SERVERS[0])
    attempts, _ = begun(pod)
    assert attempts.elsewhere() is None, "nothing has changed"
    tell(pod, replace(SERVERS[0], addresses=(ip_address("10.0.0.99"),)))
    way = attempts.elsewhere()
    assert isinstance(way, Way) and way.peer is not None and str(way.peer[0]) == "10.0.0.99"
    assert attempts.elsewhere() is None, "asked once for each change"


def test_who_failed_is_no_place_elsewhere_either(pod: Pod) -> None:
    tell(pod, CLIENT, WEB, *SERVERS[:2])
    attempts, way = begun(pod)
    failed = uid_of(way)
    attempts.failed(way.route.choice)
    other = attempts.another(None)
    assert other is not None and uid_of(other) != failed
    attempts.begin(other)
    gone = next(one for one in SERVERS if one.uid == uid_of(other))
    tell(pod, replace(gone, services={}))
    way_now = attempts.elsewhere()
    assert not isinstance(way_now, Way), "the one that is left has failed"


def test_who_was_told_of_is_tried_again_while_the_mesh_is_the_same(pod: Pod) -> None:
    tell(pod, CLIENT, WEB, *SERVERS)
    attempts, way = begun(pod)
    attempts.failed(way.route.choice)
    assert attempts.another(told=way) is way
    tell(pod, replace(SERVERS[3], name="renamed"))
    other = attempts.another(told=way)
    assert other is not None and uid_of(other) != uid_of(way), "by the mesh of now, and who failed is avoided"


@pytest.mark.parametrize("was_open", [True, False])
def test_only_of_who_is_open_somebody_was_told(pod: Pod, was_open: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    went: list[Way] = []

    def go(connection: Outbound, way: Way) -> None:
        connection._way = way
        went.append(way)

    monkeypatch.setattr(Outbound, "_go", go)
    tell(pod, CLIENT, WEB, *SERVERS)
    application, ours = socket.socketpair()
    with application:
        connection = Outbound(pod, ours, (CLIENT.addresses[0], 1234), TO_WEB)
        connection.start(pod.ways.find(TO_WEB))
        connection.was_open = was_open
        assert connection.declined(cast("TunnelStream", SimpleNamespace(give_back=lambda: (ours, b""))), True)
        assert (went[1] is went[0]) == was_open
        connection.ended("-", "")
