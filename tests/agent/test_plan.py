"""Whatever the sequence of states, interruptions and restarts: the plan converges, and no point of it is unsafe."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.plan import UP, Actual, Step, after, plan, unannounced
from agent.pod import Pod, PodRequest
from mesh.exclusions import NOTHING, Exclusions
from mesh.workload import Address

pytestmark = pytest.mark.unit

ADDRESSES: list[tuple[Address, ...]] = [(ip_address("10.1.0.2"),), (ip_address("10.1.0.2"), ip_address("fd00::2")), ()]


def pod(uid: str, cookie: int = 1, addresses: int = 0, excluded: bool = False) -> Pod:
    exclusions = Exclusions((3306,)) if excluded else NOTHING
    place = f"/run/netns/{uid}"
    request = PodRequest(uid, "demo", f"pod-{uid}", "default", place, ADDRESSES[addresses], exclusions=exclusions)
    return Pod(request, (4, cookie), cookie, "boot")


def run(actual: dict[str, Actual], steps: list[Step]) -> dict[str, Actual]:
    for step in steps:
        actual = after(actual, step)
    return actual


def text(steps: list[Step]) -> list[str]:
    return [("+" if step.add else "-") + step.layer for step in steps]


def test_enrols_in_order_and_then_has_nothing_to_do() -> None:
    desired = {"a": pod("a")}
    steps = plan(desired, {})
    assert text(steps) == ["+record", "+network", "+register", "+announce", "+capture"]
    assert plan(desired, run({}, steps)) == []


def test_withdraws_release_first_record_last() -> None:
    actual = run({}, plan({"a": pod("a")}, {}))
    steps = plan({}, actual)
    assert text(steps) == ["-register", "-announce", "-network", "-record"]
    assert run(actual, steps) == {}


def test_new_addresses_are_recorded_and_written_without_another_announcement() -> None:
    actual = run({}, plan({"a": pod("a")}, {}))
    actual = run(actual, plan({"a": pod("a", addresses=1)}, actual))
    assert text(plan({"a": pod("a")}, actual)) == ["+record", "+capture"]


def test_addresses_that_are_new_before_the_proxy_was_told_are_written_before_it_is() -> None:
    actual = run({}, plan({"a": pod("a")}, {})[:3])
    steps = plan({"a": pod("a", addresses=1)}, actual)
    assert text(steps) == ["+record", "+network", "+register", "+announce", "+capture"]


def test_a_family_that_is_new_is_set_up_in_the_namespace_first() -> None:
    actual = run({}, plan({"a": pod("a")}, {}))
    assert text(plan({"a": pod("a", addresses=1)}, actual)) == ["+record", "+network", "+capture"]


def test_other_exclusions_are_recorded_and_written_also_when_the_record_was_all_that_worked() -> None:
    actual = run({}, plan({"a": pod("a")}, {}))
    steps = plan({"a": pod("a", excluded=True)}, actual)
    assert text(steps) == ["+record", "+capture"]
    recorded = run(actual, steps[:1])
    assert text(plan({"a": pod("a", excluded=True)}, recorded)) == ["+capture"]


def test_same_uid_in_another_namespace_is_another_pod() -> None:
    actual = run({}, plan({"a": pod("a")}, {}))
    steps = plan({"a": pod("a", cookie=2)}, actual)
    assert text(steps[:4]) == ["-register", "-announce", "-network", "-record"]
    assert text(steps[4:]) == [f"+{layer}" for layer in UP]
    assert [step.pod.cookie for step in steps] == [1] * 4 + [2] * 5


def test_another_boot_is_another_place() -> None:
    actual = run({}, plan({"a": pod("a")}, {}))
    steps = plan({"a": replace(pod("a"), boot_id="later")}, actual)
    assert len(steps) == 9


def test_lost_proxy_leaves_only_the_announcement_to_do() -> None:
    desired = {"a": pod("a")}
    actual = unannounced(run({}, plan(desired, {})))
    assert text(plan(desired, actual)) == ["+announce"]


STATES = st.dictionaries(
    st.sampled_from("abc"), st.tuples(st.integers(1, 2), st.integers(0, 2), st.booleans()), max_size=3
).map(lambda found: {uid: pod(uid, *what) for uid, what in found.items()})


@given(st.lists(st.tuples(STATES, st.integers(0, 30), st.booleans()), min_size=1, max_size=6))
def test_every_sequence_converges_and_is_safe_throughout(sequence: list[tuple[dict[str, Pod], int, bool]]) -> None:
    actual: dict[str, Actual] = {}
    desired: dict[str, Pod] = {}
    for desired, stop_after, proxy_lost in sequence:
        for step in plan(desired, actual)[:stop_after]:
            actual = after(actual, step)
            layers = actual[step.pod.uid].layers if step.pod.uid in actual else frozenset()
            if step.add:
                assert layers >= set(UP[: UP.index(step.layer)]) - {"announce"}, f"{step} without what it rests on"
            assert "register" in layers or "capture" not in layers
            assert "record" in layers or not layers, "something is in the kernel that no record tells of"
        if proxy_lost:
            actual = unannounced(actual)
    actual = run(actual, plan(desired, actual))
    assert {uid: one.pod for uid, one in actual.items()} == desired
    assert all(one.layers == set(UP) and one.addresses == one.pod.request.addresses for one in actual.values())
    assert all(one.exclusions == one.pod.request.exclusions for one in actual.values())
    assert plan(desired, actual) == []
