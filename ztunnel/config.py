"""What this proxy is told about itself: flags and environment become one frozen value, or a refusal that names the mend.

`--node NAME` suffices where weft's own places are used; every variable that Istio's ztunnel knows wins over them.
"""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.domains import CLUSTER_DOMAIN, TRUST_DOMAIN
from mesh.identity import read_aliases
from wire.followed_file import FollowedFile
from wire.grpc_tls import Endpoint
from wire.places import NodePlaces, Places, check_node_name
from ztunnel.certificate_settings import certificate_settings
from ztunnel.channel import PORTS, SOCKS
from ztunnel.control_plane import control_endpoint, local_mesh, node_metadata, zds_socket
from ztunnel.dns_config import dns_places
from ztunnel.limits import KINDS, NODE, POD, Limits
from ztunnel.log_levels import read_levels
from ztunnel.proxy_config import proxy_config
from ztunnel.spelling import is_service_link
from ztunnel.tuning import Tuning, read_tuning
from ztunnel.variables import address, choice, cluster_domain, duration, integer, trust_domain, truth, whole_cores

if TYPE_CHECKING:
    from mesh.local_mesh import LocalMesh

_Part = dict[str, Any]
"""Fields of the configuration that are read together."""
_MAX_WORKERS = 256
_HELP_WIDTH = 100
"""To look at the terminal, argparse imports what unpacks archives: at every start."""
_LONGEST_GRACE_S = 100 * 365 * 86_400
"""Kubernetes' own bound is further; who carries connections of days gives them days."""
_LEAST_PATIENCE_S, _MOST_PATIENCE_S = 15.0, 86_400.0


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a supervisor needs to know. Times in seconds."""

    node: str
    zds_socket: Path
    admin_socket: Path
    state: Path
    """Folder for the mesh's last known state; never keys."""
    installation: str
    """Tells the keys of several installations in one kernel apart."""
    xds: Endpoint | None
    """None: no control plane tells of the mesh."""
    on_demand: bool
    """It is asked for what is met, instead of for everything."""
    ca: Endpoint
    local_mesh: "LocalMesh | None" = field(default=None, repr=False)
    """What this node is told of the mesh by its own configuration."""
    local_mesh_file: FollowedFile | None = field(default=None, repr=False)
    """Where that is told."""
    cluster_id: str = "Kubernetes"
    network: str = ""
    trust_domain: str = TRUST_DOMAIN
    trust_domain_aliases: frozenset[str] = frozenset()
    pod_name: str = "ztunnel"
    pod_namespace: str = "istio-system"
    service_account: str = ""
    """Of the proxy's own pod; empty: that pod is not served."""
    instance_ip: str = "1.1.1.1"
    node_metadata: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    worker_patience_s: float = 30.0
    """How long a data worker may hang before it is replaced; 0: for ever."""
    secret_ttl_s: int = 86_400
    """Of certificates that are asked for; 0: as the CA thinks fit."""
    dedicated_to: tuple[str, str, str] | None = None
    """Namespace, name and service account of the one pod in whose network namespace this proxy runs; None: an agent tells."""
    impersonates: bool = True
    """Asks the CA for its pods' identities; else for its own alone."""
    spire_admin: str = ""
    """Address of a SPIRE agent's Delegated Identity API, in the CA's place."""
    spiffe_endpoint: str = ""
    """Address of a Workload API, in the CA's place."""
    fake_ca: bool = False
    """Identities are made up here, and prove nothing."""
    crl: Path | None = None
    """File of revocation lists."""
    pqc: bool = False
    """Agree on keys by the post-quantum group alone."""
    tls12: bool = False
    drain_s: float = 5.0
    node_limits: Limits = NODE
    pod_limits: Limits = POD
    offender_pause_s: float = 0.5
    keep_source_address: bool = True
    enhanced_baggage: bool = True
    localhost_app_tunnel: bool = True
    proxy: bool = True
    """Carries pods' connections; else it is only their DNS."""
    port_reuse: bool = True
    """A successor listens beside its predecessor."""
    socks5: bool = False
    """A SOCKS listener on each pod's loopback, for tests."""
    packet_mark: int = 0x539
    admin_port: int = 15000
    metrics_port: int = 15020
    readiness_port: int = 15021
    """0 in these three: not served."""
    dns_places: tuple[tuple[str, int], ...] = ()
    """Where each pod finds its DNS, on its own loopback; empty: nowhere."""
    cluster_domain: str = CLUSTER_DOMAIN
    preferred_service_namespace: str = ""
    ipv6: bool = True
    resolv_conf: str = "/etc/resolv.conf"
    tuning: Tuning = field(default_factory=Tuning)
    log_json: bool = False
    log_level: str = "info"
    policies_at_info: bool = False
    """Verdicts are logged as information."""
    proxy_args: str = ""
    """How it was started: Istio's `proxyArgs` in the config dump, which shows every field of this."""

    @property
    def pod_ports(self) -> tuple[int, ...]:
        """On which it listens in pods."""
        if not self.proxy:
            return ()
        return (*PORTS, SOCKS) if self.socks5 else PORTS


