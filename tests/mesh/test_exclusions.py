"""What annotations exclude from capture: whole lists or nothing, and a sentence that says how to mend."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.exclusions import (
    ALL_INBOUND,
    DNS,
    INBOUND_PORTS,
    MAX_ENTRIES,
    NOTHING,
    OUTBOUND_PORTS,
    OUTBOUND_RANGES,
    PROXY_PORTS,
    VIRTUAL_INTERFACES,
    Exclusions,
    read_annotations,
    read_ports,
    read_ranges,
)

pytestmark = pytest.mark.unit


def test_reads_what_users_of_istio_write() -> None:
    annotations = {
        OUTBOUND_PORTS: "5432, 3306,5432",
        OUTBOUND_RANGES: "10.9.0.0/16,fd09::/16, 192.0.2.7",
        INBOUND_PORTS: "9100",
        ALL_INBOUND: "true",
        "app.kubernetes.io/other": "x",
    }
    ranges = (ip_network("10.9.0.0/16"), ip_network("192.0.2.7/32"), ip_network("fd09::/16"))
    assert read_annotations(annotations) == (Exclusions((3306, 5432), ranges, (9100,), all_inbound=True), ())
    assert read_annotations({}) == (NOTHING, ()) and not NOTHING
    assert read_annotations(dict.fromkeys(annotations, "")) == (NOTHING, ())


def test_dns_capture_is_on_unless_it_says_false() -> None:
    for text, excluded in (("", False), ("true", False), ("false", True)):
        assert read_annotations({DNS: text}) == (Exclusions(dns=excluded), ())
    exclusions, (trouble,) = read_annotations({DNS: "no"})
    assert not exclusions.dns and trouble.startswith(f"annotation {DNS}: 'no' is neither of two words")


def test_virtual_machines_in_a_pod_are_told_to_be_outside() -> None:
    exclusions, (trouble,) = read_annotations({VIRTUAL_INTERFACES: "k6t-eth0"})
    assert exclusions == NOTHING and "passes the mesh by" in trouble
    assert read_annotations({VIRTUAL_INTERFACES: ""}) == (NOTHING, ())


@pytest.mark.parametrize(
    ("annotation", "value", "reason", "mend"),
    [
        (OUTBOUND_PORTS, "3306,", "'' is not a port", "numbers from 1 to 65535"),
        (OUTBOUND_PORTS, "3306 5432", "'3306 5432' is not a port", "separated by commas"),
        (OUTBOUND_PORTS, "0", "'0' is not a port", "numbers"),
        (OUTBOUND_PORTS, "65536", "is not a port", "numbers"),
        (OUTBOUND_PORTS, "*", "is not a port", "numbers"),
        (OUTBOUND_PORTS, "-1", "is not a port", "numbers"),
        (INBOUND_PORTS, "80,15008", "15008 is the proxy's own", "leave it out"),
        (INBOUND_PORTS, "\u0663", "is not a port", "numbers"),
        (INBOUND_PORTS, ",".join(map(str, range(1, MAX_ENTRIES + 2))), "has 65 entries", "write fewer"),
        (INBOUND_PORTS, "1" * 5000, "5000 characters", "write fewer"),
        (OUTBOUND_RANGES, "10.0.0.1/8", "'10.0.0.1/8' is not a range", "10.0.0.0/8"),
        (OUTBOUND_RANGES, "10.0.0.0/33", "is not a range", "10.0.0.0/8"),
        (OUTBOUND_RANGES, "*", "is not a range", "10.0.0.0/8"),
        (OUTBOUND_RANGES, "db.example.com", "is not a range", "10.0.0.0/8"),
        (OUTBOUND_RANGES, "::ffff:10.0.0.0/104", "is no plain IPv6 range", "10.0.0.0/8"),
        (OUTBOUND_RANGES, "fe80::%eth0/64", "is no", "write"),
        (ALL_INBOUND, "yes", "'yes' is neither", 'write "true" or "false"'),
    ],
)
def test_a_bad_value_excludes_nothing_and_says_how_to_mend_it(annotation: str, value: str, reason: str, mend: str) -> None:
    good = {OUTBOUND_PORTS: "3306", INBOUND_PORTS: "9100"}
    exclusions, (trouble,) = read_annotations({**good, annotation: value})
    kept = read_annotations({name: text for name, text in good.items() if name != annotation})[0]
    assert exclusions == kept
    assert trouble.startswith(f"annotation {annotation}: ") and reason in trouble and mend in trouble
    assert trouble.endswith("until then it excludes nothing") and len(trouble) < 400


def test_the_proxys_own_ports_never_pass() -> None:
    everything = Exclusions(all_inbound=True)
    assert everything.lets_in(80) and not any(everything.lets_in(port) for port in PROXY_PORTS)
    assert Exclusions(inbound_ports=(80,)).lets_in(80) and not Exclusions(inbound_ports=(80,)).lets_in(81)


def test_says_what_is_excluded() -> None:
    exclusions = Exclusions((3306,), (ip_network("10.9.0.0/16"),), (9100,), all_inbound=True)
    said = ["outbound port 3306", "outbound to 10.9.0.0/16", "inbound port 9100", "all inbound ports"]
    assert exclusions.sentences() == said


@given(st.text(max_size=30) | st.from_regex(r"[0-9,./: a-f]{0,30}", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (read_ports, read_ranges):
        try:
            entries = read(text)
        except ValueError as error:
            assert str(error)
        else:
            assert len(entries) <= MAX_ENTRIES and bool(entries) == bool(text.strip())


@given(st.lists(st.ip_addresses().filter(lambda one: not getattr(one, "ipv4_mapped", None)), max_size=9))
def test_single_addresses_are_ranges_of_one(addresses: list[object]) -> None:
    ranges = read_ranges(",".join(map(str, addresses)))
    assert {one.network_address for one in ranges} == {ip_address(str(one)) for one in addresses}
