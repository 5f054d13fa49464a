"""What is excluded from capture, by explicit wish: the annotations that users of Istio know, and the node's own lists.

A list is taken whole or not at all: one bad entry excludes nothing, so that a slip never lets out more than was meant.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_network
from typing import TypeVar

from mesh.workload import Network

OUTBOUND_PORTS = "traffic.sidecar.istio.io/excludeOutboundPorts"
OUTBOUND_RANGES = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
INBOUND_PORTS = "traffic.sidecar.istio.io/excludeInboundPorts"
ALL_INBOUND = "ambient.istio.io/bypass-inbound-capture"
DNS = "ambient.istio.io/dns-capture"
VIRTUAL_INTERFACES = "istio.io/reroute-virtual-interfaces"
"""Excludes nothing by wish: what comes in there from a virtual machine is forwarded, and no socket of the pod's sends it."""
ANNOTATIONS = (OUTBOUND_PORTS, OUTBOUND_RANGES, INBOUND_PORTS, ALL_INBOUND, DNS, VIRTUAL_INTERFACES)

MAX_ENTRIES = 64
"""Of one list."""
MAX_TEXT = 4096
"""Characters of one list."""
PROXY_PORTS = frozenset({15001, 15006, 15008, 15053})
"""The proxy's own: never excluded."""
_TRUTHS = {"true": True, "false": False, "": False}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Exclusions:
    """What a pod, or every pod of a node, has excluded. Sorted, without repetition."""

    outbound_ports: tuple[int, ...] = ()
    """Connections to these ports leave as they are, to whatever address."""
    outbound_ranges: tuple[Network, ...] = ()
    """Connections to these addresses leave as they are, to whatever port."""
    inbound_ports: tuple[int, ...] = ()
    """Connections to these ports of the pod reach its app past the proxy."""
    all_inbound: bool = False
    """Connections to whatever port of the pod but the proxy's own reach its app past the proxy."""

    dns: bool = False
    """What the pod asks of nameservers reaches them past the proxy."""

    def __bool__(self) -> bool:
        return self != NOTHING

    def lets_in(self, port: int) -> bool:
        """Whether connections to a port of the pod pass the proxy by."""
        return port not in PROXY_PORTS and (self.all_inbound or port in self.inbound_ports)

    def sentences(self) -> list[str]:
        """What is excluded, for people; empty for nothing."""
        return [
            *(f"outbound port {port}" for port in self.outbound_ports),
            *(f"outbound to {network}" for network in self.outbound_ranges),
            *(f"inbound port {port}" for port in self.inbound_ports),
            *(["all inbound ports"] if self.all_inbound else []),
            *(["DNS"] if self.dns else []),
        ]


NOTHING = Exclusions()


def read_annotations(annotations: Mapping[str, str]) -> tuple[Exclusions, tuple[str, ...]]:
    """What a pod's annotations exclude, and a sentence for each that is refused and therefore has no effect."""
    troubles: list[str] = []

    def read(name: str, reader: Callable[[str], _T], nothing: _T) -> _T:
        try:
            return reader(annotations.get(name, ""))
        except ValueError as error:
            troubles.append(f"annotation {name}: {error}; until then it excludes nothing")
            return nothing

    exclusions = Exclusions(
        read(OUTBOUND_PORTS, read_ports, ()),
        read(OUTBOUND_RANGES, read_ranges, ()),
        read(INBOUND_PORTS, read_ports, ()),
        read(ALL_INBOUND, _read_truth, False),
        read(DNS, lambda text: text != "" and not _read_truth(text), False),
    )
    if annotations.get(VIRTUAL_INTERFACES):
        troubles.append(
            f"annotation {VIRTUAL_INTERFACES}: connections are captured at the pod's own sockets: what a virtual machine in it "
            "sends passes the mesh by, in plain text; enrol workloads that run in the pod itself"
        )
    return exclusions, tuple(troubles)


def read_ports(text: str) -> tuple[int, ...]:
    """Read a list of ports, `3306,5432`; empty text is an empty list.

    Raises: ValueError with the entry, the reason and the mend.
    """
    return tuple(sorted({_port(entry) for entry in _entries(text)}))


def read_ranges(text: str) -> tuple[Network, ...]:
    """Read a list of address ranges, `10.0.0.0/8,fd00::/8`; empty text is an empty list.

    Raises: ValueError with the entry, the reason and the mend.
    """
    return tuple(sorted({_range(entry) for entry in _entries(text)}, key=lambda one: (one.version, one)))


def _entries(text: str) -> Iterable[str]:
    if len(text) > MAX_TEXT:
        raise ValueError(f"{text[:40]!r}... has {len(text)} characters: at most {MAX_TEXT} are read, write fewer entries")
    entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"{_short(text)} has {len(entries)} entries: at most {MAX_ENTRIES} are read, write fewer")
    return entries


def _port(entry: str) -> int:
    if not (entry.isascii() and entry.isdigit() and len(entry) <= 5 and 1 <= int(entry) <= 65535):
        raise ValueError(f"{_short(entry)} is not a port: write numbers from 1 to 65535, separated by commas")
    if int(entry) in PROXY_PORTS:
        raise ValueError(f"{entry} is the proxy's own port, which cannot be excluded: leave it out")
    return int(entry)


def _range(entry: str) -> Network:
    try:
        network = ip_network(entry)
    except ValueError as error:
        raise ValueError(
            f"{_short(entry)} is not a range of addresses: write ranges like 10.0.0.0/8 or fd00::/8, without bits set "
            "behind the prefix, separated by commas"
        ) from error
    if isinstance(network, IPv6Network) and (network.network_address.ipv4_mapped or network.network_address.scope_id):
        raise ValueError(f"{_short(entry)} is no plain IPv6 range: write IPv4 ranges like 10.0.0.0/8, and no zone")
    return network


def _read_truth(text: str) -> bool:
    if text not in _TRUTHS:
        raise ValueError(f'{_short(text)} is neither of two words: write "true" or "false"')
    return _TRUTHS[text]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
