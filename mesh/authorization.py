"""The user's security objects into the policies that proxies evaluate, and which workload lists which of them.

An AuthorizationPolicy becomes one policy of the same name. Proxies decide on connections, not requests: what a rule says about
requests cannot be kept. An ALLOW rule that says such a thing is dropped whole (it must not allow more than it says); in a DENY
rule it is left out: the rule then denies more, or, where an entry says nothing else, nothing by that entry, as istiod has it.
Each such loss is a warning for the author.

PeerAuthentication becomes DENY policies (`mesh.peer_authentication`). Policies with a selector reach a workload because the
workload lists their keys; the others apply by namespace or everywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import ip_network
from typing import Any

from mesh.manifests import AuthorizationPolicy, Condition, Operation, PeerAuthentication, PolicyRule, Problem, Source, selects
from mesh.manifests.authorization_policy import field_name
from mesh.peer_authentication import PeerModes
from mesh.policy import Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch

_WHEN = {
    "source.ip": "source_ips",
    "source.namespace": "namespaces",
    "source.principal": "principals",
    "destination.ip": "destination_ips",
    "destination.port": "destination_ports",
}
"""Conditions that a connection can answer -> the attribute."""

_SOURCE = {
    "principals": "principals",
    "namespaces": "namespaces",
    "service_accounts": "service_accounts",
    "ip_blocks": "source_ips",
}
_OPERATION = {"ports": "destination_ports"}


@dataclass(frozen=True, slots=True)
class Listed:
    """What one workload lists: policy keys, and for converted ones the user's object."""

    keys: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversion:
    """All policies to send, and who lists which."""

    policies: tuple[Policy, ...]
    """Sorted by key."""
    sources: dict[str, str]
    """Policy key -> the user's object (several joined by ", ")."""
    problems: tuple[Problem, ...]
    """Warnings: what could not be kept."""
    _selected: dict[str, list[tuple[dict[str, str], str]]]
    """Namespace ("" for all) -> (selector, key) of the policies that are listed."""
    _modes: PeerModes

    def listed_by(self, namespace: str, labels: Mapping[str, str]) -> Listed:
        """Find what a workload with these labels lists."""
        candidates = [*self._selected.get(namespace, ()), *self._selected.get("", ())]
        keys = [key for selector, key in candidates if selects(selector, labels)]
        decided = self._modes.of(namespace, labels)
        if decided is None:
            return Listed(tuple(keys))
        return Listed((*keys, decided.key), {decided.key: decided.source})


def convert(
    policies: Iterable[AuthorizationPolicy],
    peer_authentications: Iterable[PeerAuthentication],
    root_namespace: str = "istio-system",
) -> Conversion:
    """Convert all security objects of the mesh."""
    selected: dict[str, list[tuple[dict[str, str], str]]] = {}
    made: list[Policy] = []
    problems: list[Problem] = []
    sources: dict[str, str] = {}
    for one in sorted(policies, key=lambda policy: (policy.namespace, policy.name)):
        converted = _Converting(one, root_namespace).policy(problems)
        if converted is None:
            continue
        made.append(converted)
        sources[converted.key] = one.title
        if one.selector:
            where = "" if one.namespace == root_namespace else one.namespace
            selected.setdefault(where, []).append((one.selector, converted.key))
    modes = PeerModes(peer_authentications, root_namespace)
    made += modes.policies
    ordered = tuple(sorted(made, key=lambda policy: policy.key))
    return Conversion(ordered, sources | modes.sources, (*problems, *modes.problems), selected, modes)


