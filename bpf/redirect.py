"""The typed view of the redirect: pods in and out, who the proxy is, counters and events.

Everything is pinned, so this object holds no state: any number of processes may open one, and closing it changes nothing.
No call blocks for longer than a few system calls take; none is atomic over several maps, so entries are written in the order
that fails closed (addresses and pod before the inbound link) and removed in the opposite one.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from bpf import libbpf, listeners
from bpf.events import Events
from bpf.excluded import NODE, ExcludedMaps
from bpf.layout import (
    MAPS,
    AddressBytes,
    FlowKey,
    ListenerKey,
    LocalKey,
    Pod,
    PodFlag,
    Reason,
    Settings,
    Usage,
    pack_address,
    unpack_address,
)
from bpf.loader import LOOKUP, PROGRAMS
from mesh.exclusions import NOTHING, Exclusions
from mesh.workload import Address

_UID = re.compile(r"[A-Za-z0-9_-]{1,63}")
_ONE = (1).to_bytes(4, "little")
_FIRST = (0).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class PodRedirect:
    """A pod as the kernel programs know it."""

    uid: str
    """metadata.uid; letters, digits, '-' and '_'."""
    netns_cookie: int
    addresses: tuple[Address, ...]
    """Every address of the pod but loopback; captured connections go to the first of each family that is not link-local."""
    capture: bool = True
    """False: the proxy's listeners register, nothing is captured yet."""
    exclusions: Exclusions = NOTHING
    """Of this pod alone."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What the kernel has of a pod."""

    pod: PodRedirect
    steered: bool
    """The inbound link is there and its namespace lives."""


@dataclass(frozen=True, slots=True)
class PodUsage:
    """A pod's captured connections. Each holds a local port of the pod: see `pod_network.local_ports` for their number."""

    netns_cookie: int
    live4: int
    live6: int
    handshakes: int


@dataclass(frozen=True, slots=True)
class MapFill:
    """How full a map is."""

    name: str
    used: int
    capacity: int


@dataclass(frozen=True, slots=True)
class ProgramState:
    """One program, pinned and perhaps attached."""

    name: str
    id: int
    attached: int
    """Links that live: one for a program of the node's cgroup, one per enrolled pod for `lookup`."""


