"""Addresses of ServiceEntries: those that hosts are given which have none, and those that no entry may claim. Pure.

An entry's addresses are believed as a Service's are. One that claimed a Service's address would lead that one's clients
elsewhere, past its waypoint too; one that claimed a pod's, the clients of the pod.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network

from control.vips import Allocation, Claim, allocate
from mesh.manifests import Node, Object, Problem, ServiceEntry
from mesh.workload import Address, Network

ENTRY_RANGES: tuple[Network, ...] = (ip_network("240.240.0.0/16"), ip_network("2001:2::/48"))
"""Out of which hosts are given addresses: Istio's own, which nobody routes."""


def vip_name(namespace: str, host: str) -> str:
    """Under which a host's addresses are remembered; no Service is called so."""
    return f"{namespace}//{host}"


def allocate_entries(
    entries: Iterable[ServiceEntry], ranges: Sequence[Network], held: Mapping[str, tuple[Address, ...]]
) -> tuple[Allocation, list[Problem]]:
    """Give addresses to the hosts that need some, as long as there are any; then see that no entry names one of these."""
    entries = list(entries)
    room = min(one.num_addresses for one in ranges) - 2
    claims: list[Claim] = []
    problems = []
    for one in entries:
        wanted = [
            Claim(vip_name(one.namespace, host), (4, 6)) for host in one.hosts if one.is_told and one.gets_addresses(host)
        ]
        if len(claims) + len(wanted) > room:
            spaces = " and ".join(map(str, ranges))
            problems.append(
                _refuse(one, f"all addresses of {spaces} are given to hosts of ServiceEntries: write some of its own")
            )
        else:
            claims += wanted
    made = allocate(claims, ranges, held)
    owners = {ip_network(one): name for name, several in made.addresses.items() for one in several}
    for one in entries:
        for address in one.addresses:
            if one.is_told and address in owners:
                host = owners[address].replace("//", "/")
                problems.append(_refuse(one, f"{address.network_address} is given to host {host}: choose another"))
    return made, problems


def claimed_addresses(objects: Iterable[Object], service_ranges: Sequence[Network]) -> Iterator[Problem]:
    """Addresses that entries claim and that are of Services or pods; and warnings about pods that may have those of Services.

    A range that holds more than the service ranges takes nothing of theirs, as a Service's own address counts before it; and an
    entry without endpoints of its own leads to whoever has the address.
    """
    known = list(objects)
    pods = _Disjoint((cidr, one.title) for one in known if isinstance(one, Node) for cidr in one.pod_cidrs)
    for one in known:
        if isinstance(one, Node):
            yield from _both(one, service_ranges)
        if not isinstance(one, ServiceEntry) or not one.is_told:
            continue
        for address in one.addresses:
            if (found := next((whole for whole in service_ranges if _within(address, whole)), None)) is not None:
                yield _refuse(one, f"{address} is in the service range {found}, whose addresses are of Services alone")
            elif one.resolution != "NONE" and (node := pods.overlapping(address)):
                yield _refuse(
                    one, f"{address} holds addresses of pods, of {node}: they would be reached at its endpoints instead"
                )


def _both(one: Node, service_ranges: Sequence[Network]) -> Iterator[Problem]:
    for cidr in one.pod_cidrs:
        for whole in service_ranges:
            if cidr.version == whole.version and cidr.overlaps(whole):
                reason = f"{cidr} overlaps the service range {whole}: a pod may get a Service's clients: choose another"
                yield Problem("", 0, one.title, "spec.podCIDRs", reason, True)


def _within(part: Network, whole: Network) -> bool:
    return part.version == whole.version and part[0] in whole and part[-1] in whole


def _refuse(one: ServiceEntry, reason: str) -> Problem:
    return Problem("", 0, one.title, "spec.addresses", reason)


class _Disjoint:
    """Ranges that have no address in common, each with its owner's name."""

    def __init__(self, ranges: Iterable[tuple[Network, str]]) -> None:
        self._ranges = sorted((one.version, int(one[0]), int(one[-1]), owner) for one, owner in ranges)

    def overlapping(self, asked: Network) -> str:
        """Whose range has one of these addresses; empty: nobody's."""
        last = bisect_right(self._ranges, (asked.version, int(asked[-1]) + 1)) - 1
        if last < 0:
            return ""
        version, _, end, owner = self._ranges[last]
        return owner if version == asked.version and end >= int(asked[0]) else ""
