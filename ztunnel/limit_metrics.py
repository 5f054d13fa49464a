"""What pods and the node hold of their limits, over all workers, and how often they were refused more."""

from collections.abc import Callable, Mapping

from ztunnel.limits import KINDS, Kind, Limits, Usage
from ztunnel.metrics import Family, Labels, Sample, counter
from ztunnel.zds_session import PodInfo

_NODE = (("scope", "node"),)


class LimitMetrics:
    """Hears all workers."""

    def __init__(self, node: Limits, pod: Limits, info: Callable[[str], PodInfo | None]) -> None:
        """`info` finds a pod by its uid."""
        self._limits = {"node": node, "pod": pod}
        self._info = info
        self._usage: dict[int, Mapping[str, Usage]] = {}
        self._refused_before: dict[tuple[str, Kind], int] = {}
        """By workers that are gone: a count never falls."""

    def take(self, worker: int, usage: Mapping[str, Usage]) -> None:
        """A worker's newest."""
        self._usage[worker] = usage

    def forget(self, worker: int) -> None:
        """It is gone."""
        for uid, holder in self._usage.pop(worker, {}).items():
            for kind, _, turned_away in holder:
                if turned_away:
                    self._refused_before[uid, kind] = self._refused_before.get((uid, kind), 0) + turned_away

    def families(self) -> list[Family]:
        """Used, limit and refused."""
        used: dict[Labels, int] = {}
        refused = self._refused_by_the_gone()
        for usage in self._usage.values():
            for uid, holder in usage.items():
                scope = self._scope(uid)
                for kind, count, turned_away in holder:
                    labels = (*scope, ("kind", kind))
                    used[labels] = used.get(labels, 0) + count
                    refused[labels] = refused.get(labels, 0) + turned_away
        limits = [
            Sample((("scope", scope), ("kind", kind)), getattr(limits, kind))
            for scope, limits in self._limits.items()
            for kind in KINDS
        ]
        held = [Sample(labels, count) for labels, count in used.items()]
        return [
            Family("weft_limit", "gauge", "Most of a kind that a pod, or the node, may have at a time", limits),
            Family("weft_limit_used", "gauge", "What a pod, or the node, has of a kind now", held),
            counter("weft_limit_refusals", "What a pod, or the node, was refused of a kind", refused.items()),
        ]

    def _refused_by_the_gone(self) -> dict[Labels, int]:
        """Of pods that are served still: those of others are forgotten."""
        for uid, kind in list(self._refused_before):
            if uid and self._info(uid) is None:
                del self._refused_before[uid, kind]
        return {(*self._scope(uid), ("kind", kind)): count for (uid, kind), count in self._refused_before.items()}

    def _scope(self, uid: str) -> Labels:
        if not uid:
            return _NODE
        pod = self._info(uid)
        return (("scope", "pod"), ("namespace", pod.namespace if pod else ""), ("pod", pod.name if pod else uid))
