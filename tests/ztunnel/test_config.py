"""Configuration: what the flags and variables mean, and that a wrong one is named with its mend."""

import json
from pathlib import Path

import pytest

from mesh.local_mesh import LocalMesh
from ztunnel import control_plane
from ztunnel.config import Config, drain_deadline, read_config
from ztunnel.frames import Sizes
from ztunnel.shown_config import dump_config
from ztunnel.tuning import Tuning, read_tuning
from ztunnel.variables import duration

pytestmark = pytest.mark.unit


PLACES = {"WEFT_RUN_DIR": "/run/w", "WEFT_STATE_DIR": "/var/lib/w", "WEFT_PREFIX": "w"}


def read(flags: str = "--node n1", cores: int = 4, **environment: str) -> Config:
    return read_config(flags.split(), PLACES | environment, cores)


def test_tuning_is_istios_unless_it_is_set() -> None:
    assert read_tuning({}) == Tuning()
    environment = {
        "CONNECT_TIMEOUT": "1500ms",
        "POOL_UNUSED_RELEASE_TIMEOUT": "1m",
        "POOL_MAX_STREAMS_PER_CONNECTION": "7",
        "KEEPALIVE_TIME": "30s",
        "KEEPALIVE_INTERVAL": "10s",
        "KEEPALIVE_RETRIES": "3",
        "USER_TIMEOUT_ENABLED": "true",
        "ENDPOINT_ATTEMPTS": "1",
        "OUTLIER_FAILURES": "0",
        "WEFT_VERIFIED_CERTIFICATES": "0",
        "HTTP2_STREAM_WINDOW_SIZE": "65535",
        "HTTP2_CONNECTION_WINDOW_SIZE": "2147483647",
        "HTTP2_FRAME_SIZE": "16384",
    }
    tuning = read_tuning(environment)
    assert (tuning.connect_timeout_s, tuning.pool_idle_s, tuning.pool_streams) == (1.5, 60.0, 7)
    assert (tuning.keepalive_s, tuning.keepalive_interval_s, tuning.keepalive_probes, tuning.user_timeout_s) == (30, 10, 3, 60)
    assert (tuning.endpoint_attempts, tuning.outlier_failures, tuning.verified_certificates) == (1, 0, 0)
    assert tuning.sizes == Sizes(65535, 2**31 - 1, 16384)
    assert read_tuning({"CONNECT_TIMEOUT": "2m"}).making_s > 3 * 120, "each endpoint has its time, however long"
    assert read_tuning({"KEEPALIVE_ENABLED": "false"}).keepalive_s == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONNECT_TIMEOUT", "0s"),
        ("CONNECT_TIMEOUT", "soon"),
        ("KEEPALIVE_RETRIES", "0"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "65536"),
        ("HTTP2_STREAM_WINDOW_SIZE", "65534"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "2147483648"),
        ("HTTP2_FRAME_SIZE", "16383"),
        ("HTTP2_FRAME_SIZE", "16777216"),
    ],
)
def test_a_bad_tuning_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        read_tuning({name: value})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1h30m", 5400), ("1h 30m", 5400), ("500ms", 0.5), ("90", 90), ("1d", 86_400), ("1 Day", 86_400),
     ("2w", 1_209_600), ("1.5h", 5400), ("1mon", 2_592_000), ("250us", 0.00025), ("3MIN", 180), (" 5s ", 5)],
)  # fmt: skip
def test_durations_are_written_as_for_istios_ztunnel(text: str, seconds: float) -> None:
    assert duration("X", text) == pytest.approx(seconds)


def test_a_node_name_fills_all() -> None:
    config = read("--node n1 --control 10.0.0.1")
    folder = Path("/run/w/nodes/n1")
    assert config.zds_socket == folder / "ztunnel.sock" and config.admin_socket == folder / "admin.sock"
    assert config.state == Path("/var/lib/w/nodes/n1") and config.installation == "w"
    assert config.xds == config.ca
    assert (config.xds.address, config.xds.root, config.xds.token) == (
        "10.0.0.1:15012", folder / "root-cert.pem", folder / "token",
    )  # fmt: skip
    assert (config.workers, config.secret_ttl_s, config.drain_s, config.packet_mark) == (4, 86_400, 5.0, 0x539)


