from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.vips import Claim, allocate

pytestmark = pytest.mark.unit

V4 = ip_network("10.96.0.0/16")
V6 = ip_network("fd00:96::/112")


def test_a_service_keeps_what_it_holds_and_gets_the_same_again() -> None:
    claims = [Claim(f"demo/s{number}", (4, 6)) for number in range(50)]
    first = allocate(claims, [V4, V6], {}).addresses
    assert all([one.version for one in several] == [4, 6] for several in first.values())
    assert all(several[0] in V4 and several[1] in V6 for several in first.values())
    # Nothing was remembered, others came and went: the names still lead to the same addresses.
    assert allocate(claims[10:20], [V4, V6], {}).addresses == {claim.service: first[claim.service] for claim in claims[10:20]}
    held = {"demo/s1": (ip_address("10.96.200.200"), first["demo/s1"][1])}
    assert allocate(claims, [V4, V6], held).addresses["demo/s1"] == held["demo/s1"]


def test_the_manifests_address_wins_over_the_held_one() -> None:
    held = {"demo/web": (ip_address("10.96.1.1"),)}
    wanted = Claim("demo/web", (4,), (ip_address("10.96.7.7"),))
    assert allocate([wanted], [V4], held).addresses == {"demo/web": (ip_address("10.96.7.7"),)}


def test_what_a_service_held_and_keeps_no_more_is_anothers_at_once() -> None:
    """It names another one, wants no such family any more, or the ranges are others."""
    one, other, six = ip_address("10.96.1.1"), ip_address("10.96.7.7"), ip_address("fd00:96::5")
    held = {"demo/a": (one, six)}
    made = allocate([Claim("demo/a", (4,), (other,)), Claim("demo/b", (4, 6), (one, six))], [V4, V6], held)
    assert made.addresses == {"demo/a": (other,), "demo/b": (one, six)} and not made.problems
    narrow = ip_network("10.96.8.0/24")
    (moved,) = allocate([Claim("demo/a", (4,))], [narrow, V6], held).addresses["demo/a"]
    assert moved in narrow


def test_a_service_gets_by_its_name_what_it_got_from_every_weft_before() -> None:
    made = allocate([Claim("demo/web", (4, 6))], [V4, V6], {}).addresses
    assert made == {"demo/web": (ip_address("10.96.132.202"), ip_address("fd00:96::4653"))}


def test_of_several_ranges_of_a_family_each_is_one() -> None:
    wide, six = ip_network("10.97.0.0/16"), ip_network("fd00:97::/112")
    ranges, held = [V4, V6, wide, six], {"demo/a": (ip_address("10.97.1.1"), ip_address("fd00:97::1"))}
    named = Claim("demo/b", (4, 6), (ip_address("10.97.2.2"), ip_address("fd00:97::2")))
    result = allocate([Claim("demo/a", (4, 6)), named], ranges, held)
    assert result.addresses == held | {"demo/b": named.wanted} and not result.problems


def test_collisions_and_ranges_are_named() -> None:
    held = {"demo/a": (ip_address("10.96.1.1"),)}
    claims = [
        Claim("demo/a", (4,)),
        Claim("demo/b", (4,), (ip_address("10.96.1.1"),)),
        Claim("demo/c", (4,), (ip_address("10.96.2.2"),)),
        Claim("demo/d", (4,), (ip_address("10.96.2.2"),)),
        Claim("demo/e", (4,), (ip_address("192.0.2.1"),)),
        Claim("demo/f", (6, 4)),
    ]
    result = allocate(claims, [V4], held)
    assert result.addresses == {"demo/a": (ip_address("10.96.1.1"),), "demo/c": (ip_address("10.96.2.2"),)}
    assert result.problems["demo/b"] == "10.96.1.1 is held by Service demo/a: choose another, or leave it out"
    assert "held by Service demo/c" in result.problems["demo/d"]
    assert "not in a service range (10.96.0.0/16)" in result.problems["demo/e"]
    assert "no IPv6 service range" in result.problems["demo/f"]


def test_a_full_range_is_an_error_and_its_edges_are_never_given() -> None:
    small = ip_network("10.0.0.0/30")
    claims = [Claim(f"demo/{name}", (4,)) for name in "abc"]
    result = allocate(claims, [small], {})
    assert {str(several[0]) for several in result.addresses.values()} == {"10.0.0.1", "10.0.0.2"}
    assert result.problems == {"demo/c": "no free IPv4 address in 10.0.0.0/30: widen --service-cidr"}
    for edge in ("10.0.0.0", "10.0.0.3"):
        assert allocate([Claim("demo/a", (4,), (ip_address(edge),))], [small], {}).problems


class Searched(IPv4Network):
    """How many addresses of it were looked at; too many are a search for each service."""

    looks = 0

    def __getitem__(self, number: int) -> IPv4Address:
        self.looks += 1
        assert self.looks < 1_000_000
        return super().__getitem__(number)


def test_a_full_range_is_not_searched_again_for_each() -> None:
    space, wide = Searched("10.96.0.0/20"), Searched("10.97.0.0/16")
    claims = [Claim(f"demo/s{number}", (4,)) for number in range(20_000)]
    made = allocate(claims, [space], {})
    assert len(made.addresses) == 4094 and len(made.problems) == 20_000 - 4094
    assert not allocate(claims, [space, wide], {}).problems, "the next range has room"
    assert space.looks and wide.looks, "nothing was counted: it is searched in another way"


@given(st.lists(st.integers(0, 40), unique=True), st.lists(st.integers(0, 40), unique=True))
def test_no_address_has_two_owners_and_survivors_stay(first: list[int], second: list[int]) -> None:
    ranges = [ip_network("10.0.0.0/27"), ip_network("10.0.1.0/28")]
    before = allocate([Claim(f"ns/{one}", (4,)) for one in first], ranges, {}).addresses
    after = allocate([Claim(f"ns/{one}", (4,)) for one in second], ranges, before)
    assert len(set(after.addresses.values())) == len(after.addresses)
    assert len(after.addresses) == min(len(second), 30 + 14)
    assert all(after.addresses[name] == before[name] for name in after.addresses.keys() & before.keys())
