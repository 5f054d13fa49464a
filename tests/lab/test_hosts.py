from ipaddress import ip_address

import pytest

from lab.hosts import hosts_file, resolver_file, service_lines
from tests.lab.backends import PODS, service

pytestmark = pytest.mark.unit


def test_names_are_short_at_home_only() -> None:
    services = [service("10.96.0.1", "fd00:96::1")]
    assert service_lines("shop", services, PODS, "cluster.local") == (
        "10.96.0.1\tweb.shop.svc.cluster.local web.shop.svc web.shop web\n"
        "fd00:96::1\tweb.shop.svc.cluster.local web.shop.svc web.shop web\n"
    )
    assert service_lines("data", services[:1], [], "cluster.local").splitlines()[0].split("\t")[1].split() == [
        "web.shop.svc.cluster.local",
        "web.shop.svc",
        "web.shop",
    ]


def test_a_headless_service_stands_for_its_ready_pods() -> None:
    text = service_lines("shop", [service(headless=True)], PODS, "cluster.local")
    assert [line.split("\t")[0] for line in text.splitlines()] == ["10.1.0.5", "fd00::5", "10.2.0.6"]
    assert " w2.web.shop.svc.cluster.local " in text.splitlines()[2]


def test_files_name_the_pod_itself_and_fail_fast() -> None:
    text = hosts_file("web-0", [ip_address("10.1.0.5")], "10.96.0.1\tweb\n")
    assert "10.1.0.5\tweb-0\n" in text and text.endswith("10.96.0.1\tweb\n") and "127.0.0.1\tlocalhost\n" in text
    text = resolver_file("shop", "cluster.local", [ip_address("10.1.0.1"), ip_address("fd00::1")])
    assert text.startswith("nameserver 10.1.0.1\nnameserver fd00::1\nsearch shop.svc.cluster.local svc.cluster.local ")