class Redirect:
    """The pinned redirect below a bpffs folder (see loader.py, which puts it there)."""

    def __init__(self, bpffs: Path) -> None:
        """Open the pins. Raises: FileNotFoundError when the redirect was not loaded there."""
        self._bpffs = bpffs
        self._maps = {spec.name: libbpf.Map.pinned(bpffs / "maps" / spec.name) for spec in MAPS}
        self._excluded = ExcludedMaps(self._maps["excluded_ports"], self._maps["excluded_ranges"])

    def close(self) -> None:
        """Close the descriptors. The redirect goes on working."""
        for opened in self._maps.values():
            opened.close()

    # who is who

    def set_node(self, netns_cookie: int, pods_cgroup: int) -> None:
        """Tell the programs which namespace is the node's own, and below which cgroup (by id) all its pods run."""
        self._maps["settings"].put(_FIRST, bytes(Settings(netns_cookie, pods_cgroup)))

    def exclude(self, exclusions: Exclusions) -> None:
        """Have just these excluded from the capture of every pod of the node, beside each pod's own."""
        self._excluded.write(NODE, exclusions)

    def excluded(self) -> Exclusions:
        """What is excluded for every pod of the node."""
        return self._excluded.read().get(NODE, NOTHING)

    def add_proxy(self, cgroup_id: int) -> None:
        """Trust sockets that processes of this cgroup make from now on; an older proxy stays trusted while it drains.

        Must precede the proxy's first socket in a pod: do it before the ZDS snapshot.
        """
        self._maps["proxies"].put(_u64(cgroup_id), _ONE)

    def remove_proxy(self, cgroup_id: int) -> None:
        """Trust new sockets of this cgroup no longer."""
        self._maps["proxies"].delete(_u64(cgroup_id))

    def proxies(self) -> frozenset[int]:
        """The cgroup ids that are trusted."""
        return frozenset(_from_u64(key) for key in self._maps["proxies"].keys())  # noqa: SIM118

    # pods

    def enrol(self, pod: PodRedirect, netns_fd: int) -> None:
        """Put a pod in, or bring it up to date (addresses, capture, link). Idempotent.

        The pod's settings (`pod_network.prepare`) come first, the proxy's listeners (ZDS Add) after. A pod with running
        processes is enrolled twice: with capture=False before the ZDS Add, with capture=True after its ack, so that no
        connection is refused in between.

        Raises: ValueError for a uid or address that cannot be; OSError when the kernel refuses, E2BIG for a full map.
        """
        _check(pod)
        cookie = _u64(pod.netns_cookie)
        if self._maps["usage"].get(cookie) is None:
            self._maps["usage"].put(cookie, bytes(Usage()))
        kept = {pack_address(address) for address in pod.addresses if not address.is_link_local}
        for raw in kept:
            self._maps["addresses"].put(raw, cookie)
        self._excluded.write(pod.netns_cookie, pod.exclusions)
        self._maps["pods"].put(cookie, bytes(_pod_value(pod)))
        for raw in self._addresses_of(cookie) - kept:
            self._maps["addresses"].delete(raw)
        if pod.capture:
            self._link(pod.uid, netns_fd)

    def release(self, pod: PodRedirect) -> None:
        """Capture no new connection of a pod that is on its way out; one that is not in stays out.

        Its addresses may be another pod's already: they stay whose they are.
        """
        cookie = _u64(pod.netns_cookie)
        if self._maps["pods"].get(cookie) is not None:
            self._maps["pods"].put(cookie, bytes(_pod_value(replace(pod, capture=False))))

    def withdraw(self, uid: str, netns_cookie: int) -> None:
        """Take a pod out, with everything that belongs to it. Idempotent; its live connections stay.

        The pod's settings (`pod_network.restore`) are given back after.
        """
        if not _UID.fullmatch(uid):
            raise ValueError(f"pod uid {uid!r}: letters, digits, '-' and '_' only, at most 63")
        (self._bpffs / "links" / uid).unlink(missing_ok=True)
        cookie = _u64(netns_cookie)
        owned = self._addresses_of(cookie)
        self._maps["pods"].delete(cookie)
        for raw in owned:
            self._maps["addresses"].delete(raw)
        if netns_cookie != NODE:  # a link without a pod
            self._excluded.write(netns_cookie, NOTHING)
        for port in listeners.PORTS:
            self._maps["listeners"].delete(bytes(ListenerKey(netns_cookie, port)))
        for key in list(self._maps["origins"].keys()):
            if LocalKey.from_buffer_copy(key).netns == netns_cookie:
                self._maps["origins"].delete(key)
        for key in list(self._maps["bypass"].keys()):
            if bytes(FlowKey.from_buffer_copy(key).destination.address) in owned:
                self._maps["bypass"].delete(key)
        self._maps["usage"].delete(cookie)

    def enrolled(self) -> list[Enrolled]:
        """The pods that the kernel has, and links without a pod as pods of cookie 0 (withdraw them)."""
        addresses: dict[int, list[Address]] = {}
        for raw, owner in self._maps["addresses"].items():
            address = unpack_address(raw)
            if address is not None:
                addresses.setdefault(_from_u64(owner), []).append(address)
        links, excluded = self._live_links(), self._excluded.read()
        found = []
        for key, value in self._maps["pods"].items():
            cookie, pod = _from_u64(key), Pod.from_buffer_copy(value)
            uid = pod.uid.decode()
            first = (unpack_address(bytes(pod.ip4)), unpack_address(bytes(pod.ip6)))
            ordered = sorted(addresses.get(cookie, ()), key=lambda address: (address not in first, address.version, address))
            exclusions = replace(excluded.get(cookie, NOTHING), dns=not pod.flags & PodFlag.DNS)
            known = PodRedirect(uid, cookie, tuple(ordered), bool(pod.flags & PodFlag.CAPTURE), exclusions)
            found.append(Enrolled(known, links.pop(uid, False)))
        return found + [Enrolled(PodRedirect(uid, 0, ()), alive) for uid, alive in links.items()]

    def steered(self) -> frozenset[str]:
        """The uids of pods whose inbound program is attached."""
        return frozenset(uid for uid, attached in self._live_links().items() if attached)

    def listening(self, netns_cookie: int) -> frozenset[int]:
        """The ports (of 15001, 15006 and 15008) on which a proxy's listener is registered for a pod."""
        keys = (ListenerKey.from_buffer_copy(raw) for raw in self._maps["listeners"].keys())  # noqa: SIM118
        return frozenset(key.port for key in keys if key.netns == netns_cookie)

    def unregistered_listeners(self) -> bool:
        """Whether a pod lacks a proxy's listener on one of these ports."""
        return bool(listeners.missing(self._maps["pods"], self._maps["listeners"]))

    def register_sockets(self, processes: Iterable[int]) -> int:
        """Make known what these processes, which are proxies', have in pods and the kernel did not see begin; how many."""
        return listeners.register(self._maps, processes)

    # what happens

    def counters(self) -> dict[str, int]:
        """Totals since the maps were made, by the reason's name in lower case."""
        raw = {reason: self._maps["counters"].get(reason.to_bytes(4, "little")) or b"" for reason in Reason}
        return {
            reason.name.lower(): sum(_from_u64(value[at : at + 8]) for at in range(0, len(value), 8))
            for reason, value in raw.items()
        }

    def usage(self) -> list[PodUsage]:
        """Live captured connections of every pod."""
        found = []
        for key, value in self._maps["usage"].items():
            usage = Usage.from_buffer_copy(value)
            found.append(PodUsage(_from_u64(key), usage.live4, usage.live6, usage.handshakes))
        return found

    def fill(self) -> list[MapFill]:
        """How full every map is that can be full."""
        names = ("proxies", "pods", "addresses", "listeners", "origins", "bypass", "usage", "excluded_ports", "excluded_ranges")
        return [MapFill(name, sum(1 for _ in self._maps[name].keys()), self._maps[name].capacity) for name in names]  # noqa: SIM118

    def programs(self) -> list[ProgramState]:
        """Every program, and whether it is attached."""
        states = []
        for program in PROGRAMS:
            with libbpf.open_pin(self._bpffs / "programs" / program.name) as opened:
                number = libbpf.program_info(opened.fd).id
            attached = sum(self._live_links().values()) if program is LOOKUP else int(self._is_attached(program.name))
            states.append(ProgramState(program.name, number, attached))
        return states

    def _is_attached(self, name: str) -> bool:
        """Whether a program of the node's cgroup is: a pin outlives its link's cgroup."""
        try:
            with libbpf.open_pin(self._bpffs / "hooks" / name) as link:
                return bool(libbpf.link_info(link.fd).target.cgroup.cgroup_id)
        except FileNotFoundError:
            return False

    def open_events(self) -> Events:
        """A reader of events; there should be one at a time, because each event goes to one reader."""
        return Events(self._maps["events"].fileno())

    def _addresses_of(self, cookie: bytes) -> set[bytes]:
        return {raw for raw, owner in self._maps["addresses"].items() if owner == cookie}

    def _link(self, uid: str, netns_fd: int) -> None:
        path = self._bpffs / "links" / uid
        if path.exists():
            with libbpf.open_pin(path) as link:
                if libbpf.link_info(link.fd).target.netns.netns_ino == os.fstat(netns_fd).st_ino:
                    return
            path.unlink()
        with (
            libbpf.open_pin(self._bpffs / "programs" / LOOKUP.name) as program,
            libbpf.create_link(program.fd, netns_fd, LOOKUP.hook, f"pod {uid}") as link,
        ):
            libbpf.pin(link.fd, path)

    def _live_links(self) -> dict[str, bool]:
        found = {}
        for path in (self._bpffs / "links").iterdir():
            with libbpf.open_pin(path) as link:
                found[path.name] = libbpf.link_info(link.fd).target.netns.netns_ino != 0
        return found


