from pathlib import Path

import pytest

from control.configuration import parse
from wire.places import Places

pytestmark = pytest.mark.unit

PLACES = Places(Path("/run/x"), Path("/var/lib/x"), "x")


def test_defaults() -> None:
    configuration = parse([], PLACES)
    assert configuration.manifests == Path("/var/lib/x/control/manifests")
    assert list(map(str, configuration.listeners)) == ["[::]:15012"]
    assert configuration.certificate_listeners == ()
    assert list(map(str, configuration.service_ranges)) == ["10.96.0.0/16", "fd00:96::/112"]
    assert configuration.workload_ttl_s == 86400


def test_flags() -> None:
    addresses = ["10.0.0.1", "[fd00::1]:99", "10.0.0.2:0", "fd00::2"]
    flags = [word for address in addresses for word in ("--listen", address)]
    configuration = parse([*flags, "--service-cidr", "10.0.0.0/24", "--workload-ttl", "90m"], PLACES)
    assert list(map(str, configuration.service_ranges)) == ["10.0.0.0/24"]
    assert list(map(str, configuration.listeners)) == ["10.0.0.1:15012", "[fd00::1]:99", "10.0.0.2:0", "[fd00::2]:15012"]
    assert configuration.workload_ttl_s == 5400
    assert (configuration.cluster_domain, parse(["--cluster-domain", "K8s.Example."], PLACES).cluster_domain) == (
        "cluster.local",
        "k8s.example",
    )


def test_tokens_are_signed_by_the_clusters_usual_issuer_unless_told_otherwise() -> None:
    assert parse([], PLACES).account_issuer == "https://kubernetes.default.svc.cluster.local"
    domain = ["--cluster-domain", "k8s.example"]
    assert parse(domain, PLACES).account_issuer == "https://kubernetes.default.svc.k8s.example"
    assert parse([*domain, "--service-account-issuer", "https://a.example"], PLACES).account_issuer == "https://a.example"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60", 60), ("60s", 60), ("1m", 60), ("90m", 5400), ("24h", 86400), ("90d", 90 * 86400), ("7776000", 7776000)],
)
def test_certificates_live_as_long_as_is_said(text: str, seconds: int) -> None:
    assert parse(["--workload-ttl", text], PLACES).workload_ttl_s == seconds


def test_the_edges_of_what_may_be_said() -> None:
    flags = [
        "--listen",
        "[fd00::1]",
        "--listen",
        "10.0.0.1:65535",
        "--service-cidr",
        "10.1.0.0/16",
        "--service-cidr",
        "fd00::/112",
    ]
    configuration = parse([*flags, "--trust-domain", "shop.example"], PLACES)
    assert list(map(str, configuration.listeners)) == ["[fd00::1]:15012", "10.0.0.1:65535"]
    assert list(map(str, configuration.service_ranges)) == ["10.1.0.0/16", "fd00::/112"]
    assert configuration.trust_domain == "shop.example"


@pytest.mark.parametrize(
    "text",
    [
        "--listen here",
        "--listen 10.0.0.1:65536",
        "--listen 10.0.0.1:-1",
        "--service-cidr 10.0.0.1/24",
        "--service-cidr 240.240.7.0/24",
        "--service-cidr 2001::/16",
        "--workload-ttl 59",
        "--workload-ttl 7776001s",
        "--workload-ttl 6٣٠",
        "--workload-ttl 91d",
        "--workload-ttl 5.5m",
        "--workload-ttl h",
        "--trust-domain spiffe://x",
        "--trust-domain-alias a/b",
        "--cluster-domain a_b",
    ],
)
def test_wrong_flags_end_with_a_usage_message(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(text.split(), PLACES)
    assert text.split()[1] in capsys.readouterr().err
