"""Where a pod's connections go is remembered, and never longer than it is so."""

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.workload import (
    BalancingMode,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    Service,
    TunnelProtocol,
    WeightedWaypoint,
    Workload,
)
from ztunnel.balance import NOBODY
from ztunnel.channel import AddPod, Configure
from ztunnel.loop import Loop
from ztunnel.node import Node
from ztunnel.outliers import Choice, Outliers
from ztunnel.pod import Pod
from ztunnel.route import Refused, Request, Route
from ztunnel.ways import MAX_KNOWN, Way, Ways

pytestmark = pytest.mark.unit

KEY = "ns/web.ns.svc.cluster.local"
CLIENT = Workload("c", "c", "ns", (ip_address("10.0.0.1"),), protocol=TunnelProtocol.HBONE)
SERVER = Workload("s", "s", "ns", (ip_address("10.0.0.2"),), protocol=TunnelProtocol.HBONE, services={KEY: {80: 8080}})
OTHER = replace(SERVER, uid="o", name="o", addresses=(ip_address("10.0.0.3"),))
WEB = Service("web", "ns", "web.ns.svc.cluster.local", (NetworkAddress("", ip_address("10.96.0.1")),), {80: 8080})
TO_WEB = Request(CLIENT, CLIENT.addresses[0], ip_address("10.96.0.1"), 80)
TO_SERVER = Request(CLIENT, CLIENT.addresses[0], SERVER.addresses[0], 8080)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node(Loop(), Configure("n", "", "Kubernetes", "cluster.local", 0), lambda _: None)
    yield made
    os.close(made.home_fd)


def tell(node: Node, *known: Workload | Service) -> None:
    node.inventory.apply(known, [])
    node.inventory_changed()


def way(outcome: Way | Refused) -> Way:
    assert isinstance(outcome, Way), outcome
    return outcome


def test_a_way_is_found_once_and_says_all_that_follows(node: Node) -> None:
    tell(node, CLIENT, SERVER, WEB)
    ways = Ways(node, Outliers(5))
    first = way(ways.find(TO_WEB))
    assert ways.find(TO_WEB) is first
    assert first.key == (CLIENT.identity, {str(SERVER.identity)}, CLIENT.addresses[0], SERVER.addresses[0], 15008)
    assert (first.authority, first.identity, first.route.service) == ("10.0.0.2:8080", SERVER.identity, WEB)


def test_an_address_that_is_read_anew_goes_the_same_way(node: Node) -> None:
    tell(node, CLIENT, SERVER, WEB)
    ways = Ways(node, Outliers(5))
    first = way(ways.find(TO_WEB))
    for _ in range(2 * MAX_KNOWN):
        assert ways.find(TO_WEB._replace(source=ip_address("10.0.0.1"), destination=ip_address("10.96.0.1"))) == first
    assert len(ways._known) <= MAX_KNOWN


def test_another_address_or_port_is_another_way(node: Node) -> None:
    tell(node, CLIENT, SERVER, WEB)
    ways = Ways(node, Outliers(5))
    assert way(ways.find(TO_SERVER)).authority == "10.0.0.2:8080"
    assert way(ways.find(TO_SERVER._replace(port=81))).authority == "10.0.0.2:81"
    elsewhere = way(ways.find(TO_SERVER._replace(source=ip_address("10.0.0.9"))))
    assert elsewhere.key is not None and str(elsewhere.key.source_address) == "10.0.0.9"


@pytest.mark.parametrize(
    "change",
    [
        replace(SERVER, service_account="new"),
        replace(SERVER, protocol=TunnelProtocol.NONE),
        replace(SERVER, addresses=(ip_address("10.0.0.7"),)),
        replace(WEB, ports={80: 9090}),
        replace(WEB, waypoint=GatewayAddress(NamespacedHostname("ns", "wp"), 15008)),
        replace(CLIENT, service_account="new"),
    ],
)
def test_any_change_of_the_mesh_makes_all_ways_anew(node: Node, change: Workload | Service) -> None:
    tell(node, CLIENT, SERVER, WEB)
    ways = Ways(node, Outliers(5))
    before = [ways.find(TO_WEB), ways.find(TO_SERVER)]
    tell(node, change)
    client = change if isinstance(change, Workload) and change.uid == "c" else CLIENT
    asked = [one._replace(client=client) for one in (TO_WEB, TO_SERVER)]
    after = [ways.find(one) for one in asked]
    assert after == [Ways(node, Outliers(5)).find(one) for one in asked] and after != before


def test_a_pod_that_is_somebody_else_now_goes_as_that_one(node: Node) -> None:
    tell(node, CLIENT, SERVER)
    ways = Ways(node, Outliers(5))
    ways.find(TO_SERVER)
    anew = way(ways.find(TO_SERVER._replace(client=replace(CLIENT, service_account="new"))))
    assert anew.key is not None and anew.key.source.service_account == "new"