def test_what_a_setting_says_counts_and_what_is_empty_is_the_default() -> None:
    said = {"": 0.5, "1500ms": 1.5, "0s": 0.0}
    assert {text: read(WEFT_OFFENDER_PAUSE=text).offender_pause_s for text in said} == said
    ports = read(ADMIN_PORT="65535", STATS_PORT="0")
    assert (ports.admin_port, ports.metrics_port, ports.readiness_port) == (65535, 0, 15021)


@pytest.mark.parametrize("missing", ["POD_NAME", "POD_NAMESPACE"])
def test_a_pod_that_is_not_said_has_no_service_account(missing: str) -> None:
    own = {"POD_NAME": "ztunnel-x", "POD_NAMESPACE": "weft", "SERVICE_ACCOUNT": "ztunnel"}
    assert read(**own).service_account == "ztunnel" and read(**(own | {missing: ""})).service_account == ""


def test_dns_is_served_on_both_loopbacks_unless_it_is_turned_off() -> None:
    both = [("127.0.0.1", 15053), ("::1", 15053)]
    for environment, expected in [
        ({}, both),
        ({"ISTIO_META_DNS_CAPTURE": "True"}, both),
        ({"ISTIO_META_DNS_CAPTURE": "false"}, []),
        ({"ISTIO_META_DNS_CAPTURE": ""}, []),
        ({"IPV6_ENABLED": "false"}, both[:1]),
        ({"ISTIO_META_DNS_PROXY_ADDR": "localhost:53"}, [("127.0.0.1", 53), ("::1", 53)]),
        ({"ISTIO_META_DNS_PROXY_ADDR": "[::1]:5353"}, [("::1", 5353)]),
        ({"ISTIO_META_DNS_PROXY_ADDR": "127.0.0.9:53", "IPV6_ENABLED": "false"}, [("127.0.0.9", 53)]),
    ]:
        config = read(**environment)
        assert list(config.dns_places) == expected
    for wrong in ("not-an-address", "127.0.0.1", "127.0.0.1:0", ":53", "localhost:x", "::1"):
        with pytest.raises(ValueError, match=r"^ISTIO_META_DNS_PROXY_ADDR='.*': not an address: write localhost:15053"):
            read(ISTIO_META_DNS_PROXY_ADDR=wrong)
    assert dump_config(read())["dnsPlaces"]
    config = read(CLUSTER_DOMAIN="Example.Org.", PREFERED_SERVICE_NAMESPACE="shared", WEFT_RESOLV_CONF="/r")
    assert (config.cluster_domain, config.preferred_service_namespace) == ("example.org", "shared")
    assert config.resolv_conf == "/r" and read().resolv_conf == "/etc/resolv.conf" and config.ipv6


def test_the_variables_of_istios_ztunnel_win() -> None:
    config = read(
        "--control 10.0.0.1",
        NODE_NAME="nz",
        XDS_ADDRESS="https://istiod:99",
        CA_ADDRESS="ca",
        CA_ROOT_CA="/ca.pem",
        ALT_CA_HOSTNAME="istiod.istio-system.svc",
        XDS_HEADER_X_Tenant="blue",
        AUTH_TOKEN="/token",
        INPOD_UDS="/zds",
        CLUSTER_ID="c1",
        ISTIO_META_CLUSTER_ID="c2",
        ISTIO_META_J="text",
        ISTIO_METAJSON_J='{"x":[1]}',
        SECRET_TTL="1h30m",
        ENABLE_ORIG_SRC="False",
        LOG_FORMAT="json",
        ZTUNNEL_WORKER_THREADS="50%",
        TERMINATION_GRACE_PERIOD_SECONDS="30",
    )
    assert (config.node, config.xds.address, config.ca.address) == ("nz", "istiod:99", "ca:15012")
    assert (config.ca.root, config.ca.server_name) == (Path("/ca.pem"), "istiod.istio-system.svc")
    assert config.xds.headers == {"x_tenant": "blue"} and config.ca.headers == {}
    assert config.zds_socket == Path("/zds") and config.xds.token == Path("/token")
    assert config.cluster_id == config.xds.cluster_id == "c2"
    assert config.node_metadata == {"CLUSTER_ID": "c2", "J": {"x": [1]}}
    assert (config.secret_ttl_s, config.keep_source_address, config.log_json, config.workers) == (5400, False, True, 2)
    assert config.drain_s == 25.0


