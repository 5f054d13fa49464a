"""The bench's own objects are valid manifests, and its Envoys' configuration is the peer it claims to be."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bench import ztunnel_pair
from bench.envoy_pair import configurations, make_certificates
from bench.key_exchange import group_of
from bench.pair import Ends
from bench.topology import MESH, NODES, PODS, deny_policy, manifests
from mesh.manifests import AuthorizationPolicy, Namespace, Node, Pod, is_enrolled, parse
from ztunnel.openssl_conf import openssl_conf

pytestmark = pytest.mark.unit
_ENDS = Ends(Path("/a"), Path("/b"), 9001, ("10.0.0.2", 9002), 9000)


def test_manifests_are_valid_and_the_same_pods_are_there_twice() -> None:
    found = parse({"bench.yaml": manifests("print()"), "deny.yaml": deny_policy()})
    assert found.problems == []
    assert {node.name for node in found.of(Node)} == set(NODES)
    namespaces = {namespace.name: namespace for namespace in found.of(Namespace)}
    pods = found.of(Pod)
    assert {f"{pod.namespace}/{pod.name}" for pod in pods} == {place.key for place in PODS}
    for pod in pods:
        assert is_enrolled(pod, namespaces[pod.namespace]) == (pod.namespace == MESH)


def test_a_policy_decides_about_every_connection_of_the_client() -> None:
    (policy,) = parse({"bench.yaml": manifests("print()")}).of(AuthorizationPolicy)
    assert (policy.metadata.namespace, policy.selector, policy.action) == (MESH, None, "ALLOW")
    (denied,) = parse({"deny.yaml": deny_policy()}).of(AuthorizationPolicy)
    assert policy.rules == denied.rules, "of the client, and of nobody else"


def test_the_policy_forbids_the_client_alone() -> None:
    policy = yaml.safe_load(deny_policy())
    assert policy["spec"]["rules"][0]["from"][0]["source"]["principals"] == [f"cluster.local/ns/{MESH}/sa/client"]


def _find(value: Any, key: str) -> list[Any]:
    """Everything that is called `key`, however deep."""
    if isinstance(value, dict):
        return [found for name, one in value.items() for found in ([one] if name == key else []) + _find(one, key)]
    return [found for one in value for found in _find(one, key)] if isinstance(value, list) else []


@pytest.mark.parametrize("mode", ["tls", "hbone"])
def test_envoys_speak_tls_13_both_ways_and_reach_each_other(mode: Any) -> None:
    client, server = configurations(mode, Path("/certificates"), _ENDS, "X25519")
    for side in (client, server):
        (parameters,) = _find(side, "tls_params")
        assert parameters.pop("ecdh_curves") == ["X25519"]
        assert set(parameters.values()) == {"TLSv1_3"}
        assert all(limit["max_connections"] > 100_000 for limits in _find(side, "thresholds") for limit in limits)
    assert _find(server, "require_client_certificate") == [True]
    tunnel = {"address": "10.0.0.2", "port_value": 9002}
    assert tunnel in _find(client["static_resources"]["clusters"], "socket_address")
    assert tunnel in _find(server["static_resources"]["listeners"], "socket_address")
    assert bool(_find(client, "tunneling_config")) == bool(_find(server, "connect_config")) == (mode == "hbone")
    assert (["h2"] in _find(client, "alpn_protocols")) == (mode == "hbone")
    assert _find(client, "max_session_keys") == ([0] if mode == "hbone" else [])
    assert bool(_find(client, "shared_with_upstream")) == (mode == "hbone")


def test_ztunnels_know_each_other_and_are_told_nothing_else(tmp_path: Path) -> None:
    client, server = (ztunnel_pair.Member("ns", name, f"10.0.0.{last}", tmp_path) for name, last in (("client", 1), ("far", 2)))
    mesh = yaml.safe_load(ztunnel_pair.mesh_file((client, server)))
    assert [one["workloadIps"] for one in mesh["workloads"]] == [["10.0.0.1"], ["10.0.0.2"]]
    assert {one["protocol"] for one in mesh["workloads"]} == {"HBONE"}
    told = ztunnel_pair.environment(tmp_path / "mesh.yaml", client, 2, "X25519")
    assert "COMPLIANCE_POLICY" not in told
    assert ztunnel_pair.environment(tmp_path / "mesh.yaml", client, 2, "X25519MLKEM768") == told | {"COMPLIANCE_POLICY": "pqc"}
    assert told["PROXY_WORKLOAD_INFO"] == "ns/client/client" and told["ZTUNNEL_WORKER_THREADS"] == "2"
    assert "ip daddr 10.0.0.2 tcp dport 9000 redirect to :15001" in ztunnel_pair.redirect("10.0.0.2", 9000)


def test_all_use_the_group_that_wefts_openssl_prefers() -> None:
    assert group_of("OpenSSL 3.0.19 27 Jan 2026") == "X25519"
    assert {group_of(f"OpenSSL {version} 1 Jan 2026") for version in ("3.5.0", "3.10.1", "4.0.0")} == {"X25519MLKEM768"}
    for number in ((3, 0, 19), (3, 5, 0)):
        preferred = re.search(r"Groups = \*?(\w+)", openssl_conf(number, pqc=False))
        assert preferred and preferred[1] == group_of(f"OpenSSL {'.'.join(map(str, number))} 1 Jan 2026")


def test_ztunnel_is_measured_where_a_binary_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZTUNNEL_BIN", raising=False)
    assert ztunnel_pair.ztunnel_binary() is None
    monkeypatch.setenv("ZTUNNEL_BIN", "/usr/bin/true")
    assert ztunnel_pair.ztunnel_binary() == Path("/usr/bin/true").resolve()
    monkeypatch.setenv("ZTUNNEL_BIN", str(tmp_path / "missing"))
    with pytest.raises(RuntimeError, match="no program to run"):
        ztunnel_pair.ztunnel_binary()


def test_certificates_are_p256_and_the_key_is_roots(tmp_path: Path) -> None:
    make_certificates(tmp_path, "10.0.0.2")
    leaf = x509.load_pem_x509_certificate((tmp_path / "leaf.pem").read_bytes())
    root = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    leaf.verify_directly_issued_by(root)
    assert (tmp_path / "leaf.key").stat().st_mode & 0o777 == 0o600
