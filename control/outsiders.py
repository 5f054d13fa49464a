"""What is neither pod nor Service: ServiceEntries, WorkloadEntries, hand-written EndpointSlices; what became of them. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from control.reports import Key
from mesh.groups import Groups
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
    _naming: Groups[Key, EndpointSlice] = field(default_factory=lambda: Groups(lambda one: one.title))
    """Slices, by the pods that they name."""

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
                for pod in named_pods(before):
                    self._naming.discard(pod, before.title)
                if not self._inside[before.namespace]:
                    del self._inside[before.namespace]
            if isinstance(after, Outsider):
                namespaces.add(after.namespace)
                self._inside.setdefault(after.namespace, {})[after.title] = after
                if isinstance(after, EndpointSlice):
                    for pod in named_pods(after):
                        self._naming.add(pod, after)
        return namespaces

    def naming(self, pod: Key) -> Collection[EndpointSlice]:
        """The slices that name a pod."""
        return self._naming.of(pod)

    def pods_behind(self, namespace: str, service: str) -> set[Key]:
        """The pods that slices of a service name."""
        slices = (one for one in self.of(namespace) if isinstance(one, EndpointSlice) and one.service == service)
        return {pod for one in slices for pod in named_pods(one)}

    def became(self, namespace: str, services: Iterable[str], workloads: Iterable[str]) -> _Names:
        """Note what those of a namespace are now, by resource name; returns that together with what they were before."""
        known = self._became.pop(namespace, (frozenset(), frozenset()))
        current = frozenset(services), frozenset(workloads)
        if any(current):
            self._became[namespace] = current
        return known[0] | current[0], known[1] | current[1]


def named_pods(one: Object | None) -> set[Key]:
    """The pods that an object names, if it is a slice."""
    return {(one.namespace, pod) for pod in one.pods} if isinstance(one, EndpointSlice) else set()