@dataclass(slots=True)
class _Converting:
    """One AuthorizationPolicy on its way."""

    one: AuthorizationPolicy
    root_namespace: str
    lost: list[str] = field(default_factory=list)
    """Fields of the rule at hand that no connection can answer."""

    def policy(self, problems: list[Problem]) -> Policy | None:
        one = self.one
        if one.targets:
            problems.append(self._warning("spec.targetRefs", "waypoints are not supported yet: the policy is not in force"))
            return None
        if one.action not in ("ALLOW", "DENY"):
            problems.append(self._warning("spec.action", f"{one.action} is not supported: the policy is not in force"))
            return None
        action = Action.ALLOW if one.action == "ALLOW" else Action.DENY
        rules = []
        for index, rule in enumerate(one.rules):
            converted = self._rule(rule, f"spec.rules[{index}]")
            dropped = bool(self.lost) and action is Action.ALLOW
            problems += [self._warning(path, self._loss(action, converted)) for path in self.lost]
            if not dropped:
                rules.append(converted)
        return Policy(one.namespace, one.name, self._scope(), action, tuple(rules), bool(one.dry_run))

    def _scope(self) -> Scope:
        if self.one.selector:
            return Scope.WORKLOAD_SELECTOR
        return Scope.GLOBAL if self.one.namespace == self.root_namespace else Scope.NAMESPACE

    def _warning(self, path: str, reason: str) -> Problem:
        return Problem("", 0, self.one.title, path, reason, warning=True)

    @staticmethod
    def _loss(action: Action, rule: Rule) -> str:
        about = "is about requests, and this policy is enforced on connections: "
        if action is Action.ALLOW:
            return about + "the whole rule is left out and allows nothing"
        if any(clause and all(match.is_empty for match in clause) for clause in rule):
            return about + "left out, and the rule then never matches"
        if any(match.is_empty for clause in rule for match in clause):
            return about + "left out, and an entry that says nothing else then never matches"
        return about + "left out, so the rule denies more than it says"

    def _rule(self, rule: PolicyRule, path: str) -> Rule:
        """Make clauses in the order of the original: to, from, then each when."""
        self.lost = []
        clauses: list[Clause] = []
        if rule.operations:
            clauses.append(tuple(self._entries(rule.operations, f"{path}.to", "operation", _OPERATION)))
        if rule.sources:
            clauses.append(tuple(self._entries(rule.sources, f"{path}.from", "source", _SOURCE)))
        clauses += [(self._condition(one, f"{path}.when[{index}]"),) for index, one in enumerate(rule.conditions)]
        return tuple(clauses)

    def _entries(
        self, entries: Sequence[Source | Operation], path: str, kind: str, attributes: Mapping[str, str]
    ) -> Iterable[Match]:
        for index, entry in enumerate(entries):
            taken: dict[str, tuple[Any, ...]] = {}
            for one in fields(entry):
                values: tuple[str, ...] = getattr(entry, one.name)
                if not values:
                    continue
                attribute = attributes.get(one.name.removeprefix("not_"))
                if attribute is None:
                    self.lost.append(f"{path}[{index}].{kind}.{field_name(one.name)}")
                else:
                    taken[_signed(one.name, attribute)] = self._values(attribute, values)
            yield Match(**taken)

    def _condition(self, condition: Condition, path: str) -> Match:
        attribute = _WHEN.get(condition.key)
        if attribute is None:
            self.lost.append(f"{path}.key")
            return Match()
        return Match(
            **{
                attribute: self._values(attribute, condition.values),
                f"not_{attribute}": self._values(attribute, condition.not_values),
            }
        )

    def _values(self, attribute: str, values: tuple[str, ...]) -> tuple[Any, ...]:
        if attribute in ("principals", "namespaces"):
            return tuple(_string(value) for value in values)
        if attribute == "service_accounts":
            return tuple(self._account(value) for value in values)
        if attribute == "destination_ports":
            return tuple(int(value) for value in values)
        return tuple(ip_network(value) for value in values)

    def _account(self, value: str) -> ServiceAccountMatch:
        namespace, _, name = value.rpartition("/")
        return ServiceAccountMatch(namespace or self.one.namespace, name)


def _signed(name: str, attribute: str) -> str:
    return f"not_{attribute}" if name.startswith("not_") else attribute


def _string(value: str) -> StringMatch:
    if value == "*":
        return StringMatch("presence")
    if value.startswith("*"):
        return StringMatch("suffix", value[1:])
    if value.endswith("*"):
        return StringMatch("prefix", value[:-1])
    return StringMatch("exact", value)