def read_config(arguments: Sequence[str], environment: Mapping[str, str], cores: int) -> Config:
    """Read flags and environment.

    Raises: ValueError naming the variable or flag, the reason and the mend. SystemExit for --help and unknown flags.
    """
    flags = _parser().parse_args(arguments)
    told = {"XDS_ADDRESS": flags.control, "CA_ADDRESS": flags.control} if flags.control else {}
    ours = {name: value for name, value in environment.items() if not is_service_link(name, environment)}
    environment = {**proxy_config(environment), **told, **ours}
    node = flags.node or environment.get("NODE_NAME", "")
    if not node:
        raise ValueError("NODE_NAME is not set: give --node NAME")
    check_node_name(node, f"--node {node!r}" if flags.node else f"NODE_NAME={node!r}")
    installation = Places.from_environment(environment)
    places = installation.node(node)
    return Config(
        node=node,
        zds_socket=zds_socket(environment, places),
        admin_socket=places.admin_socket,
        state=places.state,
        installation=installation.prefix,
        proxy_args=" ".join(arguments),
        **_mesh(environment, places),
        **_own_pod(environment, node),
        **certificate_settings(environment),
        **_processes(flags.workers, environment, cores),
        **_connections(environment),
        **_names(environment),
        **_operators(environment),
    )


def _mesh(environment: Mapping[str, str], places: NodePlaces) -> _Part:
    """Who tells of the mesh, and what this node is in it."""
    told_here, told_by = local_mesh(environment)
    cluster_id = environment.get("ISTIO_META_CLUSTER_ID") or environment.get("CLUSTER_ID") or "Kubernetes"
    return {
        "xds": control_endpoint("XDS", environment, places, cluster_id) if environment.get("XDS_ADDRESS") != "" else None,
        "ca": control_endpoint("CA", environment, places, cluster_id),
        "on_demand": _on_demand(environment),
        "local_mesh": told_here,
        "local_mesh_file": told_by,
        "cluster_id": cluster_id,
        "network": environment.get("NETWORK", ""),
        "trust_domain": trust_domain("TRUST_DOMAIN", environment, TRUST_DOMAIN),
        "trust_domain_aliases": _aliases(environment),
        "node_metadata": node_metadata(environment),
    }


def _own_pod(environment: Mapping[str, str], node: str) -> _Part:
    name, namespace = environment.get("POD_NAME"), environment.get("POD_NAMESPACE")
    return {
        "pod_name": name or f"ztunnel-{node}",
        "pod_namespace": namespace or "istio-system",
        "service_account": environment.get("SERVICE_ACCOUNT", "") if name and namespace else "",
        "instance_ip": address("INSTANCE_IP", environment, "1.1.1.1"),
    }


def _processes(flag: str | None, environment: Mapping[str, str], cores: int) -> _Part:
    return {
        "workers": _workers(flag, environment, _granted(environment, cores)),
        "worker_patience_s": _worker_patience(environment),
        "drain_s": drain_deadline(environment),
    }


