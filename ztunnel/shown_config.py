"""The configuration as the config dump shows it: under weft's names, and under those of Istio's ztunnel, with its shapes.

Of further headers only the names, of a token at most its file: no credentials.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mesh.identity import Identity
from wire.grpc_tls import Endpoint
from ztunnel.channel import HBONE, INBOUND, OUTBOUND, PORTS, SOCKS
from ztunnel.config import Config
from ztunnel.dns_config import DNS_PORT
from ztunnel.nameservers import Nameservers, read_search

JSON = dict[str, Any]


def dump_config(config: Config) -> JSON:
    """All of it, in camel case."""
    return {**_ours(config), **_proxy(config), **_listeners(config), **_peers(config), **_resolver(config)}


def _ours(config: Config) -> JSON:
    aliases = sorted(config.trust_domain_aliases)
    shown = (
        asdict(replace(config, local_mesh=None, local_mesh_file=None))
        | {"trust_domain_aliases": aliases, "local_mesh_file": config.local_mesh_file.path if config.local_mesh_file else None}
        | {"xds": _endpoint_shown(config.xds), "ca": _endpoint_shown(config.ca)}
    )
    return {_camel(name): _plain(value) for name, value in shown.items()} | {"nodeMetadata": dict(config.node_metadata)}


def _proxy(config: Config) -> JSON:
    """What it does, for whom, and how: Istio's names."""
    tuning = config.tuning
    dedicated = config.dedicated_to
    own = _workload(config.pod_namespace, config.pod_name, config.service_account) if config.service_account else None
    return {
        "proxy": config.proxy,
        "proxyMode": "Shared" if config.impersonates else "Dedicated",
        "proxyWorkloadInformation": _workload(*dedicated) if dedicated else None,
        "localNode": config.node,
        "ztunnelWorkload": own,
        "ztunnelIdentity": str(Identity(config.trust_domain, config.pod_namespace, config.service_account)) if own else None,
        "numWorkerThreads": config.workers,
        "windowSize": tuning.sizes.stream_window,
        "connectionWindowSize": tuning.sizes.connection_window,
        "frameSize": tuning.sizes.frame,
        "poolMaxStreamsPerConn": tuning.pool_streams,
        "poolUnusedReleaseTimeout": _duration(tuning.pool_idle_s),
        "selfTerminationDeadline": _duration(config.drain_s),
        "socketConfig": {
            "keepaliveTime": _duration(tuning.keepalive_s),
            "keepaliveInterval": _duration(tuning.keepalive_interval_s),
            "keepaliveRetries": tuning.keepalive_probes,
            "keepaliveEnabled": bool(tuning.keepalive_s),
            "userTimeoutEnabled": bool(tuning.user_timeout_s),
        },
        "requireOriginalSource": config.keep_source_address,
        "packetMark": config.packet_mark or None,
        "localhostAppTunnel": config.localhost_app_tunnel,
        "enableEnhancedBaggage": config.enhanced_baggage,
        "ipv6Enabled": config.ipv6,
        "inpodUds": str(config.zds_socket),
        "inpodPortReuse": config.port_reuse,
        "crlPath": str(config.crl) if config.crl else None,
    }


def _listeners(config: Config) -> JSON:
    wildcard = "[::]" if config.ipv6 else "0.0.0.0"
    return {
        "adminAddr": {"Localhost": [config.ipv6, config.admin_port]},
        "statsAddr": {"SocketAddr": f"{wildcard}:{config.metrics_port}"},
        "readinessAddr": {"SocketAddr": f"{wildcard}:{config.readiness_port}"},
        "inboundAddr": f"{wildcard}:{HBONE}",
        "inboundPlaintextAddr": f"{wildcard}:{INBOUND}",
        "outboundAddr": f"{wildcard}:{OUTBOUND}",
        "socks5Addr": f"127.0.0.1:{SOCKS}" if config.socks5 else None,
        "dnsProxy": bool(config.dns_places),
        "dnsProxyAddr": _dns_address(config),
        "illegalPorts": [*PORTS, SOCKS] if config.socks5 else [*PORTS],
        "fakeSelfInbound": False,  # a switch of its tests: listeners are where they are said to be
    }


def _peers(config: Config) -> JSON:
    """Whom it asks, and what it says of itself."""
    xds, ca = config.xds, config.ca
    return {
        "xdsAddress": f"https://{xds.address}" if xds else None,
        "xdsRootCert": _root(xds) if xds else None,
        "altXdsHostname": (xds.server_name or None) if xds else None,
        "xdsHeaders": _headers(xds.headers) if xds else [],
        "xdsOnDemand": config.on_demand,
        "caAddress": None if config.fake_ca else f"https://{ca.address}",
        "caRootCert": _root(ca),
        "altCaHostname": ca.server_name or None,
        "caHeaders": _headers(ca.headers),
        "fakeCa": config.fake_ca,
        "secretTtl": _duration(config.secret_ttl_s),
        "proxyMetadata": dict(config.node_metadata),
    }


def _resolver(config: Config) -> JSON:
    return {
        "preferedServiceNamespace": config.preferred_service_namespace or None,
        "dnsResolverCfg": {
            "domain": None,
            "search": list(read_search(config.resolv_conf)),
            "name_servers": [{"ip": str(server)} for server in Nameservers(config.resolv_conf).current(0.0)],
        },
    }


def _dns_address(config: Config) -> JSON:
    if len(config.dns_places) == 1 and not str(config.node_metadata.get("DNS_PROXY_ADDR", "localhost")).startswith("localhost"):
        host, port = config.dns_places[0]
        return {"SocketAddr": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}
    return {"Localhost": [config.ipv6, config.dns_places[0][1] if config.dns_places else DNS_PORT]}


def _workload(namespace: str, name: str, service_account: str) -> JSON:
    return {"name": name, "namespace": namespace, "serviceAccount": service_account}


def _duration(seconds: float) -> JSON:
    whole, rest = divmod(round(seconds * 10**9), 10**9)
    return {"secs": whole, "nanos": rest}


def _root(endpoint: Endpoint) -> Any:
    if endpoint.root is None:
        return "Default"
    return {"File": str(endpoint.root)} if isinstance(endpoint.root, Path) else "Static"


def _headers(headers: Mapping[str, str]) -> list[list[str]]:
    return [[name, "hidden"] for name in sorted(headers)]


def _endpoint_shown(endpoint: Endpoint | None) -> JSON | None:
    if endpoint is None:
        return None
    root = "SYSTEM" if endpoint.root is None else endpoint.root
    token = endpoint.token if isinstance(endpoint.token, Path | None) else "inline"
    hidden = {"root": root if isinstance(root, Path | str) else "inline", "token": token, "headers": sorted(endpoint.headers)}
    return asdict(endpoint) | hidden


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_camel(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    return str(value) if isinstance(value, Path) else value
