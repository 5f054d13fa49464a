"""The Python twin of redirect.h: numbers, reasons and the layout of every map.

tests/bpf/test_layout.py compares the two. Addresses travel as 16 bytes in network byte order, IPv4 as ::ffff:a.b.c.d.
"""

import ctypes as ct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address

from bpf.libbpf import MapType
from mesh.workload import Address

PORT_OUTBOUND = 15001
PORT_INBOUND = 15006
PORT_HBONE = 15008
PORT_DNS = 15053
PORT_NAMESERVER = 53
MARK_MASK = 0xFFF
MARK_PROXY = 0x539
MARK_DELIVER = 0x111
EXCLUDED_OUTBOUND = 1
EXCLUDED_INBOUND = 2
EVERY_PORT = 0
EXCLUDED_RANGE_BITS = 224
POD_CAPACITY = 1024
ADDRESS_CAPACITY = 4096
PROXY_CAPACITY = 16
HANDSHAKE_CAPACITY = 32768
POD_HANDSHAKES = 4096
EXCLUDED_PORT_CAPACITY = 16384
EXCLUDED_RANGE_CAPACITY = 16384
EVENT_BYTES = 262144
EVENTS_PER_SECOND = 1000

_NO_PREALLOC = 1  # demanded: sk_storage lives in the sockets, and a trie grows


class Role(IntEnum):
    """What a tagged socket is."""

    PROXY = 1
    CLIENT = 2
    ACCEPTED = 3
    HOST = 4
    DNS = 5


class PodFlag(IntFlag):
    """What the programs do for a pod."""

    CAPTURE = 1
    DNS = 2


class Reason(IntEnum):
    """Why a connection was refused or let past; what is counted."""

    HOST = 0
    NO_LISTENER = 1
    NO_POD = 2
    DIRECT = 3
    NO_ORIGIN = 4
    FULL = 5
    BYPASS_FULL = 6
    ESCAPE = 7
    NO_ADDRESS = 8
    NO_STORAGE = 9
    NO_MARK = 10
    NO_STEER = 11
    EXCLUDED = 12
    CAPTURED = 13
    STEERED = 14
    DELIVERED = 15
    OWN = 16
    LISTENING = 17
    MPTCP = 18
    EVENTS_LOST = 19
    EVENTS_LIMITED = 20
    STRAY = 21
    DNS = 22


class AddressBytes(ct.Structure):
    """struct address."""

    _fields_ = (("words", ct.c_uint32 * 4),)


class Endpoint(ct.Structure):
    """struct endpoint."""

    _fields_ = (("address", AddressBytes), ("port", ct.c_uint32))


class Settings(ct.Structure):
    """struct settings."""

    _fields_ = (("node_netns", ct.c_uint64), ("pods_cgroup", ct.c_uint64))


class Pod(ct.Structure):
    """struct pod."""

    _fields_ = (
        ("ip4", AddressBytes),
        ("ip6", AddressBytes),
        ("flags", ct.c_uint32),
        ("pad", ct.c_uint32),
        ("uid", ct.c_char * 64),
    )


class ExcludedPort(ct.Structure):
    """struct excluded_port."""

    _fields_ = (("netns", ct.c_uint64), ("port", ct.c_uint32), ("direction", ct.c_uint32))


class ExcludedRange(ct.Structure):
    """struct excluded_range."""

    _fields_ = (("bits", ct.c_uint32), ("netns", ct.c_uint32 * 2), ("is_ip4", ct.c_uint32), ("address", AddressBytes))


class Usage(ct.Structure):
    """struct usage."""

    _fields_ = (("live4", ct.c_uint64), ("live6", ct.c_uint64), ("handshakes", ct.c_uint64))


class ListenerKey(ct.Structure):
    """struct listener_key."""

    _fields_ = (("netns", ct.c_uint64), ("port", ct.c_uint32), ("pad", ct.c_uint32))


class LocalKey(ct.Structure):
    """struct local_key."""

    _fields_ = (("netns", ct.c_uint64), ("local", Endpoint), ("pad", ct.c_uint32))


