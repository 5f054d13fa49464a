from ipaddress import ip_address, ip_network

import pytest

from control.reports import MAX_PODS, NodeAddresses, PodReport, Reports, read_address

pytestmark = pytest.mark.unit

NODES = {
    "n1": NodeAddresses((ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64")), (ip_address("172.30.0.1"),)),
    "n2": NodeAddresses((ip_network("10.244.2.0/24"),)),
}


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
        (pod("a", "10.244.2.2"), r"10\.244\.2\.2 is outside the podCIDRs of node n1 \(10\.244\.1\.0/24, fd00:244:1::/64\)"),
        (pod("a", "fd00:244:1::9"), None),
        (pod("a", "172.30.0.1"), None),
        (pod("a", "10.244.1.2", node="n3"), "node 'n3' is no Node object"),
        (pod("a", phase="Evicted"), "phase 'Evicted' is none of"),
        (pod(""), "its name has 0 characters"),
        (pod("a" * 254), "its name has 254 characters"),
        (pod("held", "10.244.1.77"), "10.244.1.77 is held by pod demo/old"),
        (pod("over", "10.244.1.77", phase="Succeeded"), None),
        (pod("a", "10.244.1.78"), None),
    ],
)
def test_a_report_is_checked(report: PodReport, problem: str | None) -> None:
    known = [pod("old", "10.244.1.77", reporter="other"), pod("dead", "10.244.1.78", reporter="other", phase="Failed")]
    problems = Reports.of(known).check("lab", [report], NODES)
    if problem is None:
        assert problems == []
    else:
        assert len(problems) == 1
        with pytest.raises(ValueError, match=problem):
            raise ValueError(problems[0])


def test_two_pods_of_one_report_share_nothing() -> None:
    problems = Reports().check("lab", [pod("a", "10.244.1.2"), pod("b", "10.244.1.2"), pod("a")], NODES)
    assert problems == ["pod demo/b: 10.244.1.2 is held by pod demo/a", "pod demo/a: reported twice"]
    assert Reports().check("lab", [pod("a", "172.30.0.1"), pod("b", "172.30.0.1")], NODES) == []
    assert "at most" in Reports().check("lab", [pod("a")] * (MAX_PODS + 1), NODES)[0]


def test_an_address_moves_between_pods_of_one_reporter() -> None:
    reports = Reports.of([pod("a", "10.244.1.2")])
    assert reports.check("lab", [pod("b", "10.244.1.2")], NODES) == []
    reports.apply(reports.changes("lab", [pod("b", "10.244.1.2")]))
    assert list(reports.pods) == [("demo", "b")]
    assert "held by pod demo/b" in reports.check("other", [pod("c", "10.244.1.2", reporter="other")], NODES)[0]


def test_addresses_that_no_pod_can_have() -> None:
    assert str(read_address("fd00::1")) == "fd00::1"
    for text in ("", "10.0.0", "10.0.0.1/24", "127.0.0.1", "::", "224.0.0.1", "fe80::1%eth0"):
        with pytest.raises(ValueError):
            read_address(text)
