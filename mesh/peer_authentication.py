"""PeerAuthentication into policies: requiring mutual TLS means denying peers without a principal.

The narrowest object that says anything decides: one whose selector means the pod, else its namespace's, else the mesh's (the
root namespace's). Of several of equal width the oldest counts, then the first by name. Ports are the pod's own, and their
exceptions count only beside a selector and outside the root namespace. DISABLE is PERMISSIVE: mutual TLS is always accepted.

    STRICT                     one policy for all such pods: deny without principal
    STRICT, exempt ports       one policy per object: deny without principal, and on no exempt port
    PERMISSIVE, strict ports   one policy per object: deny without principal on these ports
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mesh.manifests import Mode, PeerAuthentication, Problem, selects
from mesh.policy import Action, Clause, Match, Policy, Rule, Scope, StringMatch

STATIC_STRICT = "istio_converted_static_strict"
"""In the root namespace: the policy of every pod that is STRICT without exceptions."""

_PREFIX = "converted_peer_authentication_"
_NOBODY = (StringMatch("presence"),)


class Decided(NamedTuple):
    """The converted policy that a workload lists, and whose object it comes from."""

    key: str
    source: str


class PeerModes:
    """All PeerAuthentications of the mesh."""

    def __init__(self, objects: Iterable[PeerAuthentication], root_namespace: str) -> None:
        self._root = root_namespace
        self._wide: dict[str, PeerAuthentication] = {}
        self._narrow: dict[str, list[PeerAuthentication]] = {}
        self._converted: dict[str, Policy] = {}
        self.problems: list[Problem] = []
        ordered = sorted(objects, key=lambda one: (one.metadata.created, one.namespace, one.name))
        for one in ordered:
            self._place(one)
        for one in ordered:
            if one.port_modes:
                self._convert(one)
        strict = Policy(
            root_namespace, STATIC_STRICT, Scope.WORKLOAD_SELECTOR, Action.DENY, (((Match(not_principals=_NOBODY),),),)
        )
        self._static = strict.key
        # Always sent, needed or not: a workload must never list it before it is there.
        self.policies: list[Policy] = [strict, *self._converted.values()]
        strict_ones = [one.title for one in ordered if one.mode is Mode.STRICT]
        self.sources = {strict.key: ", ".join(strict_ones)} | {policy.key: title for title, policy in self._converted.items()}

    def _place(self, one: PeerAuthentication) -> None:
        if one.selector:
            self._narrow.setdefault(one.namespace, []).append(one)
            return
        first = self._wide.setdefault(one.namespace, one)
        if first is not one:
            self._warn(one, "spec", f"{first.title} is older or first by name: it is in force, this one is not")

    def _warn(self, one: PeerAuthentication, path: str, reason: str) -> None:
        self.problems.append(Problem("", 0, one.title, path, reason, warning=True))

    def _decider(self, namespace: str, narrow: PeerAuthentication | None) -> PeerAuthentication | None:
        """The object whose mode counts: the narrowest that sets one."""
        for one in (narrow, self._wide.get(namespace), self._wide.get(self._root)):
            if one is not None and one.mode is not Mode.UNSET:
                return one
        return None

    def _convert(self, one: PeerAuthentication) -> None:
        """Make the policy of an object with exceptions by port, if they differ from its mode."""
        if one.namespace == self._root:
            self._warn(one, "spec.portLevelMtls", "has no effect in the root namespace")
            return
        decider = self._decider(one.namespace, one)
        rule = _rule(decider is not None and decider.mode is Mode.STRICT, one.port_modes)
        if rule is not None:
            name = _PREFIX + one.name
            self._converted[one.title] = Policy(one.namespace, name, Scope.WORKLOAD_SELECTOR, Action.DENY, (rule,))

    def of(self, namespace: str, labels: Mapping[str, str]) -> Decided | None:
        """Find what a workload lists; None if it accepts plain text on every port."""
        narrow = next((one for one in self._narrow.get(namespace, ()) if selects(one.selector, labels)), None)
        if narrow is not None and (converted := self._converted.get(narrow.title)) is not None:
            return Decided(converted.key, narrow.title)
        decider = self._decider(namespace, narrow)
        if decider is not None and decider.mode is Mode.STRICT:
            return Decided(self._static, decider.title)
        return None


def _rule(strict: bool, port_modes: Mapping[int, Mode]) -> Rule | None:
    """The rule for a mode and its exceptions; None if no port differs from the mode."""
    if strict:
        exempt = sorted(port for port, mode in port_modes.items() if mode in (Mode.PERMISSIVE, Mode.DISABLE))
        nobody: Clause = (Match(not_principals=_NOBODY),)
        return (nobody, *((Match(not_destination_ports=(port,)),) for port in exempt)) if exempt else None
    ports = tuple(sorted(port for port, mode in port_modes.items() if mode is Mode.STRICT))
    return ((Match(not_principals=_NOBODY, destination_ports=ports),),) if ports else None