def test_whom_chance_chooses_is_chosen_for_each_connection(node: Node) -> None:
    tell(node, CLIENT, SERVER, OTHER, WEB)
    ways, chances = Ways(node, Outliers(5)), iter([0.1, 0.9, 0.1])
    node.chance = lambda: next(chances)
    assert [way(ways.find(TO_WEB)).authority for _ in range(3)] == ["10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.2:8080"]


def test_so_is_a_waypoint_of_several(node: Node) -> None:
    by_address = [GatewayAddress(NetworkAddress("", one.addresses[0]), 15008) for one in (SERVER, OTHER)]
    shared = replace(WEB, weighted_waypoints=tuple(WeightedWaypoint(one, 1) for one in by_address))
    tell(node, CLIENT, SERVER, OTHER, shared)
    ways, chances = Ways(node, Outliers(5)), iter([0.1, 0.9])
    node.chance = lambda: next(chances)
    assert [str(way(ways.find(TO_WEB)).route.address) for _ in range(2)] == ["10.0.0.2", "10.0.0.3"]


def test_whom_chance_chose_keeps_a_connection_that_waits_while_it_still_could_be_chosen(node: Node) -> None:
    tell(node, CLIENT, SERVER, OTHER, WEB)
    ways = Ways(node, Outliers(5))
    node.chance = lambda: 0.1
    before = way(ways.find(TO_WEB)).route
    node.chance = lambda: 0.9
    assert way(ways.find(TO_WEB)).route.workload is OTHER and before.workload is SERVER
    assert ways.elsewhere(TO_WEB, before, NOBODY) is None
    tell(node, replace(SERVER, healthy=False))
    elsewhere = ways.elsewhere(TO_WEB, before, NOBODY)
    assert elsewhere is not None and way(elsewhere).route.workload is OTHER


PLAIN = replace(SERVER, protocol=TunnelProtocol.NONE)
UNSERVED = replace(SERVER, services={})
WANTING = replace(WEB, waypoint=GatewayAddress(NamespacedHostname("ns", "nobody"), 15008))


@pytest.mark.parametrize(
    ("before", "after", "elsewhere"),
    [
        ([SERVER, WEB], [SERVER, WEB], None),
        ([SERVER, WEB], [PLAIN, WEB], None),
        ([SERVER, WEB], [UNSERVED], None),
        ([PLAIN, WEB], [UNSERVED], None),
        ([UNSERVED], [UNSERVED], None),
        ([PLAIN, WEB], [replace(OTHER, protocol=TunnelProtocol.NONE), WEB], "TCP 10.0.0.3"),
        ([UNSERVED], [PLAIN, WEB], "TCP 10.0.0.2"),
        ([PLAIN, WEB], [SERVER, WEB], "HBONE 10.0.0.2"),
        ([UNSERVED], [SERVER, WEB], "HBONE 10.0.0.2"),
        ([SERVER, WEB], [OTHER, WEB], "HBONE 10.0.0.3"),
        ([SERVER, WEB], [SERVER, WANTING], "refused"),
        ([UNSERVED], [SERVER, WANTING], "refused"),
    ],
)
def test_what_was_to_take_a_tunnel_or_to_reach_who_is_known_does_neither_less_when_the_mesh_changes(
    node: Node, before: list[Workload | Service], after: list[Workload | Service], elsewhere: str | None
) -> None:
    tell(node, CLIENT, *before)
    ways = Ways(node, Outliers(5))
    decided = way(ways.find(TO_WEB)).route
    node.inventory.apply([], [SERVER.uid, KEY])
    tell(node, *after)
    found = ways.elsewhere(TO_WEB, decided, NOBODY)
    shown = f"{found.route.protocol} {found.route.address}" if isinstance(found, Way) else found and "refused"
    assert shown == elsewhere


def test_what_goes_in_plain_has_no_tunnel_and_what_is_asked_for_is_decided_each_time(node: Node) -> None:
    tell(node, CLIENT, PLAIN, WEB)
    ways = Ways(node, Outliers(5))
    assert way(ways.find(TO_WEB)).key is None and way(ways.find(TO_WEB._replace(destination=ip_address("1.1.1.1")))).key is None
    named = replace(SERVER, addresses=(), hostname="server.example")
    tell(node, named)
    assert way(ways.find(TO_WEB)) == Way(way(ways.find(TO_WEB)).route), "nobody knows yet where a hostname leads"
    tell(node, SERVER)
    assert ways.find(TO_WEB) is ways.find(TO_WEB)
    node.demands = cast("Any", object())
    assert ways.find(TO_WEB) is not ways.find(TO_WEB)


def test_who_is_set_aside_or_to_be_avoided_is_not_remembered_as_the_way(node: Node) -> None:
    tell(node, CLIENT, SERVER, WEB)
    outliers = Outliers(5)
    ways = Ways(node, outliers)
    first = way(ways.find(TO_WEB))
    assert isinstance(ways.find(TO_WEB, frozenset({"s"})), Refused)  # one attempt's own
    assert ways.find(TO_WEB) is first
    for _ in range(5):
        outliers.failed(Choice("s", 8080), 1.0)
    assert outliers.aside and ways.find(TO_WEB) is not first


