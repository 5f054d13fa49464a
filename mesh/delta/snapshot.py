"""Everything of one type that a server has, and how to find it by whatever a client calls it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from mesh.delta.messages import Resource

_Place = tuple[str, IPv4Address | IPv6Address]


@lru_cache(maxsize=65536)
def _place(name: str) -> _Place | None:
    """Read `NETWORK/ADDRESS`."""
    network, slash, address = name.rpartition("/")
    try:
        return (network, ip_address(address)) if slash else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Snapshot:
    """Everything of one type that clients may have, by name. Build a new one for every state; never change one."""

    resources: Mapping[str, Resource]

    @cached_property
    def versions(self) -> dict[str, str]:
        """Name -> version, for comparing at the speed of dict views."""
        return {name: resource.version for name, resource in self.resources.items()}

    @cached_property
    def _by_alias(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, resource in self.resources.items():
            for alias in resource.aliases:
                found.setdefault(alias, []).append(name)
        return found

    @cached_property
    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name, resource in self.resources.items():
            for group in resource.groups:
                groups.setdefault(group, []).append(name)
        return groups

    @cached_property
    def _ranges(self) -> dict[tuple[str, int], dict[int, dict[int, list[str]]]]:
        """Aliases of the form `NETWORK/ADDRESS/LENGTH`: by network and IP version, length (longest first), leading bits."""
        ranges: dict[tuple[str, int], dict[int, dict[int, list[str]]]] = {}
        for alias, names in sorted(self._by_alias.items()):
            network, slash, tail = alias.partition("/")
            if not slash or "/" not in tail:
                continue
            try:
                covered = ip_network(tail, strict=False)
            except ValueError:
                continue
            bits = int(covered.network_address) >> (covered.max_prefixlen - covered.prefixlen)
            lengths = ranges.setdefault((network, covered.version), {})
            lengths.setdefault(covered.prefixlen, {}).setdefault(bits, []).extend(names)
        return {where: dict(sorted(lengths.items(), reverse=True)) for where, lengths in ranges.items()}

    def find(self, name: str) -> tuple[str, ...]:
        """The names of the resources that a client may mean: by its name, an alias, or an address inside one's range.

        Of several that claim an address the client chooses, by its own namespace among other things: it has to know them all.
        """
        if name in self.resources:
            return (name,)
        return (*self._by_alias.get(name, ()), *self._covering(name))

    def _covering(self, name: str) -> Iterator[str]:
        place = _place(name) if self._ranges else None
        if place is not None:
            network, address = place
            for length, claims in self._ranges.get((network, address.version), {}).items():
                yield from claims.get(int(address) >> (address.max_prefixlen - length), ())

    def members(self, group: str) -> Iterator[str]:
        """The names of what belongs to a group."""
        return iter(self._groups.get(group, ()))
