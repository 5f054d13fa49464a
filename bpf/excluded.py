"""The typed view of the maps that say what is excluded from capture: of each pod, and of all pods of the node."""

from collections import defaultdict
from ipaddress import IPv6Network, ip_network

from bpf.layout import EVERY_PORT, EXCLUDED_INBOUND, EXCLUDED_OUTBOUND, AddressBytes, ExcludedPort, ExcludedRange, pack_address
from bpf.libbpf import Map
from mesh.exclusions import Exclusions
from mesh.workload import Network

NODE = 0
"""Stands where a pod has its netns cookie: what is excluded for every pod of the node."""
_HEAD_BITS = 96  # cookie and family, before the address
_MAPPED_BITS = 96  # ::ffff:0:0/96, before an IPv4 address
_ONE = (1).to_bytes(4, "little")


class ExcludedMaps:
    """`excluded_ports` and `excluded_ranges`."""

    def __init__(self, ports: Map, ranges: Map) -> None:
        self._ports = ports
        self._ranges = ranges

    def write(self, cookie: int, exclusions: Exclusions) -> None:
        """Have just these excluded for a pod, or for NODE. What goes is removed first: in between less is excluded, not more.

        Raises: OSError with E2BIG when a map is full.
        """
        ports, ranges = _port_keys(cookie, exclusions), _range_keys(cookie, exclusions)
        for table, wanted, present in (
            (self._ports, ports, self._ports_of(cookie)),
            (self._ranges, ranges, self._ranges_of(cookie)),
        ):
            for key in present - wanted:
                table.delete(key)
            for key in wanted - present:
                table.put(key, _ONE)

    def read(self) -> dict[int, Exclusions]:
        """All that is excluded, by cookie."""
        ports: defaultdict[int, list[ExcludedPort]] = defaultdict(list)
        ranges: defaultdict[int, list[Network]] = defaultdict(list)
        for raw in self._ports.keys():  # noqa: SIM118
            port = ExcludedPort.from_buffer_copy(raw)
            ports[port.netns].append(port)
        for raw in self._ranges.keys():  # noqa: SIM118
            entry = ExcludedRange.from_buffer_copy(raw)
            ranges[_cookie_of(entry)].append(_network_of(entry))
        return {cookie: _exclusions_of(ports[cookie], ranges[cookie]) for cookie in {*ports, *ranges}}

    def _ports_of(self, cookie: int) -> set[bytes]:
        return {raw for raw in self._ports.keys() if ExcludedPort.from_buffer_copy(raw).netns == cookie}  # noqa: SIM118

    def _ranges_of(self, cookie: int) -> set[bytes]:
        return {raw for raw in self._ranges.keys() if _cookie_of(ExcludedRange.from_buffer_copy(raw)) == cookie}  # noqa: SIM118


def _port_keys(cookie: int, exclusions: Exclusions) -> set[bytes]:
    inbound = [*exclusions.inbound_ports, *([EVERY_PORT] if exclusions.all_inbound else [])]
    return {
        *(bytes(ExcludedPort(cookie, port, EXCLUDED_OUTBOUND)) for port in exclusions.outbound_ports),
        *(bytes(ExcludedPort(cookie, port, EXCLUDED_INBOUND)) for port in inbound),
    }


def _range_keys(cookie: int, exclusions: Exclusions) -> set[bytes]:
    return {bytes(_range_key(cookie, network)) for network in exclusions.outbound_ranges}


def _range_key(cookie: int, network: Network) -> ExcludedRange:
    is_ip4 = network.version == 4
    bits = _HEAD_BITS + (_MAPPED_BITS if is_ip4 else 0) + network.prefixlen
    key = ExcludedRange(bits=bits, is_ip4=is_ip4, address=AddressBytes.from_buffer_copy(pack_address(network.network_address)))
    key.netns[0], key.netns[1] = cookie & 0xFFFFFFFF, cookie >> 32
    return key


def _cookie_of(entry: ExcludedRange) -> int:
    return int(entry.netns[0]) | int(entry.netns[1]) << 32


def _network_of(entry: ExcludedRange) -> Network:
    raw = bytes(entry.address)
    bits = entry.bits - _HEAD_BITS
    return ip_network((raw[12:], bits - _MAPPED_BITS)) if entry.is_ip4 else IPv6Network((raw, bits))


def _exclusions_of(ports: list[ExcludedPort], ranges: list[Network]) -> Exclusions:
    inbound = {one.port for one in ports if one.direction == EXCLUDED_INBOUND}
    outbound = {one.port for one in ports if one.direction == EXCLUDED_OUTBOUND}
    return Exclusions(
        tuple(sorted(outbound)),
        tuple(sorted(ranges, key=lambda one: (one.version, one))),
        tuple(sorted(inbound - {EVERY_PORT})),
        EVERY_PORT in inbound,
    )