def _connections(environment: Mapping[str, str]) -> _Part:
    """Whose are served, where, how many, and how."""
    dedicated, info = _dedicated(environment), _workload_info(environment)
    return {
        "dedicated_to": info if dedicated else None,
        "impersonates": not dedicated,
        "packet_mark": integer("PACKET_MARK", environment, 0 if dedicated else 0x539, 1, 0xFFFFFFFF),
        "node_limits": _limits("NODE", environment, NODE),
        "pod_limits": _limits("POD", environment, POD),
        "offender_pause_s": duration("WEFT_OFFENDER_PAUSE", environment.get("WEFT_OFFENDER_PAUSE") or "500ms"),
        "keep_source_address": truth("ENABLE_ORIG_SRC", environment, True),
        "enhanced_baggage": truth("ENABLE_RESPONSE_BAGGAGE", environment, True),
        "localhost_app_tunnel": truth("LOCALHOST_APP_TUNNEL", environment, True),
        "proxy": truth("ENABLE_PROXY", environment, True),
        "socks5": truth("UNSTABLE_ENABLE_SOCKS5", environment, False),
        "port_reuse": truth("INPOD_PORT_REUSE", environment, True),
        "tuning": read_tuning(environment),
    }


def _names(environment: Mapping[str, str]) -> _Part:
    """DNS, and what it may answer."""
    ipv6 = truth("IPV6_ENABLED", environment, True)
    return {
        "ipv6": ipv6,
        "dns_places": dns_places(node_metadata(environment), ipv6),
        "cluster_domain": cluster_domain("CLUSTER_DOMAIN", environment),
        "preferred_service_namespace": environment.get("PREFERED_SERVICE_NAMESPACE", ""),
        "resolv_conf": environment.get("WEFT_RESOLV_CONF") or "/etc/resolv.conf",
    }


def _operators(environment: Mapping[str, str]) -> _Part:
    """Where they ask, and what is logged for them."""
    admin_port, metrics_port, readiness_port = _ports(environment)
    return {
        "admin_port": admin_port,
        "metrics_port": metrics_port,
        "readiness_port": readiness_port,
        "log_json": choice("LOG_FORMAT", environment, "plain", ("plain", "json")) == "json",
        "log_level": _log_level(environment),
        "policies_at_info": truth("AUTHZ_POLICY_INFO_LOGGING", environment, False),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="weft-ztunnel",
        description="The node proxy: supervisor of its data workers.",
        formatter_class=partial(argparse.HelpFormatter, width=_HELP_WIDTH),
    )
    parser.add_argument("command", nargs="?", choices=("proxy",), help="may be said, as Istio's chart does")
    parser.add_argument("role", nargs="?", choices=("ztunnel",), help="the same")
    parser.add_argument("--node", metavar="NAME", help="this node's name (NODE_NAME)")
    parser.add_argument("--workers", metavar="N|N%", help="data workers; default: one per core (ZTUNNEL_WORKER_THREADS)")
    parser.add_argument("--control", metavar="HOST[:PORT]", help="control plane (XDS_ADDRESS and CA_ADDRESS win)")
    return parser


def _on_demand(environment: Mapping[str, str]) -> bool:
    wanted = truth("XDS_ON_DEMAND", environment, False)
    if wanted and environment.get("XDS_ADDRESS") == "":
        raise ValueError("XDS_ON_DEMAND=true: there is nobody to ask: set XDS_ADDRESS")
    if wanted and environment.get("ISTIO_META_DNS_CAPTURE", "true").lower() == "true":
        raise ValueError("XDS_ON_DEMAND=true: pods' DNS needs to know every service: set ISTIO_META_DNS_CAPTURE=false")
    return wanted


def drain_deadline(environment: Mapping[str, str]) -> float:
    """How long open connections may go on after SIGTERM: its own variable, else what Kubernetes' grace period leaves."""
    if deadline := environment.get("CONNECTION_TERMINATION_DEADLINE"):
        return duration("CONNECTION_TERMINATION_DEADLINE", deadline)
    if environment.get("TERMINATION_GRACE_PERIOD_SECONDS"):
        grace = integer("TERMINATION_GRACE_PERIOD_SECONDS", environment, 0, 0, _LONGEST_GRACE_S)
        return float(grace - 5 if grace > 10 else max(grace - 1, 1))
    return 5.0


