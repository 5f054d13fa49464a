"""`istio.security.Authorization`: a policy."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import ip_network
from sys import intern
from typing import Any, Literal

from mesh.policy import Action, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch
from mesh.proto import authorization_pb2 as authorization
from mesh.resources.field import PORT_BITS, parse, pick, read_address
from mesh.workload import Network

AUTHORIZATION_TYPE = "type.googleapis.com/istio.security.Authorization"

_SCOPES = (Scope.GLOBAL, Scope.NAMESPACE, Scope.WORKLOAD_SELECTOR)
_KINDS: dict[str, Literal["exact", "prefix", "suffix"]] = {"exact": "exact", "prefix": "prefix", "suffix": "suffix"}
_ACTIONS = (Action.ALLOW, Action.DENY)
_RULES, _RULE_BYTES = 1024, 1024
"""Rules, of at most so many bytes, that are kept for the next policy that says the same."""
_TERMS, _TERM_BYTES = 512, 2048
"""The same of all that a policy says."""


def _strings(messages: Iterable[Any]) -> tuple[StringMatch, ...]:
    found = []
    for message in messages:
        kind = message.WhichOneof("match_type")
        if kind == "presence":
            found.append(StringMatch("presence"))
        elif kind is not None:
            found.append(StringMatch(_KINDS[kind], intern(getattr(message, kind))))
    return tuple(found)


def _networks(messages: Iterable[Any]) -> tuple[Network, ...]:
    found: list[Network] = []
    for message in messages:
        try:
            found.append(ip_network((read_address(message.address), message.length), strict=False))
        except ValueError:
            continue  # see _match
    return tuple(found)


def _ports(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(number & PORT_BITS for number in numbers)


def _accounts(messages: Iterable[Any]) -> tuple[ServiceAccountMatch, ...]:
    return tuple(ServiceAccountMatch(message.namespace, message.serviceAccount) for message in messages)


_READERS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    sign + name: read
    for sign in ("", "not_")
    for name, read in (
        ("namespaces", _strings),
        ("principals", _strings),
        ("source_ips", _networks),
        ("destination_ips", _networks),
        ("destination_ports", _ports),
        ("service_accounts", _accounts),
    )
}


def _match(message: Any, action: Action) -> Match:
    """As the original, drop what cannot be read, such as ways to compare that are newer than this.

    But what then asks less than its author does, in that a list lost all its values, or a negative one some, allows nothing.
    """
    lists: dict[str, tuple[Any, ...]] = {}
    for field, values in message.ListFields():
        if field.name not in _READERS:
            continue
        found = lists[field.name] = _READERS[field.name](values)
        asks_less = len(found) < len(values) and (not found or field.name.startswith("not_"))
        if asks_less and action is Action.ALLOW:
            return Match()
    return Match(**lists)


def _rule(value: bytes, action: Action) -> Rule:
    message = authorization.Rule.FromString(value)
    return tuple(tuple(_match(one, action) for one in clause.matches) for clause in message.clauses)


_shared_rule = lru_cache(maxsize=_RULES)(_rule)
"""The same rule of many policies is read, and kept, once."""


def _rules(message: Any, action: Action) -> tuple[Rule, ...]:
    values = [rule.SerializeToString(deterministic=True) for rule in message.rules]
    return tuple(_shared_rule(value, action) if len(value) <= _RULE_BYTES else _rule(value, action) for value in values)


def decode_authorization(name: str, value: bytes) -> Policy:
    """Read an `istio.security.Authorization` that came under a resource name (its key from then on).

    Raises: ValueError with the reason, in the words of a ztunnel's NACK.
    """
    message = authorization.Authorization()
    parse(message, value)
    namespace, own = intern(message.namespace), intern(message.name)
    message.ClearField("namespace")
    message.ClearField("name")
    rest = message.SerializeToString()
    scope, action, rules, dry_run = _shared_terms(rest) if len(rest) <= _TERM_BYTES else _terms(rest)
    return Policy(namespace, own, scope, action, rules, dry_run, "" if name == f"{namespace}/{own}" else name)


def _terms(value: bytes) -> tuple[Scope, Action, tuple[Rule, ...], bool]:
    """What a policy says, but for its name."""
    message = authorization.Authorization.FromString(value)
    scope, action = pick(_SCOPES, message.scope), pick(_ACTIONS, message.action)
    return scope, action, _rules(message, action), message.dry_run


_shared_terms = lru_cache(maxsize=_TERMS)(_terms)
"""The same policy of many namespaces is read, and kept, once."""


def _put_match(message: Any, match: Match) -> None:
    for sign in ("", "not_"):
        for name in ("namespaces", "principals"):
            strings = getattr(message, sign + name)
            for one in getattr(match, sign + name):
                if one.kind == "presence":
                    strings.add().presence.SetInParent()
                else:
                    setattr(strings.add(), one.kind, one.value)
        for name in ("source_ips", "destination_ips"):
            for network in getattr(match, sign + name):
                getattr(message, sign + name).add(address=network.network_address.packed, length=network.prefixlen)
        getattr(message, f"{sign}destination_ports").extend(getattr(match, f"{sign}destination_ports"))
        for account in getattr(match, f"{sign}service_accounts"):
            accounts = getattr(message, f"{sign}service_accounts")
            accounts.add(namespace=account.namespace, serviceAccount=account.service_account)


def encode_policy(policy: Policy) -> bytes:
    """Write a policy as an `istio.security.Authorization`; its resource name is `policy.key`."""
    message = authorization.Authorization(
        name=policy.name,
        namespace=policy.namespace,
        scope=_SCOPES.index(policy.scope),
        action=_ACTIONS.index(policy.action),
        dry_run=policy.dry_run,
    )
    for rule in policy.rules:
        wire_rule = message.rules.add()
        for clause in rule:
            wire_clause = wire_rule.clauses.add()
            for match in clause:
                _put_match(wire_clause.matches.add(), match)
    return bytes(message.SerializeToString(deterministic=True))