def test_a_spire_agent_in_the_place_of_the_ca() -> None:
    both = read(CA_PROVIDER="spire", SPIRE_ADMIN_SOCKET="unix:///run/spire/admin.sock", SPIFFE_ENDPOINT_SOCKET="/run/w.sock")
    assert (both.spire_admin, both.spiffe_endpoint) == ("unix:///run/spire/admin.sock", "")
    assert read(CA_PROVIDER="spire", SPIFFE_ENDPOINT_SOCKET="/run/w.sock").spiffe_endpoint == "unix:///run/w.sock"
    assert read(SPIFFE_ENDPOINT_SOCKET="/run/w.sock").spiffe_endpoint == "", "set for others on many nodes"


def test_what_istios_chart_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control_plane, "ISTIO_ZDS", tmp_path / "istio" / "ztunnel.sock")
    chart = {
        "CA_ADDRESS": "istiod.istio-system.svc:15012", "XDS_ADDRESS": "istiod.istio-system.svc:15012", "RUST_LOG": "info",
        "RUST_BACKTRACE": "1", "ISTIO_META_CLUSTER_ID": "Kubernetes", "INPOD_ENABLED": "true", "NODE_NAME": "n1",
        "TERMINATION_GRACE_PERIOD_SECONDS": "30", "POD_NAME": "ztunnel-x", "POD_NAMESPACE": "istio-system",
        "INSTANCE_IP": "10.0.0.9", "SERVICE_ACCOUNT": "ztunnel", "ISTIO_META_ENABLE_HBONE": "true",
        "ZTUNNEL_CPU_LIMIT": "2", "CRL_PATH": "/var/run/secrets/istio/crl/ca-crl.pem",
    }  # fmt: skip
    config = read("proxy ztunnel", 8, **chart)
    assert (config.node, config.workers, config.drain_s, config.service_account) == ("n1", 2, 25.0, "ztunnel")
    assert config.zds_socket == Path("/run/w/nodes/n1/ztunnel.sock")
    (tmp_path / "istio").mkdir()
    assert read("proxy ztunnel", **chart).zds_socket == tmp_path / "istio" / "ztunnel.sock"
    assert read("proxy ztunnel", **chart, INPOD_UDS="/zds").zds_socket == Path("/zds")
    (tmp_path / "nodes" / "n1").mkdir(parents=True)
    here = read("proxy", **chart, WEFT_RUN_DIR=str(tmp_path))
    assert here.zds_socket == tmp_path / "nodes" / "n1" / "ztunnel.sock", "weft's own agent is here"


@pytest.mark.parametrize(
    ("variables", "workers"),
    [
        ({}, 8),
        ({"ZTUNNEL_CPU_LIMIT": "6"}, 6),
        ({"ZTUNNEL_CPU_LIMIT": "99"}, 8),
        ({"ZTUNNEL_CPU_LIMIT": "6", "ZTUNNEL_RESOURCE_CPU_LIMIT": "3"}, 3),
        ({"ZTUNNEL_CPU_LIMIT": "6", "ZTUNNEL_RESOURCE_CPU_LIMIT": ""}, 6),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "500m"}, 1),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "2500m"}, 3),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "1.5"}, 2),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "0"}, 1),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "5", "ZTUNNEL_WORKER_THREADS": "50%"}, 3),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "5", "ZTUNNEL_WORKER_THREADS": "1%"}, 1),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "5", "ZTUNNEL_WORKER_THREADS": "20.0%"}, 1),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "5", "ZTUNNEL_WORKER_THREADS": "20.1%"}, 2),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "5", "ZTUNNEL_WORKER_THREADS": "7"}, 7),
    ],
)
def test_workers_are_as_many_as_kubernetes_grants_cores(variables: dict[str, str], workers: int) -> None:
    assert read("--node n1", 8, **variables).workers == workers


