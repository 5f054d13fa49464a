"""What the data plane knows of policies, indexed by the workloads to which they apply: as mesh.inventory is, for policies."""

from collections.abc import Iterable
from sys import intern

from mesh.policy import Policy, Scope
from mesh.policy_set import PolicyGroup, PolicySet
from mesh.workload import Workload

_Question = tuple[str, tuple[str, ...]]
"""What decides which policies apply to a workload: its namespace and the keys that it lists."""
_MAX_QUESTIONS = 4096
"""Workloads that list the same ask the same; a node's pods ask fewer than this. The oldest makes room."""


class PolicyStore:
    """Authorization policies, by the workloads they apply to. A change is paid for when it comes, not by a connection."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}
        self._global = PolicyGroup()
        self._by_namespace: dict[str, PolicyGroup] = {}
        self._listed: dict[_Question, PolicyGroup] = {}
        """What workloads list beyond what applies to them anyway; only of workloads that were asked for."""
        self._listers: dict[str, set[_Question]] = {}
        """By the keys they list."""
        self._sets: dict[_Question, PolicySet] = {}
        """Those that were asked for since the last change: they remember their verdicts."""

    def apply(self, upserts: Iterable[Policy], removals: Iterable[str]) -> None:
        """Take one update in, removals first; unknown keys are nothing."""
        self._sets.clear()
        for key in removals:
            self._remove(key)
        for policy in upserts:
            key = intern(policy.key)  # as in the lists of workloads, where those were decoded here
            self._remove(key)
            self._policies[key] = policy
            if _is_global(policy):
                self._global.put(policy)
            elif policy.scope is Scope.NAMESPACE:
                self._by_namespace.setdefault(policy.namespace, PolicyGroup()).put(policy)
            for question in self._listers.get(key, ()):
                self._list(question, policy)

    def _remove(self, key: str) -> None:
        policy = self._policies.pop(key, None)
        if policy is None:
            return
        if _is_global(policy):
            self._global.remove(key)
        elif policy.scope is Scope.NAMESPACE:
            group = self._by_namespace[policy.namespace]
            group.remove(key)
            if not group:
                del self._by_namespace[policy.namespace]
        for question in self._listers.get(key, ()):
            self._listed[question].remove(key)

    def _list(self, question: _Question, policy: Policy) -> None:
        namespace, _ = question
        applies_anyway = _is_global(policy) or (policy.scope is Scope.NAMESPACE and policy.namespace == namespace)
        if not applies_anyway:
            self._listed[question].put(policy)

    def applicable(self, workload: Workload) -> PolicySet:
        """List what applies to connections to a workload: its namespace's policies, global ones, those it lists by key.

        A listed key counts whatever the policy's scope; one that is not known is left out (see `missing`). To be asked at once:
        it is of no use after the next change.
        """
        question = (workload.namespace, workload.authorization_policies)
        found = self._sets.get(question)
        if found is None:
            found = self._sets[question] = self._set_of(question)
        return found

    def _set_of(self, question: _Question) -> PolicySet:
        listed = self._listed.get(question)
        if listed is None:
            listed = self._remember(question)
        own = self._by_namespace.get(question[0])
        return PolicySet((own, self._global, listed) if own is not None else (self._global, listed))

    def _remember(self, question: _Question) -> PolicyGroup:
        while len(self._listed) >= _MAX_QUESTIONS:
            self._forget(next(iter(self._listed)))
        listed = self._listed[question] = PolicyGroup(question[1])
        for key in question[1]:
            self._listers.setdefault(key, set()).add(question)
            if (policy := self._policies.get(key)) is not None:
                self._list(question, policy)
        return listed

    def _forget(self, question: _Question) -> None:
        del self._listed[question]
        self._sets.pop(question, None)
        for key in set(question[1]):
            self._listers[key].remove(question)
            if not self._listers[key]:
                del self._listers[key]

    def missing(self, workload: Workload) -> list[str]:
        """List the keys that a workload lists and nobody has sent: worth a warning."""
        return [key for key in workload.authorization_policies if key not in self._policies]

    def policy(self, key: str) -> Policy | None:
        """Find a policy by its key."""
        return self._policies.get(key)

    def policies(self) -> Iterable[Policy]:
        """List all policies."""
        return self._policies.values()


def _is_global(policy: Policy) -> bool:
    """Whether a policy is for all workloads: also one for a namespace that it does not name, as Istio's ztunnel has it."""
    return policy.scope is Scope.GLOBAL or (policy.scope is Scope.NAMESPACE and not policy.namespace)
