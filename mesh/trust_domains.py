"""One mesh under several trust domains: its own, and aliases (names it had, or will have). Pure.

As with Istio's meshConfig.trustDomainAliases, a peer of an alias is a peer of the mesh, and a policy that names a principal of
one of the domains means that principal in all of them. `cluster.local` in a policy stands for the mesh's own domain, whatever
that is called.
"""

from dataclasses import dataclass, replace

from mesh.domains import TRUST_DOMAIN
from mesh.policy import Match, Policy, StringMatch


@dataclass(frozen=True, slots=True)
class TrustDomains:
    """The domains of one mesh."""

    own: str
    aliases: frozenset[str] = frozenset()

    def expand(self, policy: Policy) -> Policy:
        """The policy as it is meant: each principal in every domain. The very same where that changes nothing."""
        if not self.aliases and self.own == TRUST_DOMAIN:
            return policy
        rules = tuple(tuple(tuple(map(self._match, clause)) for clause in rule) for rule in policy.rules)
        return policy if rules == policy.rules else replace(policy, rules=rules)

    def _match(self, match: Match) -> Match:
        if not match.principals and not match.not_principals:
            return match
        wanted, unwanted = self._all(match.principals), self._all(match.not_principals)
        return replace(match, principals=wanted, not_principals=unwanted)

    def _all(self, matches: tuple[StringMatch, ...]) -> tuple[StringMatch, ...]:
        # The written ones first: what an operator reads in a dump begins with his own words.
        further = (other for one in matches for other in self._elsewhere(one))
        return tuple(dict.fromkeys((*matches, *further)))

    def _elsewhere(self, match: StringMatch) -> list[StringMatch]:
        """The same principals in the other domains."""
        domain, slash, rest = match.value.partition("/")
        ours = sorted(self.aliases | {self.own})
        if match.kind == "presence" or not domain:
            return []  # any domain already
        if match.kind == "suffix":
            # What ends like one of our domains means whole principals: a suffix of an alias must not reach beyond it.
            meant = slash and any(one.endswith(domain) for one in (*ours, TRUST_DOMAIN))
            return [StringMatch("exact", f"{one}/{rest}") for one in ours if meant and not one.endswith(domain)]
        if not slash:
            meant = match.kind == "prefix" and any(one.startswith(domain) for one in (*ours, TRUST_DOMAIN))
            return [StringMatch("prefix", f"{one}/") for one in ours if meant and not one.startswith(domain)]
        if domain not in ours and domain != TRUST_DOMAIN:
            return []
        return [StringMatch(match.kind, f"{one}/{rest}") for one in ours if one != domain]