class Origin(ct.Structure):
    """struct origin."""

    _fields_ = (("client", ct.c_uint64), ("cgroup", ct.c_uint64), ("destination", Endpoint), ("pad", ct.c_uint32))


class FlowKey(ct.Structure):
    """struct flow."""

    _fields_ = (("source", Endpoint), ("destination", Endpoint))


class Tag(ct.Structure):
    """struct tag."""

    _fields_ = (
        ("netns", ct.c_uint64),
        ("cgroup", ct.c_uint64),
        ("destination", Endpoint),
        ("role", ct.c_uint32),
        ("traces", ct.c_uint32),
        ("pad", ct.c_uint32),
    )


class EventRecord(ct.Structure):
    """struct event."""

    _fields_ = (
        ("time", ct.c_uint64),
        ("netns", ct.c_uint64),
        ("cgroup", ct.c_uint64),
        ("flow", FlowKey),
        ("reason", ct.c_uint32),
        ("pad", ct.c_uint32),
    )


class Budget(ct.Structure):
    """struct budget."""

    _fields_ = (("second", ct.c_uint64), ("spent", ct.c_uint64))


Layout = type[ct.Structure] | type[ct.c_uint32] | type[ct.c_uint64] | None


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map as it must be; another one under its name is of another version and is replaced."""

    name: str
    type: MapType
    key: Layout
    value: Layout
    capacity: int
    flags: int = 0
    written_by_agent: bool = False
    """What is in it moves into a map of another capacity; the programs' own entries come and go while they are copied."""
    counts: tuple[str, ...] = ()
    """Maps of whose entries it keeps the number: it begins anew with each of them."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of key and value; a ring buffer has neither."""
        return (ct.sizeof(self.key) if self.key else 0, ct.sizeof(self.value) if self.value else 0)


MAPS = (
    MapSpec("settings", MapType.ARRAY, ct.c_uint32, Settings, 1, written_by_agent=True),
    MapSpec("proxies", MapType.HASH, ct.c_uint64, ct.c_uint32, PROXY_CAPACITY, written_by_agent=True),
    MapSpec("pods", MapType.HASH, ct.c_uint64, Pod, POD_CAPACITY, written_by_agent=True),
    MapSpec("addresses", MapType.HASH, AddressBytes, ct.c_uint64, ADDRESS_CAPACITY, written_by_agent=True),
    MapSpec("usage", MapType.HASH, ct.c_uint64, Usage, POD_CAPACITY, counts=("origins", "sockets")),
    MapSpec("origins", MapType.HASH, LocalKey, Origin, HANDSHAKE_CAPACITY),
    MapSpec("bypass", MapType.HASH, FlowKey, ct.c_uint64, HANDSHAKE_CAPACITY),
    MapSpec("excluded_ports", MapType.HASH, ExcludedPort, ct.c_uint32, EXCLUDED_PORT_CAPACITY, written_by_agent=True),
    MapSpec("excluded_ranges", MapType.LPM_TRIE, ExcludedRange, ct.c_uint32, EXCLUDED_RANGE_CAPACITY, _NO_PREALLOC, True),
    MapSpec("counters", MapType.PERCPU_ARRAY, ct.c_uint32, ct.c_uint64, len(Reason)),
    MapSpec("budget", MapType.PERCPU_ARRAY, ct.c_uint32, Budget, 1),
    MapSpec("listeners", MapType.SOCKHASH, ListenerKey, ct.c_uint64, ADDRESS_CAPACITY),
    MapSpec("sockets", MapType.SK_STORAGE, ct.c_uint32, Tag, 0, _NO_PREALLOC),
    MapSpec("events", MapType.RINGBUF, None, None, EVENT_BYTES),
)


def pack_address(address: Address) -> bytes:
    """An address as the maps hold it."""
    if isinstance(address, IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def unpack_address(raw: bytes) -> Address | None:
    """The address that 16 bytes mean; None for all zeros, which stand for "not known"."""
    if not any(raw):
        return None
    address = IPv6Address(raw)
    return address.ipv4_mapped or address
