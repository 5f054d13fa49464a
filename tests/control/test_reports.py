from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from control.reports import MAX_PODS, PodReport, Reports, malformed, read_address

pytestmark = pytest.mark.unit

RANGES = {
    "n1": (ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64")),
    "n2": (ip_network("10.244.2.0/24"),),
}
SHARING = {("demo", "host")}


def pod(name: str, address: str = "", node: str = "n1", reporter: str = "lab", phase: str = "Running") -> PodReport:
    addresses = (ip_address(address),) if address else ()
    return PodReport("demo", name, reporter, f"uid-{name}", node, addresses, ready=True, phase=phase)


def test_changes_are_only_what_differs() -> None:
    reports = Reports()
    first = [pod("a", "10.244.1.2"), pod("b", "10.244.1.3")]
    changes = reports.changes("lab", first)
    assert changes.upserts == tuple(first)
    reports.apply(changes)
    assert reports.changes("lab", first) == reports.changes("other", []).__class__((), ())
    second = [pod("a", "10.244.1.2"), pod("c", "10.244.1.4")]
    changes = reports.changes("lab", second)
    assert (changes.upserts, changes.removals) == ((second[1],), (("demo", "b"),))
    # Another reporter's list leaves these alone.
    assert reports.changes("other", []).removals == ()


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (pod("a", "10.244.2.2"), "10.244.2.2 is outside the podCIDRs of node n1 (10.244.1.0/24, fd00:244:1::/64)"),
        (pod("a", "fd00:244:1::9"), None),
        (pod("host", "172.30.0.1"), None),
        (pod("host", "172.30.0.1", node="n3"), "node 'n3' is no Node object: apply it first"),
        (pod("a", "10.244.1.2", node="n3", phase="Failed"), None),
        (pod("held", "10.244.1.77"), "10.244.1.77 is held by pod demo/old"),
        (pod("over", "10.244.1.77", phase="Succeeded"), None),
        (pod("a", "10.244.1.78"), None),
    ],
)
def test_a_pod_is_where_it_can_be(report: PodReport, problem: str | None) -> None:
    known = [pod("old", "10.244.1.77", reporter="other"), pod("dead", "10.244.1.78", reporter="other", phase="Failed")]
    misplaced = Reports.of(known).misplaced("lab", [report, pod("fine", "10.244.1.99")], RANGES, SHARING)
    assert misplaced == ({report.key: problem} if problem else {})


@pytest.mark.parametrize(
    ("reports", "problem"),
    [
        ([pod("a"), pod("b")], None),
        ([pod("a"), pod("a", "10.244.1.9")], "pod demo/a is reported twice"),
        ([pod("")], "its name has 0 characters, 1 to 253 are allowed"),
        ([pod("a" * 254)], "its name has 254 characters"),
        ([pod("a", node="")], "its node has 0 characters"),
        ([pod("a", phase="Evicted")], "phase 'Evicted' is none of Pending, Running, Succeeded, Failed"),
        ([replace(pod("a"), addresses=(ip_address("10.244.1.1"),) * 9)], "9 addresses, at most 8"),
        ([replace(pod("a" * 253), uid="u" * 253), replace(pod("b"), addresses=(ip_address("10.244.1.1"),) * 8)], None),
        ([pod("a")] * (MAX_PODS + 1), "at most 50000 are read"),
        ([pod("a")] * MAX_PODS, "pod demo/a is reported twice"),
    ],
)
def test_what_is_no_list_of_pods_is_refused_whole(reports: list[PodReport], problem: str | None) -> None:
    found = malformed(reports)
    assert found is None if problem is None else found is not None and problem in found


def test_two_pods_of_one_report_share_nothing() -> None:
    reports = [pod("a", "10.244.1.2"), pod("b", "10.244.1.2")]
    assert Reports().misplaced("lab", reports, RANGES, SHARING) == {("demo", "b"): "10.244.1.2 is held by pod demo/a"}


def test_an_address_moves_between_pods_of_one_reporter() -> None:
    reports = Reports.of([pod("a", "10.244.1.2")])
    assert reports.misplaced("lab", [pod("b", "10.244.1.2")], RANGES, ()) == {}
    reports.apply(reports.changes("lab", [pod("b", "10.244.1.2")]))
    assert list(reports.pods) == [("demo", "b")]
    foreign = pod("c", "10.244.1.2", reporter="other")
    assert "held by pod demo/b" in reports.misplaced("other", [foreign], RANGES, ())[foreign.key]


def test_an_address_that_a_pod_gave_back_is_anybodys() -> None:
    reports = Reports.of([pod("a", "10.244.1.2")])
    foreign = [pod("c", f"10.244.1.{last}", reporter="other") for last in (2, 3)]
    for address, held in (("10.244.1.3", [False, True]), ("", [False, False]), ("10.244.1.2", [True, False])):
        reports.apply(reports.changes("lab", [pod("a", address)]))
        assert [bool(reports.misplaced("other", [one], RANGES, ())) for one in foreign] == held
    reports.apply(reports.changes("lab", []))
    assert not any(reports.misplaced("other", [one], RANGES, ()) for one in foreign)


def test_who_has_the_address_of_one_that_is_over_keeps_it_when_that_one_goes() -> None:
    reports = Reports.of([pod("dead", "10.244.1.2", phase="Failed"), pod("alive", "10.244.1.2")])
    reports.apply(reports.changes("lab", [pod("alive", "10.244.1.2")]))
    foreign = pod("c", "10.244.1.2", reporter="other")
    assert reports.misplaced("other", [foreign], RANGES, ()) == {foreign.key: "10.244.1.2 is held by pod demo/alive"}
    nowhere = reports.misplaced("other", [foreign], {"n1": ()}, ())
    assert nowhere == {foreign.key: "10.244.1.2 is outside the podCIDRs of node n1 (none)"}


def test_a_pod_goes_from_one_reporter_to_another_with_its_address() -> None:
    reports = Reports.of([pod("a", "10.244.1.2"), pod("b", "10.244.1.3")])
    moved = pod("a", "10.244.1.2", reporter="other")
    assert reports.misplaced("other", [moved], RANGES, ()) == {}
    reports.apply(reports.changes("other", [moved]))
    assert reports.changes("lab", []).removals == (("demo", "b"),), (
        "what another reports now is not who had it before's to take away"
    )
    assert list(reports.misplaced("lab", [pod("c", "10.244.1.2")], RANGES, ())) == [("demo", "c")]


def test_addresses_that_no_pod_can_have() -> None:
    assert str(read_address("fd00::1")) == "fd00::1"
    for text in ("", "10.0.0", "10.0.0.1/24", "127.0.0.1", "::", "224.0.0.1", "fe80::1%eth0"):
        with pytest.raises(ValueError):
            read_address(text)
