"""What is neither pod nor Service: ServiceEntries, WorkloadEntries, hand-written EndpointSlices; what became of them. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mesh.manifests import EndpointSlice, Object, ServiceEntry, WorkloadEntry

Outsider = ServiceEntry | WorkloadEntry | EndpointSlice
_Names = tuple[frozenset[str], frozenset[str]]
"""Of services and of workloads."""


@dataclass(slots=True)
class Outsiders:
    """Those of one mesh, by namespace: what shares hosts, or is selected by labels, is made anew together."""

    _inside: dict[str, dict[str, Outsider]] = field(default_factory=dict)
    """By namespace and title."""
    _became: dict[str, _Names] = field(default_factory=dict)

    @property
    def namespaces(self) -> set[str]:
        """Where some are, or were when they were last made."""
        return self._inside.keys() | self._became.keys()

    def of(self, namespace: str) -> Collection[Outsider]:
        """Those of a namespace."""
        return self._inside.get(namespace, {}).values()

    def hosts(self) -> Counter[str]:
        """How many ServiceEntries that anybody is to see have each host."""
        told = (one for several in self._inside.values() for one in several.values() if isinstance(one, ServiceEntry))
        return Counter(host for one in told if one.is_told for host in one.hosts)

    def replace(self, changes: Iterable[tuple[Object | None, Object | None]]) -> set[str]:
        """Take changes in, each as what was and is; returns their namespaces."""
        namespaces = set()
        for before, after in changes:
            if isinstance(before, Outsider):
                namespaces.add(before.namespace)
                del self._inside[before.namespace][before.title]
                if not self._inside[before.namespace]:
                    del self._inside[before.namespace]
            if isinstance(after, Outsider):
                namespaces.add(after.namespace)
                self._inside.setdefault(after.namespace, {})[after.title] = after
        return namespaces

    def became(self, namespace: str, services: Iterable[str], workloads: Iterable[str]) -> _Names:
        """Note what those of a namespace are now, by resource name; returns that together with what they were before."""
        known = self._became.pop(namespace, (frozenset(), frozenset()))
        current = frozenset(services), frozenset(workloads)
        if any(current):
            self._became[namespace] = current
        return known[0] | current[0], known[1] | current[1]