def test_what_one_pod_cannot_reach_is_no_outlier_to_its_neighbours(node: Node) -> None:
    tell(node, CLIENT, SERVER, OTHER, WEB)
    node.chance = lambda: 0.1
    refused, neighbour = (Pod(node, AddPod(name, "ns", name, name), os.dup(node.home_fd)) for name in "rn")
    for _ in range(node.config.tuning.outlier_failures):
        refused.outliers.failed(Choice("s", 8080), node.loop.now)
    assert [way(one.ways.find(TO_WEB)).authority for one in (refused, neighbour)] == ["10.0.0.3:8080", "10.0.0.2:8080"]
    for one in (refused, neighbour):
        one.close()


def test_by_a_part_of_an_update_nothing_is_remembered(node: Node) -> None:
    tell(node, CLIENT, WEB, SERVER)
    ways = Ways(node, Outliers(5))
    node.unfinished = True
    assert ways.find(TO_WEB) is not ways.find(TO_WEB)
    node.unfinished = False
    assert ways.find(TO_WEB) is ways.find(TO_WEB)


def test_refusals_are_decided_each_time(node: Node) -> None:
    tell(node, CLIENT, WEB)
    ways = Ways(node, Outliers(5))
    assert isinstance(ways.find(TO_WEB), Refused)
    node.inventory.apply([SERVER], [])  # as in the midst of an update
    assert isinstance(ways.find(TO_WEB), Way)


def test_what_is_remembered_is_bounded(node: Node) -> None:
    tell(node, CLIENT, SERVER)
    ways = Ways(node, Outliers(5))
    first = ways.find(TO_SERVER._replace(port=1))
    for port in range(2, MAX_KNOWN + 3):
        ways.find(TO_SERVER._replace(port=port))
    assert ways.find(TO_SERVER._replace(port=1)) is not first


GATE = replace(WEB, name="gate", hostname="gate.ns.svc.cluster.local", vips=(), ports={15008: 15008})
GATED = GatewayAddress(NamespacedHostname("ns", GATE.hostname), 15008)
GATEKEEPER = replace(SERVER, uid="g", name="g", addresses=(ip_address("10.0.0.9"),), services={GATE.key: {15008: 15008}})
_waypoints = st.none() | st.just(GATED)
_pods = st.builds(
    replace,
    st.just(SERVER),
    protocol=st.sampled_from(TunnelProtocol),
    service_account=st.sampled_from(("default", "another")),
    waypoint=_waypoints,
    healthy=st.booleans(),
    services=st.sampled_from((SERVER.services, {})),
)
_services = st.builds(
    replace,
    st.just(WEB),
    waypoint=_waypoints,
    mode=st.sampled_from((BalancingMode.UNSPECIFIED, BalancingMode.PASSTHROUGH)),
    subject_alt_names=st.sampled_from(((), ("spiffe://cluster.local/ns/ns/sa/third",))),
)
meshes = st.tuples(_pods | st.none(), st.just(OTHER) | st.none(), _services | st.none(), st.just(GATE) | st.none()).map(
    lambda known: [CLIENT, GATEKEEPER, *filter(None, known)]
)
CHANCES = (0.0, 0.3, 0.6, 0.99)


@given(meshes, meshes, st.sampled_from((TO_WEB, TO_SERVER)), st.sampled_from(CHANCES), st.sampled_from(CHANCES))
def test_whatever_changes_it_goes_where_it_may_and_never_from_a_tunnel_to_plain(
    before: list[Workload | Service], after: list[Workload | Service], request: Request, first: float, second: float
) -> None:
    node = Node(Loop(), Configure("n", "", "Kubernetes", "cluster.local", 0), lambda _: None)
    try:
        node.chance = lambda: first
        tell(node, *before)
        ways = Ways(node, Outliers(5))
        way = ways.find(request)
        if isinstance(way, Refused):
            return
        node.inventory.apply(after, [name for one in before for name in (getattr(one, "uid", ""), getattr(one, "key", ""))])
        node.inventory_changed()
        node.chance = lambda: second
        now = ways.elsewhere(request, way.route, NOBODY)
        may = []
        for chance in CHANCES:
            node.chance = lambda chance=chance: chance
            found = Ways(node, Outliers(5)).find(request)
            may.append(found if isinstance(found, Refused) else found.route._replace(certain=False))
    finally:
        os.close(node.home_fd)
    route = way.route._replace(certain=False)
    in_plain = [one for one in may if isinstance(one, Route) and one.protocol == "TCP"]
    if now is None:
        worse = [one for one in in_plain if route.protocol != "TCP" or one.workload is None]
        assert route in may or worse, "it stays where it still may be, or where it is better off than it would be now"
    elif isinstance(now, Refused):
        assert any(isinstance(one, Refused) for one in may)
    else:
        assert now.route._replace(certain=False) in may
        assert now.route.protocol != "TCP" or (route.protocol == "TCP" and now.route.workload is not None)
