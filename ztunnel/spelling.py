"""Names of variables: those that are settings, those that are almost, and those that Kubernetes sets unasked. Pure.

A setting whose name is misspelt would be ignored without a word. What Kubernetes tells of a Service (`X_SERVICE_HOST`, `X_PORT`
and so on) is nobody's setting, whatever the Service is called.
"""

import re
from collections.abc import Iterator, Mapping

_SETTINGS = """
    NODE_NAME WEFT_RUN_DIR WEFT_STATE_DIR WEFT_PREFIX INPOD_UDS PROXY_MODE PROXY_WORKLOAD_INFO POD_NAME POD_NAMESPACE
    SERVICE_ACCOUNT INSTANCE_IP NETWORK CLUSTER_DOMAIN CLUSTER_ID PROXY_CONFIG KUBERNETES_SERVICE_HOST
    ZTUNNEL_WORKER_THREADS ZTUNNEL_RESOURCE_CPU_LIMIT ZTUNNEL_CPU_LIMIT ZTUNNEL_RESOURCE_CPU_REQUEST
    XDS_ADDRESS CA_ADDRESS XDS_ROOT_CA CA_ROOT_CA AUTH_TOKEN PROV_CERT ALT_XDS_HOSTNAME ALT_CA_HOSTNAME XDS_ON_DEMAND
    LOCAL_XDS_PATH LOCAL_XDS CA_PROVIDER SPIRE_ADMIN_SOCKET SPIFFE_ENDPOINT_SOCKET FAKE_CA SECRET_TTL
    TRUST_DOMAIN TRUST_DOMAIN_ALIASES CRL_PATH TLS12_ENABLED COMPLIANCE_POLICY
    TERMINATION_GRACE_PERIOD_SECONDS CONNECTION_TERMINATION_DEADLINE ENABLE_ORIG_SRC ENABLE_RESPONSE_BAGGAGE
    LOCALHOST_APP_TUNNEL ENABLE_PROXY UNSTABLE_ENABLE_SOCKS5 INPOD_ENABLED INPOD_PORT_REUSE PACKET_MARK IPV6_ENABLED
    ADMIN_PORT STATS_PORT READINESS_PORT PREFERED_SERVICE_NAMESPACE WEFT_RESOLV_CONF CONNECT_TIMEOUT WORKLOAD_TIMEOUT
    POOL_UNUSED_RELEASE_TIMEOUT POOL_MAX_STREAMS_PER_CONNECTION HTTP2_STREAM_WINDOW_SIZE HTTP2_CONNECTION_WINDOW_SIZE
    HTTP2_FRAME_SIZE KEEPALIVE_ENABLED KEEPALIVE_TIME KEEPALIVE_INTERVAL KEEPALIVE_RETRIES USER_TIMEOUT_ENABLED
    ENDPOINT_ATTEMPTS OUTLIER_FAILURES WEFT_VERIFIED_CERTIFICATES WEFT_QUESTIONS_PER_POD WEFT_OFFENDER_PAUSE
    WEFT_WORKER_PATIENCE
    WEFT_CONNECTIONS_PER_POD WEFT_STREAMS_PER_POD WEFT_HANDSHAKES_PER_POD WEFT_BUFFERED_BYTES_PER_POD
    WEFT_CONNECTIONS_PER_NODE WEFT_STREAMS_PER_NODE WEFT_HANDSHAKES_PER_NODE WEFT_BUFFERED_BYTES_PER_NODE
    RUST_LOG LOG_FORMAT AUTHZ_POLICY_INFO_LOGGING
"""
SETTINGS = frozenset(_SETTINGS.split())
"""All variables that the proxy reads, but for those whose names are half the user's."""
_OTHERS = (
    "WEFT_EXCLUDE_OUTBOUND_PORTS",
    "WEFT_EXCLUDE_OUTBOUND_RANGES",
    "WEFT_EXCLUDE_INBOUND_PORTS",
    "WEFT_CLUSTER_DOMAIN",
    "WEFT_LAB_IMAGE",
    "WEFT_DEBUG",
)
"""Of weft's other processes, which a lab gives to all."""
_FREE = ("ISTIO_META_", "ISTIO_METAJSON_", "XDS_HEADER_", "CA_HEADER_")
"""The rest of such a name is the user's."""
_OURS = "WEFT_"
_LIKE, _ANY = 0.8, 0.0
"""How much two names must have in common: one of anybody's with a setting; one of ours, which is a mistake in any case."""
_LINK = re.compile(r"(.+?)_(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|(PORT)|PORT_\d+_[A-Z]+(?:_(?:PROTO|PORT|ADDR))?)")


def is_service_link(name: str, environment: Mapping[str, str]) -> bool:
    """Whether Kubernetes tells of a Service by it, as of one named `weft` by WEFT_PORT=tcp://10.0.0.1:80."""
    found = _LINK.fullmatch(name)
    if found is None or f"{found[1]}_SERVICE_HOST" not in environment:
        return False
    return name not in SETTINGS if found[2] is None else "://" in environment[name]


def misspelt(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables that no process of weft reads though their names say so, each with the setting that was meant, most likely."""
    for name in sorted(environment.keys() - SETTINGS.union(_OTHERS)):
        if name.startswith(_FREE) or is_service_link(name, environment):
            continue
        if near := _nearest(name, _ANY if name.startswith(_OURS) else _LIKE):
            yield name, near


def _nearest(name: str, least: float) -> str:
    from difflib import get_close_matches  # only here: the proxy's start does not wait for it

    return next(iter(get_close_matches(name, SETTINGS, 1, least)), "")