def test_trust_domain_aliases() -> None:
    config = read(TRUST_DOMAIN_ALIASES="old.domain, older")
    assert config.trust_domain_aliases == {"old.domain", "older"}
    assert json.dumps(dump_config(config)["trustDomainAliases"]) == '["old.domain", "older"]'
    assert read().trust_domain_aliases == frozenset()


def test_tls_settings() -> None:
    config = read(CRL_PATH="/crl.pem", COMPLIANCE_POLICY="pqc")
    assert (config.crl, config.pqc, read(TLS12_ENABLED="true").tls12) == (Path("/crl.pem"), True, True)
    assert (read().crl, read().pqc, read().tls12) == (None, False, False)


def test_how_long_a_worker_may_hang() -> None:
    patience = [read(WEFT_WORKER_PATIENCE=text).worker_patience_s for text in ("", "15s", "24h", "0s")]
    assert patience == [30.0, 15.0, 86_400.0, 0.0]


def test_as_many_workers_as_are_asked_for() -> None:
    asked = [read(f"--node n1 --workers {text}").workers for text in ("0", "1", "256", "25%", "26%", "0%")]
    assert asked == [4, 1, 256, 1, 2, 1] and read("--node n1 --workers 100%", 200).workers == 200
    with pytest.raises(ValueError, match=r"--workers '257': not a number of workers: write N up to 256"):
        read("--node n1 --workers 257")


def test_what_marks_its_own_packets() -> None:
    assert (read().packet_mark, read(PROXY_MODE="dedicated").packet_mark) == (0x539, 0), "none where nothing is captured"
    assert read(PROXY_MODE="dedicated", PACKET_MARK="4294967295").packet_mark == 0xFFFFFFFF


def test_who_this_proxy_is_where_nobody_says_so() -> None:
    config = read()
    assert (config.pod_name, config.pod_namespace, config.service_account) == ("ztunnel-n1", "istio-system", "")
    assert (config.cluster_id, config.network, config.trust_domain) == ("Kubernetes", "", "cluster.local")
    assert (config.instance_ip, config.log_json, config.log_level) == ("1.1.1.1", False, "info")
    said = read(POD_NAME="z", POD_NAMESPACE="mesh", INSTANCE_IP="fd00::9", CLUSTER_ID="c1", NETWORK="n", TRUST_DOMAIN="T.org")
    assert (said.pod_name, said.pod_namespace, said.instance_ip) == ("z", "mesh", "fd00::9")
    assert (said.cluster_id, said.network, said.trust_domain) == ("c1", "n", "T.org")


def test_what_can_be_turned_off() -> None:
    off = read(ENABLE_RESPONSE_BAGGAGE="false", LOCALHOST_APP_TUNNEL="0", IPV6_ENABLED="0", ADMIN_PORT="0", STATS_PORT="0")
    assert not (off.enhanced_baggage or off.localhost_app_tunnel or off.ipv6)
    assert (off.admin_port, off.metrics_port, off.readiness_port) == (0, 0, 15021)
    on = read(AUTHZ_POLICY_INFO_LOGGING="true", RUST_LOG="debug", READINESS_PORT="65535")
    assert on.enhanced_baggage and on.localhost_app_tunnel and on.policies_at_info and not read().policies_at_info
    assert (on.admin_port, on.metrics_port, on.readiness_port, on.log_level) == (15000, 15020, 65535, "debug")


def test_how_long_certificates_live_is_asked_for_or_left_to_the_ca() -> None:
    assert [read(SECRET_TTL=text).secret_ttl_s for text in ("", "1s", "90m", "0s")] == [86_400, 1, 5400, 0]


