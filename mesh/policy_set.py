"""The policies that apply to a workload, and the one function that decides by them.

The truth table is Istio's ztunnel's, wire for wire. In short:

1. a DENY policy that matches rejects, 2. no ALLOW policy applies: accepted, 3. an ALLOW policy that matches accepts,
4. otherwise rejected. Dry-run policies never change the result.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

from mesh.groups import Groups
from mesh.matching import Connection, Peer, peer_of, rules_match
from mesh.policy import Action, Match, Policy, Rule

_ASKED = 4
"""Names that a refusal carries: enough to find the author, whatever the number of policies."""
_FEW = 8
"""Up to here asking every policy is quicker than looking them up."""
_MAX_VERDICTS = 256
"""That a set remembers; then it forgets all."""
_Key = tuple[str, object]
"""An attribute of a connection and its value."""
_Place = tuple[int, Policy]
"""A policy with its rank among those of its group."""


class Verdict(NamedTuple):
    """A decision and why: `policy` is the key that decided, None where a default did."""

    allowed: bool
    policy: str | None
    reason: str
    """Empty when allowed; else the words of Istio's access log."""
    asked: tuple[str, ...] = ()
    """Where no ALLOW policy allowed: the keys of the first few that were asked."""


class PolicyGroup:
    """Policies that apply together, found by what their rules ask of a connection. A change costs what the one policy costs.

    A policy that replaces another comes last, unless the group was made for `names`: then their order counts.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._ranks = {name: rank for rank, name in enumerate(dict.fromkeys(names))}
        self._next = len(self._ranks)
        self._places: dict[str, _Place] = {}
        self._by_key: Groups[_Key, _Place] = Groups(_rank)
        self._always: dict[int, Policy] = {}
        """Policies with a rule that no key stands for."""
        self._allows = 0
        """ALLOW policies, without those in dry run."""
        self._asked: tuple[str, ...] | None = ()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Policy]:
        places: Iterable[_Place] = self._places.values()  # in the order of their ranks, unless names decide
        return (policy for _, policy in (sorted(places, key=_rank) if self._ranks else places))

    def put(self, policy: Policy) -> None:
        """Add a policy, in the place of one with the same key."""
        name = policy.key
        self.remove(name)
        rank = self._ranks.get(name)
        if rank is None:
            rank, self._next = self._next, self._next + 1
        place = self._places[name] = (rank, policy)
        if policy.dry_run:
            return
        keys = _keys_of_policy(policy)
        if keys is None:
            self._always[rank] = policy
        for key in keys or ():
            self._by_key.add(key, place)
        self._count(policy, 1)

    def remove(self, name: str) -> None:
        """Take a policy out by its key; an unknown one is nothing."""
        if name not in self._places:
            return
        rank, policy = self._places.pop(name)
        if policy.dry_run:
            return
        self._always.pop(rank, None)
        for key in _keys_of_policy(policy) or ():
            self._by_key.discard(key, rank)
        self._count(policy, -1)

    def _count(self, policy: Policy, change: int) -> None:
        if policy.action is Action.ALLOW:
            self._allows += change
            self._asked = None

    def candidates(self, peer: Peer) -> list[Policy]:
        """In their order; all others cannot match."""
        if len(self._places) <= _FEW:
            return list(self)
        keys = (("principal", peer.principal), ("account", peer.account), ("namespace", peer.namespace), ("port", peer.port))
        found = dict(self._always)
        for key in keys:
            found.update(self._by_key.of(key))
        return [found[rank] for rank in sorted(found)]

    @property
    def asked(self) -> tuple[str, ...]:
        """The keys of the first few ALLOW policies."""
        if self._asked is None:
            allows = (one.key for one in self if one.action is Action.ALLOW and not one.dry_run) if self._allows else ()
            self._asked = tuple(islice(allows, _ASKED))
        return self._asked


def _rank(place: _Place) -> int:
    return place[0]


class PolicySet:
    """What applies to a workload: groups that have no policy in common, in their order. None changes once it was asked."""

    def __init__(self, groups: Iterable[PolicyGroup]) -> None:
        self._groups = tuple(groups)
        self._verdicts: dict[Connection, Verdict] = {}
        self._last: tuple[Connection | None, Verdict] = None, Verdict(True, None, "")
        """Asked for again as the very same object, as a tunnel's next request does, it need not be looked up."""

    def verdict(self, connection: Connection) -> Verdict:
        """Decide, or remember what was decided about an equal connection."""
        last, verdict = self._last
        if connection is last:
            return verdict
        known = self._verdicts.get(connection)
        if known is None:
            if len(self._verdicts) >= _MAX_VERDICTS:
                self._verdicts.clear()
            peer = peer_of(connection)
            known = self._verdicts[connection] = _decide(self.candidates(peer), peer, self)
        self._last = connection, known
        return known

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def __iter__(self) -> Iterator[Policy]:
        return chain.from_iterable(self._groups)

    def candidates(self, peer: Peer) -> list[Policy]:
        """Those that can match, in their order."""
        return [policy for group in self._groups if group for policy in group.candidates(peer)]

    @property
    def asked(self) -> tuple[str, ...]:
        """The keys of the first few ALLOW policies."""
        return tuple(chain.from_iterable(group.asked for group in self._groups if group))[:_ASKED]


def evaluate(policies: Iterable[Policy], connection: Connection) -> Verdict:
    """Decide about one connection under the policies that apply to its destination."""
    if isinstance(policies, PolicySet):
        return policies.verdict(connection)
    return _decide(policies, peer_of(connection), None)


def _decide(policies: Iterable[Policy], peer: Peer, everything: PolicySet | None) -> Verdict:
    """`everything` that applies, where `policies` are but those of it that can match."""
    allows: list[Policy] = []
    for policy in policies:
        if policy.dry_run:
            continue
        if policy.action is Action.ALLOW:
            allows.append(policy)
        elif rules_match(policy.rules, peer):
            return Verdict(False, policy.key, f"explicitly denied by: {policy.key}")
    for policy in allows:
        if rules_match(policy.rules, peer):
            return Verdict(True, policy.key, "")
    asked = everything.asked if everything is not None else tuple(policy.key for policy in allows[:_ASKED])
    if not asked:
        return Verdict(True, None, "")
    return Verdict(False, None, "allow policies exist, but none allowed", asked)


def _keys_of_rule(rule: Rule) -> frozenset[_Key] | None:
    """Without any of these keys the rule cannot match; None: no such set is known. Taken from the clause with the fewest."""
    best: frozenset[_Key] | None = None
    for clause in rule:
        if not clause:
            continue  # asks nothing
        keys: set[_Key] = set()
        for match in clause:
            needed = _keys_of_match(match)
            if needed is None:
                break
            keys |= needed
        else:
            if best is None or len(keys) < len(best):
                best = frozenset(keys)
    return best


def _keys_of_match(match: Match) -> set[_Key] | None:
    if match.is_empty:
        return set()  # matches nothing
    for name, wanted in (("principal", match.principals), ("namespace", match.namespaces)):
        if wanted and all(one.kind == "exact" for one in wanted):
            return {(name, one.value) for one in wanted}
    if match.service_accounts:
        return {("account", one) for one in match.service_accounts}
    return {("port", port) for port in match.destination_ports} or None


def _keys_of_policy(policy: Policy) -> frozenset[_Key] | None:
    """Without any of these it matches nothing; None: no such set is known."""
    keys: set[_Key] = set()
    for rule in policy.rules:
        needed = _keys_of_rule(rule)
        if needed is None:
            return None
        keys |= needed
    return frozenset(keys)
