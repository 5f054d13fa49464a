"""What a node's own configuration tells of the mesh: YAML with the keys of a ztunnel's config dump.

Three lists, `workloads`, `services` and `policies`. Two keys differ from the dump, as in Istio's ztunnel: a workload says whom
it serves with `services: {"NAMESPACE/HOSTNAME": {SERVICE_PORT: TARGET_PORT}}`, and a service needs no `endpoints`. What is left
out has the defaults of `mesh.resources`. A comparison of texts is `{Exact: value}`, as in the dump, or `!Exact value`, as
Istio's ztunnel reads it. Every mistake is named with its place; a text that has any is not taken at all.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from mesh.local_mesh.address import read_service, read_workload
from mesh.local_mesh.policy import COMPARISONS, read_policy
from mesh.manifests.cursor import Cursor, Notes
from mesh.manifests.document import MAX_BYTES, documents
from mesh.policy import Policy
from mesh.workload import Service, Workload

__all__ = ["MAX_BYTES", "LocalMesh", "read_local_mesh"]

_SHOWN = 5
"""Mistakes named in one refusal."""
_Noun = TypeVar("_Noun", Workload, Service, Policy)


@dataclass(frozen=True, slots=True)
class LocalMesh:
    """What a configuration tells of the mesh."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Policy, ...] = ()


def read_local_mesh(text: str) -> LocalMesh:
    """Read YAML. Raises: ValueError naming the object, the key, the reason and the mend."""
    values = [value for _, value in documents(text, COMPARISONS)]
    if len(values) > 1:
        raise ValueError(f"{len(values)} documents: write all lists into one")
    if not values or values[0] is None:
        return LocalMesh()
    if not isinstance(values[0], dict):
        raise ValueError("no mapping: write the lists workloads, services and policies")
    notes = Notes()
    cursor = Cursor(values[0], "", notes)
    mesh = LocalMesh(
        _read(cursor, "workloads", read_workload, lambda one: one.uid),
        _read(cursor, "services", read_service, lambda one: one.key),
        _read(cursor, "policies", read_policy, lambda one: one.key),
    )
    cursor.finish()
    if notes.entries:
        more = f"; and {len(notes.entries) - _SHOWN} more" if len(notes.entries) > _SHOWN else ""
        raise ValueError("; ".join(_lines(notes)) + more)
    return mesh


def _lines(notes: Notes) -> Iterable[str]:
    return [f"{field}: {reason}" for field, reason, _ in notes.entries[:_SHOWN]]


def _read(cursor: Cursor, key: str, read: Callable[[Cursor], _Noun], name_of: Callable[[_Noun], str]) -> tuple[_Noun, ...]:
    return tuple(_unique(cursor, key, map(read, cursor.children(key)), name_of))


def _unique(cursor: Cursor, key: str, nouns: Iterable[_Noun], name_of: Callable[[_Noun], str]) -> Iterator[_Noun]:
    seen = set()
    for number, one in enumerate(nouns):
        name = name_of(one)
        if name in seen:
            cursor.refuse(f"{key}[{number}]", f"{name} occurs twice: take one of them away")
        seen.add(name)
        yield one