def test_how_the_ca_knows_this_proxy() -> None:
    config = read(PROV_CERT="/etc/certs", PROXY_MODE="dedicated")
    assert config.ca.client_folder == config.xds.client_folder == Path("/etc/certs")
    assert not config.impersonates and read().impersonates and config.dedicated_to is None
    assert read(PROXY_MODE="dedicated", PROXY_WORKLOAD_INFO="shop/web/sa").dedicated_to == ("shop", "web", "sa")
    assert read(PROXY_WORKLOAD_INFO="shop/web/sa").dedicated_to is None, "set for others"


def test_whom_to_trust_and_what_to_show_is_a_file_or_said_outright(tmp_path: Path) -> None:
    config = read(XDS_ROOT_CA="SYSTEM", CA_ROOT_CA="-----BEGIN CERTIFICATE-----\n", AUTH_TOKEN="eyJhbGciOi.J9")
    assert config.xds is not None and (config.xds.root, config.xds.token) == (None, "eyJhbGciOi.J9")
    assert config.ca.root == b"-----BEGIN CERTIFICATE-----\n"
    shown = dump_config(config)
    assert (shown["xds"]["root"], shown["ca"]["root"], shown["xds"]["token"]) == ("SYSTEM", "inline", "inline")
    assert "eyJ" not in repr(config) and "eyJ" not in str(shown), "a token is nobody's to read"
    assert read(AUTH_TOKEN=str(tmp_path / "later")).ca.token == tmp_path / "later", "a file may come later"
    usual = "eyJhbGciOi." * 80
    assert read(AUTH_TOKEN=usual).ca.token == usual, "longer than any file's name"
    assert "secret" not in repr(read(CA_HEADER_AUTHORIZATION="secret").ca)


TEST_MESH = {"FAKE_CA": "true", "XDS_ADDRESS": "", "LOCAL_XDS": "workloads: []"}


@pytest.mark.parametrize(
    ("flags", "variables", "words"),
    [
        (
            "--node n1",
            {"FAKE_CA": "true"},
            "never in a mesh with a control plane: unset FAKE_CA, or, for a test, set XDS_ADDRESS",
        ),
        ("--node n1", {"FAKE_CA": "true", "XDS_ADDRESS": ""}, "set XDS_ADDRESS='' and LOCAL_XDS_PATH"),
        ("--node n1", TEST_MESH | {"XDS_ADDRESS": "istiod"}, "never in a mesh with a control plane"),
        ("--node n1 --control c", {"FAKE_CA": "true", "LOCAL_XDS": "workloads: []"}, "never in a mesh with a control plane"),
        ("--node n1 --control c", TEST_MESH, "CA_ADDRESS is set, so there is a CA"),
        ("--node n1", TEST_MESH | {"CA_ADDRESS": "ca"}, "CA_ADDRESS is set, so there is a CA: unset FAKE_CA"),
        ("--node n1", TEST_MESH | {"CA_PROVIDER": "Citadel"}, "CA_PROVIDER is set"),
        ("--node n1", TEST_MESH | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "KUBERNETES_SERVICE_HOST is set"),
        ("--node n1", TEST_MESH | {"FAKE_CA": "yes"}, "FAKE_CA='yes': write true or false"),
    ],
)
def test_made_up_identities_are_never_turned_on_by_mistake(flags: str, variables: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        read(flags, **variables)
    assert words in str(refusal.value)


def test_made_up_identities_for_a_mesh_that_is_a_file() -> None:
    assert read(**TEST_MESH).fake_ca and not read(**TEST_MESH | {"FAKE_CA": "false"}).fake_ca and not read().fake_ca


def test_what_is_opened_in_pods() -> None:
    config = read(ENABLE_PROXY="false", INPOD_PORT_REUSE="false")
    assert (config.pod_ports, config.port_reuse, len(config.dns_places)) == ((), False, 2)
    assert read(UNSTABLE_ENABLE_SOCKS5="true").pod_ports == (15001, 15006, 15008, 15080)
    assert (read().pod_ports, read().port_reuse) == ((15001, 15006, 15008), True)
    assert read(INPOD_ENABLED="false", PROXY_MODE="dedicated", PROXY_WORKLOAD_INFO="a/b/c").dedicated_to == ("a", "b", "c")


def test_where_istios_chart_mounts_root_and_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control_plane, "ISTIO_ROOT", tmp_path / "root-cert.pem")
    monkeypatch.setattr(control_plane, "ISTIO_TOKEN", tmp_path / "istio-token")
    assert read().ca.root == Path("/run/w/nodes/n1/root-cert.pem")
    for name in ("root-cert.pem", "istio-token"):
        (tmp_path / name).touch()
    assert (read().ca.root, read().ca.token) == (tmp_path / "root-cert.pem", tmp_path / "istio-token")


