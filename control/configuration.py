"""How control is started: its flags, as one value."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from control.authority import MAX_LIFETIME_S
from control.entry_addresses import ENTRY_RANGES
from control.service_accounts import ACCOUNT, usual_issuer
from mesh.domains import CLUSTER_DOMAIN, TRUST_DOMAIN, read_cluster_domain
from mesh.identity import read_aliases
from mesh.workload import Network
from wire.places import Places

XDS_PORT = 15012
SERVICE_RANGES = ("10.96.0.0/16", "fd00:96::/112")


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP address to serve on."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """The flags of one control plane."""

    manifests: Path
    """A folder, or one file (which is then only read)."""
    listeners: tuple[Listener, ...]
    certificate_listeners: tuple[Listener, ...]
    service_ranges: tuple[Network, ...]
    trust_domain: str
    trust_domain_aliases: frozenset[str]
    cluster_domain: str
    root_namespace: str
    waypoint_policies: bool
    cluster: str
    workload_ttl_s: int
    account_keys: Path | None
    """Of Kubernetes; None: its tokens are not accepted."""
    account_issuer: str
    account: str
    """NAMESPACE/NAME of the nodes' own pods."""


def parse(arguments: Sequence[str], places: Places) -> Configuration:
    """Read the command line. Ends the process with a usage message where it is wrong."""
    flags = _parser(places.control_state / "manifests").parse_args(arguments)
    return Configuration(
        manifests=flags.manifests,
        listeners=tuple(flags.listen or [Listener(ip_address("::"), XDS_PORT)]),
        certificate_listeners=tuple(flags.listen_client_certificate),
        service_ranges=tuple(flags.service_cidr or map(ip_network, SERVICE_RANGES)),
        trust_domain=flags.trust_domain,
        trust_domain_aliases=frozenset(flags.trust_domain_alias),
        cluster_domain=flags.cluster_domain,
        root_namespace=flags.root_namespace,
        waypoint_policies=flags.waypoint_policies,
        cluster=flags.cluster,
        workload_ttl_s=flags.workload_ttl,
        account_keys=flags.service_account_keys,
        account_issuer=flags.service_account_issuer or usual_issuer(flags.cluster_domain),
        account=flags.service_account,
    )


def _parser(manifests: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m control", description="weft-control: manifests in, delta xDS and certificates out."
    )
    parser.add_argument("--manifests", type=Path, default=manifests, help=f"folder or file of manifests (default {manifests})")
    parser.add_argument(
        "--listen", type=_listener, action="append", help=f"ADDR[:PORT] for node tokens, repeatable (default [::]:{XDS_PORT})"
    )
    parser.add_argument(
        "--listen-client-certificate",
        type=_listener,
        action="append",
        default=[],
        help="ADDR:PORT for certificates of nodes and workloads instead of tokens, repeatable (default none)",
    )
    parser.add_argument(
        "--service-cidr",
        type=_range,
        action="append",
        help=f"range of service addresses, one per IP version (default {' and '.join(SERVICE_RANGES)})",
    )
    parser.add_argument("--trust-domain", type=_trust_domain, default=TRUST_DOMAIN, help=f"of the identities ({TRUST_DOMAIN})")
    parser.add_argument(
        "--trust-domain-alias",
        type=_trust_domain,
        action="append",
        default=[],
        help="a further trust domain of this mesh, repeatable: policies that name one mean all, nodes keep their certificates",
    )
    parser.add_argument(
        "--cluster-domain",
        type=_domain,
        default=CLUSTER_DOMAIN,
        help=f"the cluster's in DNS, of services' names; ztunnel's CLUSTER_DOMAIN says the same ({CLUSTER_DOMAIN})",
    )
    parser.add_argument("--root-namespace", default="istio-system", help="whose policies hold everywhere (istio-system)")
    parser.add_argument(
        "--waypoint-policies",
        action="store_true",
        help="who has a waypoint is reached from it alone, or by whom an AuthorizationPolicy allows (default: by everybody)",
    )
    parser.add_argument(
        "--cluster", default="Kubernetes", help="first part of every workload's uid; the clusterid header (Kubernetes)"
    )
    parser.add_argument("--workload-ttl", type=_duration, default=86400, help="of certificates: 90m, 24h, or seconds (24h)")
    parser.add_argument(
        "--service-account-keys",
        type=Path,
        help="JSON Web Key Set of a Kubernetes cluster: tokens of its service account are accepted from nodes (default none)",
    )
    parser.add_argument("--service-account-issuer", help=f"who signs them (default {usual_issuer('CLUSTER_DOMAIN')})")
    parser.add_argument("--service-account", default=ACCOUNT, help=f"NAMESPACE/NAME of nodes' pods (default {ACCOUNT})")
    return parser


def _listener(text: str) -> Listener:
    host, port = text, str(XDS_PORT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        number = int(port)
        if not 0 <= number <= 65535:
            raise ValueError
        return Listener(ip_address(host), number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no ADDR:PORT, such as 172.30.0.1:15012 or [::]:15012") from None


def _range(text: str) -> Network:
    try:
        found = ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no CIDR range: {error}") from None
    for one in ENTRY_RANGES:
        if found.version == one.version and found.overlaps(one):
            raise argparse.ArgumentTypeError(
                f"{text!r} overlaps {one}, which hosts of ServiceEntries get addresses of: choose another"
            )
    return found


def _trust_domain(text: str) -> str:
    try:
        (domain,) = read_aliases([text])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return domain


def _domain(text: str) -> str:
    try:
        return read_cluster_domain(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _duration(text: str) -> int:
    factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 1)
    digits = text[:-1] if text[-1:] in "smhd" else text
    if not digits.isascii() or not digits.isdigit() or not 60 <= int(digits) * factor <= MAX_LIFETIME_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration from 1m to 90d, such as 90m or 24h")
    return int(digits) * factor
