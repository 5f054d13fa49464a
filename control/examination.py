"""What is wrong with a set of objects as a whole, and which addresses its services get. Pure.

A change usually touches few objects of one sort, and is examined twice: when it is foreseen and when it is made. So each part
of the examination remembers the very objects that it last looked at.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Generic, TypeVar

from control.entries import clashes
from control.entry_addresses import ENTRY_RANGES, allocate_entries, claimed_addresses
from control.services import AnyService, claim_of, left_out
from control.vips import Allocation, allocate
from mesh.authorization import convert
from mesh.domains import CLUSTER_DOMAIN
from mesh.manifests import (
    AuthorizationPolicy,
    Namespace,
    Node,
    Object,
    PeerAuthentication,
    Problem,
    Service,
    ServiceEntry,
    check_references,
)
from mesh.workload import Address, Network

Addresses = Mapping[str, tuple[Address, ...]]
"""Service addresses by `namespace/name`; those of ServiceEntries by `control.entry_addresses.vip_name`."""
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Findings:
    """The outcome for one set."""

    problems: list[Problem]
    addresses: Addresses
    """Of all services, meaningful where no problem refuses the set."""


@dataclass(slots=True)
class _Remembered(Generic[_Result]):
    """The last result of one question, and what was asked about."""

    objects: list[Object] = field(default_factory=list)
    result: _Result | None = None

    def of(self, objects: list[Object], ask: Callable[[list[Object]], _Result]) -> _Result:
        if self.result is None or len(objects) != len(self.objects) or not all(map(is_, objects, self.objects)):
            self.objects, self.result = objects, ask(objects)
        return self.result


@dataclass(slots=True)
class Examination:
    """The rules of one mesh."""

    root_namespace: str
    ranges: Sequence[Network]
    held: Addresses
    """Addresses of services now; set it after each change that was made."""
    domain: str = CLUSTER_DOMAIN
    """The cluster's in DNS."""
    _inhabited: _Remembered[frozenset[str]] = field(default_factory=_Remembered)
    _references: _Remembered[list[Problem]] = field(default_factory=_Remembered)
    _allocation: _Remembered[tuple[Allocation, list[Problem]]] = field(default_factory=_Remembered)
    _claimed: _Remembered[list[Problem]] = field(default_factory=_Remembered)
    _clashes: _Remembered[list[Problem]] = field(default_factory=_Remembered)
    _security: _Remembered[list[Problem]] = field(default_factory=_Remembered)

    def examine(self, objects: Iterable[Object]) -> Findings:
        """Look at a whole set."""
        plain: list[Object] = []
        security: list[Object] = []
        for one in objects:
            (security if isinstance(one, AuthorizationPolicy | PeerAuthentication) else plain).append(one)
        services: list[Object] = [one for one in plain if isinstance(one, AnyService)]
        references = self._references.of(plain, check_references)
        allocation, others = self._allocation.of(services, self._allocate)
        named = {problem.object for problem in references if not problem.warning}
        collisions = [
            Problem("", 0, f"Service {service}", "spec.clusterIP", reason)
            for service, reason in allocation.problems.items()
            if f"Service {service}" not in named
        ]
        lost = self._security.of(security, self._lost)
        nowhere = self._nowhere(security, self._inhabited.of(plain, _inhabited))
        placed: list[Object] = [one for one in plain if isinstance(one, Node | ServiceEntry)]
        claimed = self._claimed.of(placed, lambda objects: list(claimed_addresses(objects, self.ranges)))
        clashing = self._clashes.of(services, lambda objects: list(clashes(objects, self.domain)))
        problems = [*references, *collisions, *others, *claimed, *clashing, *lost, *nowhere]
        return Findings(problems, allocation.addresses)

    def _nowhere(self, security: Iterable[Object], inhabited: frozenset[str]) -> Iterable[Problem]:
        """Warnings about policies of namespaces that nothing is in: a misspelt one would do nothing, and say nothing."""
        for one in security:
            if one.namespace not in inhabited and one.namespace != self.root_namespace:
                reason = f"nothing is in namespace {one.namespace}: it concerns no pod"
                yield Problem("", 0, one.title, "metadata.namespace", reason, True)

    def _allocate(self, services: Iterable[Object]) -> tuple[Allocation, list[Problem]]:
        plain = [one for one in services if isinstance(one, Service)]
        made = allocate(filter(None, (claim_of(one, self.ranges) for one in plain)), self.ranges, self.held)
        entries = (one for one in services if isinstance(one, ServiceEntry))
        given, problems = allocate_entries(entries, ENTRY_RANGES, self.held)
        made.addresses |= given.addresses
        return made, [*problems, *(problem for one in plain for problem in left_out(one, self.ranges))]

    def _lost(self, security: list[Object]) -> list[Problem]:
        """Warnings about what proxies cannot enforce."""
        policies = [one for one in security if isinstance(one, AuthorizationPolicy)]
        modes = [one for one in security if isinstance(one, PeerAuthentication)]
        return list(convert(policies, modes, self.root_namespace).problems)


def _inhabited(objects: list[Object]) -> frozenset[str]:
    """The namespaces that are objects, or have some."""
    return frozenset(one.name if isinstance(one, Namespace) else one.namespace for one in objects)