def _check(pod: PodRedirect) -> None:
    if not _UID.fullmatch(pod.uid):
        raise ValueError(f"pod uid {pod.uid!r}: letters, digits, '-' and '_' only, at most 63")
    if pod.netns_cookie <= 0:
        raise ValueError(f"pod {pod.uid}: {pod.netns_cookie} is no netns cookie")
    for address in pod.addresses:
        if address.is_loopback or address.is_multicast or address.is_unspecified:
            raise ValueError(f"pod {pod.uid}: {address} cannot be a pod's address")
    if not any(not address.is_link_local for address in pod.addresses):
        raise ValueError(f"pod {pod.uid}: needs an address that is not link-local")


def _pod_value(pod: PodRedirect) -> Pod:
    flags = (PodFlag.CAPTURE if pod.capture else 0) | (0 if pod.exclusions.dns else PodFlag.DNS)
    value = Pod(flags=flags, uid=pod.uid.encode())
    value.ip4, value.ip6 = _first(pod.addresses, 4), _first(pod.addresses, 6)
    return value


def _first(addresses: Iterable[Address], version: int) -> AddressBytes:
    for address in addresses:
        if address.version == version and not address.is_link_local:
            return AddressBytes.from_buffer_copy(pack_address(address))
    return AddressBytes()


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _from_u64(raw: bytes) -> int:
    return int.from_bytes(raw, "little")
