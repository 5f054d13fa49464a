"""A policy of a local configuration."""

from typing import Any

from mesh.local_mesh.values import finish, network_of, parsed, pick
from mesh.manifests.cursor import Cursor
from mesh.policy import Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch

_SCOPES = {one.value: one for one in Scope}
_ACTIONS = {one.value: one for one in Action}
_KINDS = ("exact", "prefix", "suffix", "presence")
COMPARISONS = frozenset(kind.capitalize() for kind in _KINDS)
"""How texts are compared: keys, or tags."""


def read_policy(cursor: Cursor) -> Policy:
    """Read a policy: `rules` is a list of lists of lists of matches."""
    policy = Policy(
        namespace=cursor.text("namespace", required=True),
        name=cursor.text("name", required=True),
        scope=pick(cursor, "scope", _SCOPES, ""),
        action=pick(cursor, "action", _ACTIONS, ""),
        rules=_deep(cursor.nested("rules", 3)),
        dry_run=cursor.flag("dryRun"),
    )
    finish(cursor, f"policy {policy.key}")
    return policy


def _deep(value: Any) -> Any:
    return tuple(map(_deep, value)) if isinstance(value, list) else _match(value)


def _match(cursor: Cursor) -> Match:
    lists: dict[str, Any] = {}
    for ours, theirs in (("", ""), ("not_", "not")):
        for name, (key, read) in _ATTRIBUTES.items():
            lists[ours + name] = read(cursor, theirs + (key[0].upper() + key[1:] if theirs else key))
    finish(cursor, "a match")
    return Match(**lists)


def _strings(cursor: Cursor, key: str) -> tuple[StringMatch, ...]:
    """Each `{Exact: value}`, `{Prefix: value}`, `{Suffix: value}` or `{Presence: []}`."""
    found = []
    for one in cursor.children(key):
        kinds = [kind for kind in _KINDS if kind.capitalize() in one]
        if len(kinds) != 1:
            one.refuse("", "write one of Exact, Prefix, Suffix (with a text) and Presence (with [])")
        for kind in kinds[:1]:
            value = "" if kind == "presence" else one.text(kind.capitalize())
            found.append(StringMatch(kind, value))  # type: ignore[arg-type]
        one.children("Presence")
        finish(one, "a comparison of texts")
    return tuple(found)


def _accounts(cursor: Cursor, key: str) -> tuple[ServiceAccountMatch, ...]:
    found = []
    for one in cursor.children(key):
        found.append(ServiceAccountMatch(one.text("namespace"), one.text("serviceAccount")))
        finish(one, "a service account")
    return tuple(found)


_ATTRIBUTES = {
    "namespaces": ("namespaces", _strings),
    "principals": ("principals", _strings),
    "service_accounts": ("serviceAccounts", _accounts),
    "source_ips": ("sourceIps", lambda cursor, key: parsed(cursor, key, network_of)),
    "destination_ips": ("destinationIps", lambda cursor, key: parsed(cursor, key, network_of)),
    "destination_ports": ("destinationPorts", lambda cursor, key: cursor.numbers(key, 0, 65535)),
}
