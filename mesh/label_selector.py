"""Label selectors in Kubernetes' grammar, over labels that may name their source (`k8s:app=web`, `reserved:world`)."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

_KEY = r"(?:[A-Za-z0-9_-]+:)?[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?"
_VALUE = r"[A-Za-z0-9]?(?:[A-Za-z0-9._/:-]*[A-Za-z0-9])?"
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_COMPARISON = re.compile(rf"({_KEY})\s*(==|=|!=|>|<)\s*({_VALUE})")
_EXISTENCE = re.compile(rf"(!?)\s*({_KEY})")
_NUMBER = re.compile(r"[0-9]{1,18}")
_SEPARATOR = re.compile(r",(?![^()]*\))")

MAX_CHARACTERS = 1024
"""Of a selector. More come as several; a client that is no friend could send megabytes."""


class Label(NamedTuple):
    """A label cut into its parts; `source` is empty where the text has none."""

    source: str
    key: str
    value: str


Labels = Mapping[str, Sequence[Label]]
"""By key."""
Selector = Callable[[Labels], bool]


def by_key(texts: Iterable[str]) -> Labels:
    """A list of labels as selectors look at it."""
    found: dict[str, list[Label]] = {}
    for label in map(parse_label, texts):
        found.setdefault(label.key, []).append(label)
    return found


def parse_label(text: str) -> Label:
    """Cut `source:key=value`; source and value may be missing."""
    name, _, value = text.partition("=")
    source, colon, key = name.partition(":")
    return Label(source, key, value) if colon else Label("", name, value)


def parse_selector(text: str) -> Selector:
    """A predicate on labels; the empty selector matches everything.

    Grammar: requirements joined by commas: `key`, `!key`, `key=v`, `key==v`, `key!=v`, `key in (a,b)`, `key notin (a,b)`,
    `key>1`, `key<1`. A key without a source, or with the source `any`, matches labels of every source.

    Raises: ValueError that names the requirement.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"invalid label selector of {len(text)} characters: at most {MAX_CHARACTERS}")
    requirements = [_requirement(part.strip()) for part in _SEPARATOR.split(text)] if text.strip() else []
    return lambda labels: all(requirement(labels) for requirement in requirements)


def _requirement(text: str) -> Selector:
    if match := _SET.fullmatch(text):
        key, operator, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        if operator == "in":
            return lambda labels: _value(labels, key) in values
        return lambda labels: _value(labels, key) not in values
    if match := _COMPARISON.fullmatch(text):
        return _comparison(*match.groups())
    if match := _EXISTENCE.fullmatch(text):
        absent, key = match.groups()
        return lambda labels: (_value(labels, key) is None) == bool(absent)
    raise ValueError(f"invalid label selector {text!r}: expected key, !key, key=value, key!=value or key in (a,b)")


def _comparison(key: str, operator: str, wanted: str) -> Selector:
    if operator in (">", "<"):
        if not _NUMBER.fullmatch(wanted):
            raise ValueError(f"invalid label selector: {key}{operator}{wanted}: expected a whole number")
        bound, sign = int(wanted), 1 if operator == ">" else -1

        def compares(labels: Labels) -> bool:
            value = _value(labels, key)
            return value is not None and _NUMBER.fullmatch(value) is not None and (int(value) - bound) * sign > 0

        return compares
    return lambda labels: (_value(labels, key) == wanted) != (operator == "!=")


def _value(labels: Labels, key: str) -> str | None:
    """The value of the first label with the key, None without one."""
    source, colon, name = key.partition(":")
    if not colon:
        source, name = "any", key
    return next((label.value for label in labels.get(name, ()) if source in ("any", label.source)), None)
