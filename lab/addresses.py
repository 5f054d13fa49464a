"""Which addresses nodes and pods have: plain arithmetic over small numbers that the ledger keeps.

A node has an index (1, 2, ...), a pod a host number within its node's ranges; every address follows from these two.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network

from mesh.workload import Address, Network

Interface = IPv4Interface | IPv6Interface

UNDERLAY = (ip_network("172.30.0.0/16"), ip_network("fd00:30::/64"))
"""The fabric. Private to the lab's own namespaces: it cannot meet the host's routes."""
_GATEWAY_HOST, _CONTROL_HOST, _FIRST_NODE_HOST = 1, 2, 10
_FIRST_POD_HOST = 2  # 0 names the range, 1 is the node's bridge
MAX_NODES = 85
"""Default pod ranges are 10.1.0.0/24 to 10.85.0.0/24, well below the service range 10.96.0.0/16."""
MAX_PODS_PER_NODE = 1024
"""One bridge takes at most 1024 ports (BR_MAX_PORTS)."""


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """The addresses of one node."""

    underlay: tuple[Interface, ...]
    ranges: tuple[Network, ...]

    @property
    def bridge(self) -> tuple[Interface, ...]:
        """The bridge's addresses: the first of each range, the pods' gateways."""
        return tuple(host(network, 1) for network in self.ranges)


def host(network: Network, number: int) -> Interface:
    """Address number `number` of a range, with the range's prefix length."""
    return ip_interface(f"{network[number]}/{network.prefixlen}")


def gateway() -> tuple[Interface, ...]:
    """The fabric bridge's own addresses, every node's default gateway; what no node has, it answers as unreachable."""
    return tuple(host(network, _GATEWAY_HOST) for network in UNDERLAY)


def control() -> tuple[Interface, ...]:
    """weft-control's addresses."""
    return tuple(host(network, _CONTROL_HOST) for network in UNDERLAY)


def node_addresses(index: int, pod_cidrs: Sequence[Network]) -> NodeAddresses:
    """The addresses of node number `index`; without `pod_cidrs` its ranges follow from the index.

    Raises: ValueError for a range that is too small for a bridge and a pod.
    """
    if not 1 <= index <= MAX_NODES:
        raise ValueError(f"a lab has at most {MAX_NODES} nodes")
    ranges = tuple(pod_cidrs) or (ip_network(f"10.{index}.0.0/24"), ip_network(f"fd00:10:{index:x}::/64"))
    for network in ranges:
        if network.num_addresses < 4:
            raise ValueError(f"podCIDR {network} has no room for a gateway and a pod: make it larger")
    return NodeAddresses(tuple(host(network, _FIRST_NODE_HOST + index) for network in UNDERLAY), ranges)


def overlaps(nodes: Mapping[str, NodeAddresses]) -> list[str]:
    """A sentence for each two ranges that overlap, the fabric's own included."""
    owned: list[tuple[str, Network]] = [("the lab's underlay", network) for network in UNDERLAY]
    problems = []
    for name, addresses in sorted(nodes.items()):
        for network in addresses.ranges:
            problems += [
                f"Node {name}: podCIDR {network} overlaps {other} of {owner}"
                for owner, other in owned
                if other.version == network.version and network.overlaps(other)
            ]
            owned.append((f"Node {name}", network))
    return problems


def pod_addresses(ranges: Sequence[Network], number: int) -> tuple[Interface, ...]:
    """A pod's addresses: one of each range."""
    return tuple(host(network, number) for network in ranges)


def pick_host(pod: str, taken: Mapping[str, int], live: set[str], ranges: Sequence[Network]) -> int:
    """A host number for the pod `namespace/name`: always the same where nobody else has it.

    The number follows from the pod's name, so that a rebuilt lab has the same addresses. A number of a pod that is gone
    is kept for its return and given away only when nothing else is free.
    Raises: ValueError when the node's ranges are full.
    """
    if pod in taken:
        return taken[pod]
    room = min(MAX_PODS_PER_NODE, *(network.num_addresses - 3 for network in ranges))
    start = int.from_bytes(hashlib.sha256(pod.encode()).digest()[:8], "big")
    order = [_FIRST_POD_HOST + (start + step) % room for step in range(room)]
    kept = set(taken.values())
    in_use = {number for owner, number in taken.items() if owner in live}
    for avoid in (kept, in_use):
        for number in order:
            if number not in avoid:
                return number
    raise ValueError(f"no free address in {', '.join(map(str, ranges))}: all {room} are in use")


def family(addresses: Sequence[Interface | Address], version: int) -> Address | None:
    """The first address of one family."""
    for address in addresses:
        if address.version == version:
            return address.ip if isinstance(address, IPv4Interface | IPv6Interface) else address
    return None


def textual(addresses: Sequence[Interface]) -> list[str]:
    """Addresses as text, v4 first, as reports want them."""
    return [str(ip_address(address.ip)) for address in sorted(addresses, key=lambda one: one.version)]