def test_a_mesh_of_its_own(tmp_path: Path) -> None:
    assert read().local_mesh is None
    inline = read(LOCAL_XDS="workloads: [{name: a, namespace: b}]").local_mesh
    (tmp_path / "mesh.yaml").write_text("workloads: [{name: a, namespace: b}]")
    config = read(LOCAL_XDS_PATH=str(tmp_path / "mesh.yaml"), XDS_ADDRESS="")
    assert dump_config(config)["localMeshFile"] == str(tmp_path / "mesh.yaml")
    assert config.local_mesh == inline != LocalMesh() and dump_config(config)["localMesh"] is None
    (tmp_path / "mesh.yaml").write_text("workloads: [{name: a, namespace: b, uuid: c}]")
    for variables, words in (
        ({"LOCAL_XDS": "x", "LOCAL_XDS_PATH": "y"}, "LOCAL_XDS_PATH and LOCAL_XDS are both set: take one of them away"),
        ({"LOCAL_XDS": "x: 1"}, "LOCAL_XDS: x: no such field"),
        ({"LOCAL_XDS_PATH": "/none"}, "LOCAL_XDS_PATH='/none': No such file or directory: name a file of YAML"),
        ({"LOCAL_XDS_PATH": "/tmp"}, "LOCAL_XDS_PATH='/tmp': Is a directory: name a file of YAML"),
        ({"LOCAL_XDS_PATH": str(tmp_path / "mesh.yaml")}, "mesh.yaml: workloads[0].uuid: workload b/a has no such key: it has"),
    ):
        with pytest.raises(ValueError) as refusal:
            read(**variables)
        assert words in str(refusal.value)


def test_on_demand_goes_without_pods_dns() -> None:
    assert not read().on_demand
    assert read(XDS_ON_DEMAND="true", ISTIO_META_DNS_CAPTURE="false").on_demand


def test_no_address_is_no_control_plane() -> None:
    config = read(XDS_ADDRESS="", CA_ADDRESS="")
    assert config.xds is None
    assert config.ca.address == "localhost:15012", "of the CA: as if it were not set, for who has no use for a CA"
    assert dump_config(config)["xds"] is None


@pytest.mark.parametrize(
    ("variables", "deadline"),
    [
        ({}, 5),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": ""}, 5),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "0"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "86400"}, 86_395),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "11"}, 6),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "604800"}, 604_795),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, 9),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30", "CONNECTION_TERMINATION_DEADLINE": "500ms"}, 0.5),
    ],
)
def test_the_drain_deadline(variables: dict[str, str], deadline: float) -> None:
    assert drain_deadline(variables) == deadline


