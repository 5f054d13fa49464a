"""Endpoints that keep failing stand aside for a while, never too many of them, and one success forgives."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.inventory import Endpoint, Inventory
from mesh.workload import BalancingMode, NetworkAddress, Scope, Service, Workload
from ztunnel.outliers import ASIDE_S, LONGEST_S, MAX_KNOWN, Choice, Outliers, without
from ztunnel.route import Refused, Request, Route, decide

pytestmark = pytest.mark.unit

E0 = Choice("e0", 80)


def endpoints(count: int) -> list[Endpoint]:
    return [Endpoint(Workload(f"e{number}", "n", "ns"), {}) for number in range(count)]


def test_failures_in_a_row_set_an_endpoint_aside_ever_longer() -> None:
    outliers, now = Outliers(3), 100.0
    for times in range(1, 15):
        outliers.failed(E0, now)
        outliers.failed(E0, now)
        assert not outliers.aside
        outliers.failed(E0, now)
        assert outliers.aside == {E0}
        wait_s, before = min(ASIDE_S * times, LONGEST_S), outliers.aside
        outliers.tick(now + wait_s - 0.1)
        assert outliers.aside is before, "else all that is known of ways is forgotten (ztunnel.ways)"
        outliers.tick(now + wait_s)
        assert not outliers.aside
        now += wait_s


def test_who_fails_while_it_stands_aside_stands_there_no_longer_for_that() -> None:
    outliers = Outliers(2)
    for now in (0.0, 1.0, 10.0, 11.0):
        outliers.failed(E0, now)
    outliers.tick(1.0 + ASIDE_S)
    assert not outliers.aside


def test_failures_that_are_long_past_are_forgotten() -> None:
    outliers, now = Outliers(2), 0.0
    for now in (0.0, 1.0, 602.0):
        outliers.failed(E0, now)
        outliers.tick(now + ASIDE_S)
    assert not outliers.aside
    outliers.failed(E0, now)
    assert outliers.aside == {E0}
    outliers.tick(now + ASIDE_S)
    assert not outliers.aside, "as for the first time"


def test_a_success_forgives_everything() -> None:
    outliers = Outliers(2)
    outliers.failed(E0, 1)
    outliers.succeeded(E0)
    outliers.failed(E0, 2)
    assert not outliers.aside
    outliers.failed(E0, 3)
    assert outliers.aside == {E0}
    outliers.succeeded(E0)  # one that was begun before
    assert not outliers.aside


def test_zero_means_never_and_what_is_known_is_bounded() -> None:
    never, outliers = Outliers(0), Outliers(1)
    for number in range(MAX_KNOWN + 10):
        never.failed(E0, 1)
        outliers.failed(Choice(f"e{number}", 80), 1)
    assert not never.aside and len(outliers.aside) == MAX_KNOWN and E0 not in outliers.aside


def test_the_only_endpoint_that_a_client_may_have_never_stands_aside() -> None:
    vip, client = ip_address("10.96.0.1"), Workload("c", "c", "ns", (ip_address("10.0.0.9"),), node="n1")
    service = Service(
        "s", "ns", "s.ns", (NetworkAddress("", vip),), {80: 80}, preferences=(Scope.NODE,), mode=BalancingMode.STRICT
    )
    inventory = Inventory()
    everyone = [
        Workload(f"e{number}", "n", "ns", (ip_address(f"10.0.0.{number}"),), node=f"n{number}", services={service.key: {}})
        for number in range(1, 5)
    ]
    inventory.apply([service, client, *everyone], [])
    request = Request(client, client.addresses[0], vip, 80)
    route = decide(inventory, "", request, 0.5, aside=frozenset({Choice("e1", 80)}))
    assert isinstance(route, Route) and route.workload is not None and route.workload.uid == "e1"
    assert isinstance(decide(inventory, "", request, 0.5, avoid=frozenset({"e1"})), Refused)


def test_a_port_where_nobody_hears_says_nothing_of_the_others() -> None:
    vip, client = ip_address("10.96.0.1"), Workload("c", "c", "ns", (ip_address("10.0.0.9"),))
    service = Service("s", "ns", "s.ns", (NetworkAddress("", vip),), {80: 8080, 90: 9090})
    inventory = Inventory()
    pods = [Workload(f"e{n}", "n", "ns", (ip_address(f"10.0.0.{n}"),), services={service.key: {}}) for n in (1, 2)]
    inventory.apply([service, client, *pods], [])

    def taken(port: int) -> set[str]:
        request = Request(client, client.addresses[0], vip, port)
        routes = [decide(inventory, "", request, chance, aside=frozenset({Choice("e1", 9090)})) for chance in (0.1, 0.9)]
        return {route.choice.uid for route in routes if isinstance(route, Route) and route.choice is not None}

    assert taken(80) == {"e1", "e2"} and taken(90) == {"e2"}


@given(st.integers(0, 8), st.sets(st.integers(0, 8)))
def test_never_more_than_half_stand_aside(count: int, aside: set[int]) -> None:
    candidates = endpoints(count)
    left = without(candidates, frozenset(f"e{number}" for number in aside))
    assert 2 * len(left) >= count
    if 2 * len(aside & set(range(count))) > count:
        assert left == candidates, "something else is broken"
    else:
        assert not {one.workload.uid for one in left} & {f"e{number}" for number in aside}
