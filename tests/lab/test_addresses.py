from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.addresses import MAX_NODES, node_addresses, overlaps, pick_host, pod_addresses, textual

pytestmark = pytest.mark.unit
RANGES = (ip_network("10.1.0.0/24"), ip_network("fd00:10:1::/64"))


def test_a_node_without_ranges_gets_those_of_its_index() -> None:
    addresses = node_addresses(3, ())
    assert addresses.ranges == (ip_network("10.3.0.0/24"), ip_network("fd00:10:3::/64"))
    assert addresses.bridge == (ip_interface("10.3.0.1/24"), ip_interface("fd00:10:3::1/64"))


def test_a_node_keeps_the_ranges_of_its_manifest() -> None:
    addresses = node_addresses(1, (ip_network("192.168.7.0/26"),))
    assert addresses.ranges == (ip_network("192.168.7.0/26"),)
    assert {one.version for one in addresses.underlay} == {4, 6}


def test_a_range_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.9\.9\.0/31 has no room"):
        node_addresses(1, (ip_network("10.9.9.0/31"),))


def test_default_ranges_never_overlap() -> None:
    assert overlaps({f"n{index}": node_addresses(index, ()) for index in range(1, MAX_NODES + 1)}) == []


def test_overlaps_name_both_nodes_and_the_underlay() -> None:
    nodes = {"a": node_addresses(1, ()), "b": node_addresses(2, (ip_network("10.0.0.0/8"), ip_network("fd00:30::/48")))}
    assert overlaps(nodes) == [
        "Node b: podCIDR 10.0.0.0/8 overlaps 10.1.0.0/24 of Node a",
        "Node b: podCIDR fd00:30::/48 overlaps fd00:30::/64 of the lab's underlay",
    ]


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=6), unique=True, max_size=60))
def test_host_numbers_are_unique_usable_and_remembered(names: list[str]) -> None:
    taken: dict[str, int] = {}
    for name in names:
        taken[name] = pick_host(name, taken, set(names), RANGES)
    assert len(set(taken.values())) == len(names)
    assert all(2 <= number <= 254 for number in taken.values())
    assert all(pick_host(name, taken, set(names), RANGES) == taken[name] for name in names)


def test_a_number_of_a_gone_pod_is_given_away_last() -> None:
    small = (ip_network("10.0.0.0/29"),)  # five pods
    taken: dict[str, int] = {}
    for name in "abcde":
        taken[name] = pick_host(name, taken, set("abcde"), small)
    with pytest.raises(ValueError, match=r"no free address in 10\.0\.0\.0/29: all 5 are in use"):
        pick_host("f", taken, set("abcde"), small)
    assert pick_host("f", taken, set("abce"), small) == taken["d"]


def test_the_same_number_in_each_family() -> None:
    assert textual(pod_addresses(tuple(reversed(RANGES)), 18)) == ["10.1.0.18", "fd00:10:1::12"]