@pytest.mark.parametrize(
    ("flags", "variables", "words"),
    [
        ("", {}, "NODE_NAME is not set: give --node NAME"),
        ("--node N_1", {}, "--node 'N_1': not a node's name"),
        ("--node n1 --workers many", {}, "--workers 'many': not a number of workers: write N"),
        ("", {"NODE_NAME": "../n1"}, "NODE_NAME='../n1': not a node's name"),
        ("--node n1", {"ZTUNNEL_WORKER_THREADS": "1.5"}, "ZTUNNEL_WORKER_THREADS='1.5': not a number of workers"),
        ("--node n1", {"ZTUNNEL_WORKER_THREADS": "all"}, "ZTUNNEL_WORKER_THREADS='all': not a number of workers"),
        ("--node n1", {"WEFT_RUN_DIR": "run"}, "WEFT_RUN_DIR='run': processes start in different folders: write a whole path"),
        ("--node n1", {"WEFT_STATE_DIR": "./state"}, "WEFT_STATE_DIR='state': processes start in different folders"),
        ("--node n1", {"WEFT_PREFIX": "a b"}, "WEFT_PREFIX='a b': no name for namespaces: write up to 32 letters"),
        ("--node n1", {"WEFT_PREFIX": "../a"}, "WEFT_PREFIX='../a': no name for namespaces"),
        ("--node n1", {"INSTANCE_IP": "node-1"}, "INSTANCE_IP='node-1': not an IP address: write one like 10.0.0.1"),
        ("--node n1", {"TRUST_DOMAIN": "spiffe://x"}, "TRUST_DOMAIN='spiffe://x': not a trust domain: write letters"),
        ("--node n1", {"CLUSTER_DOMAIN": "a..b"}, "CLUSTER_DOMAIN='a..b': not a DNS domain: write one like cluster.local"),
        ("--node n1", {"STATS_PORT": "15000"}, "STATS_PORT='15000': ADMIN_PORT has that port: choose another, or 0 for none"),
        ("--node n1", {"ISTIO_META_DNS_PROXY_ADDR": "127.0.0.1:15008"}, "port 15008 is the proxy's own: choose another one"),
        ("--node n1", {"RUST_LOG": "info,dns=loud"}, "RUST_LOG='info,dns=loud': log level 'loud': write one of error"),
        ("--node n1", {"XDS_ADDRESS": "http://control:1"}, "XDS_ADDRESS='http://control:1': not an address of a TLS server"),
        (
            "--node n1",
            {"XDS_ON_DEMAND": "true"},
            "pods' DNS needs to know every service: set ISTIO_META_DNS_CAPTURE",
        ),
        ("--node n1", {"XDS_ON_DEMAND": "true", "XDS_ADDRESS": ""}, "XDS_ON_DEMAND=true: there is nobody to ask"),
        ("--node n1", {"XDS_HEADER_A B": "x"}, "XDS_HEADER_A B: 'a b' is no name of a header"),
        ("--node n1", {"CA_HEADER_A": "x\ny"}, "CA_HEADER_A: its value is no text of a header"),
        ("--node n1", {"CA_ADDRESS": "http://ca:1"}, "CA_ADDRESS='http://ca:1': not an address"),
        ("--node n1", {"SECRET_TTL": "1 fortnight"}, "SECRET_TTL='1 fortnight': not a duration: write one like 30s"),
        ("--node n1", {"SECRET_TTL": "-1s"}, "SECRET_TTL='-1s': not a duration"),
        ("--node n1", {"WEFT_WORKER_PATIENCE": "5s"}, "WEFT_WORKER_PATIENCE='5s': from 15s to 24h, or 0s for never"),
        ("--node n1", {"WEFT_WORKER_PATIENCE": "2d"}, "WEFT_WORKER_PATIENCE='2d': from 15s to 24h"),
        ("--node n1", {"SECRET_TTL": "500ms"}, "SECRET_TTL='500ms': from 1s to 10y, or 0s for what the CA gives unasked"),
        ("--node n1", {"SECRET_TTL": "11y"}, "SECRET_TTL='11y': from 1s to 10y"),
        ("--node n1", {"CONNECTION_TERMINATION_DEADLINE": "999999999999y"}, "='999999999999y': longer than 100y"),
        ("--node n1", {"SECRET_TTL": "h"}, "SECRET_TTL='h': not a duration"),
        ("--node n1", {"ENABLE_ORIG_SRC": "maybe"}, "ENABLE_ORIG_SRC='maybe': write true or false"),
        ("--node n1", {"ENABLE_PROXY": "no"}, "ENABLE_PROXY='no': write true or false"),
        ("--node n1", {"INPOD_ENABLED": "false"}, "INPOD_ENABLED='false': whose connections are served"),
        ("--node n1", {"INPOD_ENABLED": "false", "PROXY_WORKLOAD_INFO": "a/b/c"}, "set PROXY_MODE=dedicated"),
        (
            "--node n1",
            {"INPOD_ENABLED": "false", "PROXY_MODE": "dedicated"},
            "set PROXY_MODE=dedicated and PROXY_WORKLOAD_INFO",
        ),
        ("--node n1", {"ZTUNNEL_CPU_LIMIT": "half"}, "ZTUNNEL_CPU_LIMIT='half': not a quantity of CPU: write one like 2, 1.5"),
        ("--node n1", {"PACKET_MARK": "0"}, "PACKET_MARK='0': not a number from 1 to"),
        ("--node n1", {"PACKET_MARK": "4294967296"}, "PACKET_MARK='4294967296': not a number from 1 to 4294967295"),
        ("--node n1", {"WEFT_STREAMS_PER_POD": "0"}, "WEFT_STREAMS_PER_POD='0': not a number from 1 to"),
        ("--node n1", {"LOG_FORMAT": "xml"}, "LOG_FORMAT='xml': write plain or json"),
        ("--node n1", {"CA_PROVIDER": "spire"}, "CA_PROVIDER='spire': SPIRE_ADMIN_SOCKET is not set: name the SPIRE agent's"),
        (
            "--node n1",
            {"CA_PROVIDER": "spire", "SPIRE_ADMIN_SOCKET": "tcp://1.2.3.4:5"},
            "not a unix socket: write unix:///PATH",
        ),
        ("--node n1", {"TRUST_DOMAIN_ALIASES": "old,spiffe://x"}, "TRUST_DOMAIN_ALIASES: 'spiffe://x': not a trust domain"),
        (
            "--node n1",
            {"TRUST_DOMAIN_ALIASES": ",".join(map(str, range(17)))},
            "TRUST_DOMAIN_ALIASES: 17 trust domains: at most",
        ),
        ("--node n1", {"COMPLIANCE_POLICY": "fips"}, "COMPLIANCE_POLICY='fips': write pqc or leave it empty"),
        ("--node n1", {"COMPLIANCE_POLICY": "pqc", "TLS12_ENABLED": "1"}, "TLS 1.2 has no post-quantum group"),
        ("--node n1", {"PROXY_MODE": "solo"}, "PROXY_MODE='solo': write shared or dedicated"),
        (
            "--node n1",
            {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "shop/web"},
            "PROXY_WORKLOAD_INFO='shop/web': write NAMESPACE/NAME/SERVICEACCOUNT",
        ),
        ("--node n1", {"PROXY_WORKLOAD_INFO": "a/b"}, "PROXY_WORKLOAD_INFO='a/b': write NAMESPACE/NAME/SERVICEACCOUNT"),
        (
            "--node n1",
            {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "shop//sa"},
            "PROXY_WORKLOAD_INFO='shop//sa': write NAMESPACE/NAME/SERVICEACCOUNT",
        ),
        ("--node n1", {"ISTIO_METAJSON_X": "{"}, "ISTIO_METAJSON_X: not JSON"),
        ("--node n1", {"ISTIO_METAJSON_X": "[" * 100_000}, "ISTIO_METAJSON_X: not JSON"),
        ("--node n1", {"TERMINATION_GRACE_PERIOD_SECONDS": "-1"}, "TERMINATION_GRACE_PERIOD_SECONDS='-1'"),
        ("--node n1", {"TERMINATION_GRACE_PERIOD_SECONDS": "3153600001"}, "TERMINATION_GRACE_PERIOD_SECONDS='3153600001'"),
        ("--node n1", {"STATS_PORT": "65536"}, "STATS_PORT='65536'"),
        ("--node n1", {"WEFT_WORKER_PATIENCE": "14999ms"}, "WEFT_WORKER_PATIENCE='14999ms': from 15s"),
        ("--node n1", {"WEFT_WORKER_PATIENCE": "86401s"}, "WEFT_WORKER_PATIENCE='86401s': from 15s to 24h"),
    ],
)
def test_what_is_wrong_is_named(flags: str, variables: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        read(flags, **variables)
    assert words in str(refusal.value)
