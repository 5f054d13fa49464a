"""One end of one application connection: written where it is carried, read by whoever counts, logs and shows connections."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

from mesh.identity import Identity

if TYPE_CHECKING:  # a proxy that starts listens before it knows of it (ztunnel.front)
    from ztunnel.baggage import Described

IPAddress = IPv4Address | IPv6Address
Direction = Literal["inbound", "outbound"]
Protocol = Literal["TCP", "HBONE", "DOUBLEHBONE"]
"""DOUBLEHBONE: a tunnel in a tunnel, to another network through its gateway."""
Hop = Literal["", "waypoint", "gateway"]
Flag = Literal[
    "-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR", "CERT_REVOKED"
]
"""Istio's response_flags."""


@dataclass(slots=True)
class ConnectionRecord:
    """One end of one application connection, as this proxy sees it. Workloads by xDS uid, services by key."""

    number: int
    """Unique in this worker."""
    pod_uid: str
    direction: Direction
    protocol: Protocol
    source: tuple[IPAddress, int]
    destination: tuple[IPAddress, int]
    """What is dialled (outbound) or was dialled (inbound): keeps :15008 for HBONE."""
    hbone_destination: str = ""
    """CONNECT target, `ip:port` or `hostname:port`; empty for TCP."""
    original_destination: tuple[IPAddress, int] | None = None
    """What the application dialled (outbound), before services and waypoints."""
    forwarded_host: str = ""
    """Hostname of the service that the client's proxy says its application dialled (inbound), where this pod serves it."""
    source_workload: str = ""
    source_identity: Identity | None = None
    """Proved by mutual TLS (or our own, outbound over HBONE); None for plain text."""
    source_described: "Described | None" = None
    """What the peer says of itself, where no lookup by its address can tell."""
    destination_workload: str = ""
    destination_identity: Identity | None = None
    destination_described: "Described | None" = None
    """What answers behind a gateway, by its own words."""
    hop: Hop = ""
    """What `destination` is (outbound), where it is not the destination itself."""
    destination_service: str = ""
    opened_unix_ns: int = 0
    duration_ns: int = 0
    bytes_sent: int = 0
    """From the local workload's viewpoint: outbound client->server, inbound server->client."""
    bytes_received: int = 0
    flag: Flag = "-"
    error: str = ""
    """Empty: ended well."""
    policy: str = ""
    """Key of the policy that allowed or denied; empty where a default did."""
    asked_policies: tuple[str, ...] = ()
    """Where no ALLOW policy allowed: the keys of the first few that were asked."""


names_of: Callable[[ConnectionRecord], tuple[object, ...]] = attrgetter(
    "direction",
    "protocol",
    "source_workload",
    "source_identity",
    "source_described",
    "destination_workload",
    "destination_identity",
    "destination_described",
    "destination_service",
    "hop",
)
"""Who talks to whom: with the flag, all that decides by which series a connection is counted."""
place_of: Callable[[ConnectionRecord], tuple[object, ...]] = attrgetter(
    "pod_uid", "destination", "original_destination", "forwarded_host", "hbone_destination", "policy", "asked_policies"
)
"""Where to, and who allowed it: with the names, all that does not differ for each connection that is open."""