def _dedicated(environment: Mapping[str, str]) -> bool:
    dedicated = choice("PROXY_MODE", environment, "shared", ("shared", "dedicated")) == "dedicated"
    if not truth("INPOD_ENABLED", environment, True) and not (dedicated and environment.get("PROXY_WORKLOAD_INFO")):
        raise ValueError(
            "INPOD_ENABLED='false': whose connections are served where no pod's namespace is entered: "
            "set PROXY_MODE=dedicated and PROXY_WORKLOAD_INFO, or unset INPOD_ENABLED"
        )
    return dedicated


def _worker_patience(environment: Mapping[str, str]) -> float:
    text = environment.get("WEFT_WORKER_PATIENCE") or "30s"
    patience_s = duration("WEFT_WORKER_PATIENCE", text)
    if patience_s and not _LEAST_PATIENCE_S <= patience_s <= _MOST_PATIENCE_S:
        raise ValueError(f"WEFT_WORKER_PATIENCE={text!r}: from 15s to 24h, or 0s for never")
    return patience_s


def _workload_info(environment: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Whom a dedicated proxy serves; where it is not said, whom its agent names."""
    text = environment.get("PROXY_WORKLOAD_INFO")
    if not text:
        return None
    parts = text.split("/")
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"PROXY_WORKLOAD_INFO={text!r}: write NAMESPACE/NAME/SERVICEACCOUNT")
    return parts[0], parts[1], parts[2]


def _granted(environment: Mapping[str, str], cores: int) -> int:
    """The cores that Kubernetes grants: the limit that was set; else what it names where none was, all of the node's."""
    limits = (whole_cores(name, environment) for name in ("ZTUNNEL_RESOURCE_CPU_LIMIT", "ZTUNNEL_CPU_LIMIT"))
    return min(cores, next((limit for limit in limits if limit is not None), cores))


def _workers(flag: str | None, environment: Mapping[str, str], cores: int) -> int:
    text = flag or environment.get("ZTUNNEL_WORKER_THREADS") or "0"
    share = re.fullmatch(r"(\d{1,4})((?:\.\d{1,4})?%)?", text)
    if share is None or int(share[1]) > _MAX_WORKERS:
        said = f"--workers {text!r}" if flag else f"ZTUNNEL_WORKER_THREADS={text!r}"
        raise ValueError(f"{said}: not a number of workers: write N up to {_MAX_WORKERS}, a share like 50%, or 0 for all")
    if share[2]:
        return max(math.ceil(cores * float(text[:-1]) / 100), 1)
    return int(share[1]) or cores


def _limits(holder: str, environment: Mapping[str, str], default: Limits) -> Limits:
    names = {kind: f"WEFT_{kind.upper()}_PER_{holder}" for kind in KINDS}
    return Limits(*(integer(name, environment, getattr(default, kind), 1, 1 << 40) for kind, name in names.items()))


def _ports(environment: Mapping[str, str]) -> list[int]:
    """Where operators ask: admin, metrics, readiness; 0: nowhere."""
    ports: list[int] = []
    taken: dict[int, str] = {}
    for name, default in (("ADMIN_PORT", 15000), ("STATS_PORT", 15020), ("READINESS_PORT", 15021)):
        port = integer(name, environment, default, 0, 65535)
        if port and port in taken:
            raise ValueError(f"{name}='{port}': {taken[port]} has that port: choose another, or 0 for none")
        taken[port] = name
        ports.append(port)
    return ports


def _log_level(environment: Mapping[str, str]) -> str:
    text = environment.get("RUST_LOG") or "info"
    try:
        read_levels(text)
    except ValueError as error:
        raise ValueError(f"RUST_LOG={text!r}: {error}") from None
    return text


def _aliases(environment: Mapping[str, str]) -> frozenset[str]:
    try:
        return read_aliases(environment.get("TRUST_DOMAIN_ALIASES", "").split(","))
    except ValueError as error:
        raise ValueError(f"TRUST_DOMAIN_ALIASES: {error}") from None
