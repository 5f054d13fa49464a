"""Virtual addresses of services: which service holds which, out of the service ranges. Pure.

A service keeps what it holds for as long as it exists; a new one gets the address that its own name hashes to, or the next
free one. So the same manifests give the same addresses again even where nothing was remembered, but for collisions.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.workload import Address, Network


@dataclass(frozen=True, slots=True)
class Claim:
    """What one service asks for."""

    service: str
    """`namespace/name`."""
    versions: tuple[int, ...]
    """IP versions, the preferred one first."""
    wanted: tuple[Address, ...] = ()
    """Addresses that the manifest names: these and no others for their version."""


@dataclass(slots=True)
class Allocation:
    """The outcome: addresses by service, and for each service that cannot have what it asks for, why."""

    addresses: dict[str, tuple[Address, ...]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def allocate(claims: Iterable[Claim], ranges: Sequence[Network], held: Mapping[str, tuple[Address, ...]]) -> Allocation:
    """Give every claim its addresses: named ones first, then held ones, then free ones."""
    ordered = sorted(claims, key=lambda claim: claim.service)
    owners: dict[Address, str] = {}
    allocation = Allocation()
    kept = {claim.service: _keep(claim, ranges, held.get(claim.service, ())) for claim in ordered}
    for claim in ordered:
        owners.update((address, claim.service) for address in kept[claim.service])
    for claim in ordered:
        problem = _take_wanted(claim, ranges, owners)
        if problem:
            allocation.problems[claim.service] = problem
    spaces = list(ranges)
    for claim in ordered:
        if claim.service not in allocation.problems:
            _complete(claim, ranges, spaces, kept[claim.service], owners, allocation)
    return allocation


def _keep(claim: Claim, ranges: Sequence[Network], held: tuple[Address, ...]) -> list[Address]:
    """Held addresses that still fit: of a version that is asked for, not named otherwise, and inside a range."""
    named = {address.version for address in claim.wanted}
    return [
        address
        for address in held
        if address.version in claim.versions and address.version not in named and _range_of(address, ranges) is not None
    ]


def _take_wanted(claim: Claim, ranges: Sequence[Network], owners: dict[Address, str]) -> str | None:
    for address in claim.wanted:
        if _range_of(address, ranges) is None:
            return f"{address} is not in a service range ({', '.join(map(str, ranges))}): choose one inside, or leave it out"
        owner = owners.setdefault(address, claim.service)
        if owner != claim.service:
            return f"{address} is held by Service {owner}: choose another, or leave it out"
    return None


def _complete(
    claim: Claim,
    ranges: Sequence[Network],
    spaces: list[Network],
    kept: list[Address],
    owners: dict[Address, str],
    allocation: Allocation,
) -> None:
    addresses: list[Address] = []
    for version in claim.versions:
        found = next((address for address in (*claim.wanted, *kept) if address.version == version), None)
        if found is None:
            found = _first_free(claim.service, version, spaces, owners)
        if found is None:
            sizes = ", ".join(str(one) for one in ranges if one.version == version)
            allocation.problems[claim.service] = (
                f"no free IPv{version} address in {sizes}: widen --service-cidr"
                if sizes
                else f"there is no IPv{version} service range: add one with --service-cidr"
            )
            return
        owners[found] = claim.service
        addresses.append(found)
    allocation.addresses[claim.service] = tuple(addresses)


def _range_of(address: Address, ranges: Sequence[Network]) -> Network | None:
    """The range with this address in it, its first (and for IPv4 last) address left out."""
    for one in ranges:
        if one.version == address.version and address in one:
            offset = int(address) - int(one.network_address)
            return one if 1 <= offset <= _size(one) else None
    return None


def _size(one: Network) -> int:
    return one.num_addresses - (2 if one.version == 4 else 1)


def _first_free(service: str, version: int, spaces: list[Network], owners: Mapping[Address, str]) -> Address | None:
    """An address out of ranges that may have some; those that are found full leave them, as nothing is given back here."""
    for one in [space for space in spaces if space.version == version]:
        size = _size(one)
        start = int.from_bytes(hashlib.blake2b(service.encode(), digest_size=16).digest(), "big")
        # At most len(owners) addresses are taken, so one of that many and one more is free, or the range is full.
        for step in range(min(size, len(owners) + 1)):
            candidate = one[1 + (start + step) % size]
            if candidate not in owners:
                return candidate
        spaces.remove(one)
    return None
