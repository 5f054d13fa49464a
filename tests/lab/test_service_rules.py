import pytest

from lab.endpoints import Endpoint
from lab.service_rules import rules
from tests.lab.backends import PODS, endpoint, service

pytestmark = pytest.mark.unit


def test_every_family_leads_to_the_ready_pods_that_have_it() -> None:
    text = rules([service("10.96.0.1", "fd00:96::1")], PODS)
    assert (
        "ip daddr 10.96.0.1 tcp dport 80 dnat ip to numgen random mod 2 map { 0 : 10.1.0.5 . 8080, 1 : 10.2.0.6 . 8080 }"
        in text
    )
    assert "ip6 daddr fd00:96::1 tcp dport 80 dnat ip6 to [fd00::5]:8080" in text
    assert "10.2.0.7" not in text


def test_a_pod_that_reaches_itself_gets_another_source() -> None:
    assert "ip saddr . ip daddr { 10.1.0.5 . 10.1.0.5, 10.2.0.6 . 10.2.0.6 } masquerade" in rules([service("10.96.0.1")], PODS)


@pytest.mark.parametrize("pods", [[], PODS[2:]])
def test_a_service_without_ready_pods_is_refused(pods: list[Endpoint]) -> None:
    text = rules([service("10.96.0.1")], pods)
    assert "dnat" not in text.replace("priority dstnat", "").replace("status dnat", "")
    assert "ip daddr { 10.96.0.1 } meta l4proto tcp reject with tcp reset" in text


def test_a_pod_without_the_named_port_is_left_out() -> None:
    text = rules([service("10.96.0.1")], [PODS[0], endpoint("w4", "10.1.0.9", port_name="other")])
    assert "dnat ip to 10.1.0.5:8080" in text


def test_a_service_without_a_selector_has_no_pods() -> None:
    assert "dnat ip to" not in rules([service("10.96.0.1", selector={})], PODS)
