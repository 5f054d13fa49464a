"""The pods of one mesh: those that are written, and what is reported of them. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from control.reports import Key, PodReport
from mesh.manifests import Deployment, Object, Pod


@dataclass(slots=True)
class Population:
    """Pods by namespace and name: those written as such, and those of deployments."""

    pods: dict[Key, Pod] = field(default_factory=dict)
    reports: Mapping[Key, PodReport] = field(default_factory=dict)
    _made: dict[str, list[Pod]] = field(default_factory=dict)
    """By the title of the object that they come from."""
    _inside: dict[str, set[Key]] = field(default_factory=dict)
    """By namespace."""

    def inside(self, namespace: str) -> set[Key]:
        """The pods of a namespace."""
        return self._inside.get(namespace, set())

    def replace(self, changes: Iterable[tuple[Object | None, Object | None]]) -> set[Key]:
        """Take changes of objects in, each as what was and is; returns the pods that they touch."""
        dirty: set[Key] = set()
        for before, after in changes:
            if isinstance(before, Pod | Deployment):
                dirty.update(map(self._drop, self._made.pop(before.title)))
            if isinstance(after, Pod | Deployment):
                made = self._made[after.title] = after.pods() if isinstance(after, Deployment) else [after]
                dirty.update(map(self._add, made))
        return dirty

    def _drop(self, pod: Pod) -> Key:
        key = (pod.namespace, pod.name)
        # A pod of this name may already come from another object; then that one stays.
        if self.pods.get(key) is pod:
            del self.pods[key]
            inside = self._inside[pod.namespace]
            inside.discard(key)
            if not inside:
                del self._inside[pod.namespace]
        return key

    def _add(self, pod: Pod) -> Key:
        key = (pod.namespace, pod.name)
        self.pods[key] = pod
        self._inside.setdefault(pod.namespace, set()).add(key)
        return key

    def report_of(self, key: Key) -> PodReport | None:
        """What is reported of a pod as it is written now.

        What runs keeps its service account: a report of one that is written with another account since is about a former pod of
        that name, and no word that this one runs anywhere.
        """
        report, pod = self.reports.get(key), self.pods.get(key)
        if report is None or pod is None or report.service_account not in ("", pod.spec.service_account):
            return None
        return report

    def running(self, namespace: str, service_account: str) -> Iterator[PodReport]:
        """What is reported of pods under a service account, and not ended."""
        keys = (key for key in self.inside(namespace) if self.pods[key].spec.service_account == service_account)
        return (report for report in filter(None, map(self.report_of, keys)) if not report.is_over)
