"""Variables that are almost settings are named; those that Kubernetes sets for Services are not, and are no settings either."""

import pytest

from ztunnel.config import read_config
from ztunnel.spelling import is_service_link, misspelt

pytestmark = pytest.mark.unit

LINKS = {
    "WEFT_SERVICE_HOST": "10.0.0.7",
    "WEFT_SERVICE_PORT": "15012",
    "WEFT_SERVICE_PORT_GRPC_XDS": "15012",
    "WEFT_PORT": "tcp://10.0.0.7:15012",
    "WEFT_PORT_15012_TCP": "tcp://10.0.0.7:15012",
    "WEFT_PORT_15012_TCP_PROTO": "tcp",
    "WEFT_PORT_15012_TCP_PORT": "15012",
    "WEFT_PORT_15012_TCP_ADDR": "10.0.0.7",
}
"""Of a Service named `weft`, as the kubelet names them."""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WEFT_CONNECTION_PER_POD", "WEFT_CONNECTIONS_PER_POD"),
        ("WEFT_RESOLVE_CONF", "WEFT_RESOLV_CONF"),
        ("XDS_ADRESS", "XDS_ADDRESS"),
        ("TURST_DOMAIN", "TRUST_DOMAIN"),
        ("PREFERRED_SERVICE_NAMESPACE", "PREFERED_SERVICE_NAMESPACE"),
    ],
)
def test_a_misspelt_setting_is_named_with_the_nearest(name: str, meant: str) -> None:
    assert list(misspelt({name: "1", "PATH": "/bin", "TRUST_DOMAIN": "x"})) == [(name, meant)]


def test_whatever_begins_as_ours_is_named() -> None:
    assert [name for name, near in misspelt({"WEFT_X": "", "WEFT_PORT": "80"}) if near] == ["WEFT_PORT", "WEFT_X"]


@pytest.mark.parametrize(
    "name", ["HOSTNAME", "POD_IP", "RUST_BACKTRACE", "CLUSTER_NAME", "HTTP_PROXY", "ISTIO_META_DNS_CAPTUR", "XDS_HEADER_X"]
)
def test_what_others_call_their_own_is_not(name: str) -> None:
    assert list(misspelt({name: "1"})) == []


def test_settings_of_other_processes_are_not() -> None:
    assert list(misspelt({"WEFT_EXCLUDE_INBOUND_PORTS": "9100", "WEFT_LAB_IMAGE": "/i", "WEFT_PREFIX": "w"})) == []


def test_what_kubernetes_tells_of_a_service_is_nobodys_mistake() -> None:
    assert list(misspelt(LINKS)) == [] and all(is_service_link(name, LINKS) for name in LINKS)
    of_two = LINKS | {name.replace("WEFT", "WEFT_CONTROL"): value for name, value in LINKS.items()}
    assert list(misspelt(of_two)) == []


def test_a_service_named_as_a_setting_begins_does_not_set_it() -> None:
    link = {"STATS_SERVICE_HOST": "10.0.0.9", "STATS_SERVICE_PORT": "80", "STATS_PORT": "tcp://10.0.0.9:80"}
    assert read_config(["--node", "n1"], link, 1).metrics_port == 15020
    assert read_config(["--node", "n1"], link | {"STATS_PORT": "80"}, 1).metrics_port == 80
    with pytest.raises(ValueError, match="STATS_PORT='tcp://"):
        read_config(["--node", "n1"], {"STATS_PORT": "tcp://10.0.0.9:80"}, 1)
