"""Files into objects: all documents of all files, with what is wrong in them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from mesh.manifests.cursor import Cursor, Notes
from mesh.manifests.document import DocumentError, documents
from mesh.manifests.kinds import KINDS, group_of, is_skipped
from mesh.manifests.metadata import Object, title
from mesh.manifests.problem import Problem
from mesh.manifests.service import Service

MAX_OBJECTS = 50_000
"""In one set: five times the largest mesh that is aimed at."""
MAX_PROBLEMS = 1000
"""Of one set that are shown, mistakes and warnings each."""
_MAX_TEXT, _HEAD, _TAIL = 1000, 200, 600
"""Characters of a text about a problem: its author's words may be megabytes long. Its end says how to mend it."""

_O = TypeVar("_O", bound=Object)


class Origin(NamedTuple):
    """Where an object was written."""

    file: str
    document: int


@dataclass(slots=True)
class ManifestSet:
    """What was read: the objects that are valid, and every problem."""

    objects: list[Object] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    """By an object's title."""

    def __iter__(self) -> Iterator[Object]:
        return iter(self.objects)

    def of(self, kind: type[_O]) -> list[_O]:
        """Pick the objects of one kind."""
        return [one for one in self.objects if isinstance(one, kind)]

    @property
    def refused(self) -> bool:
        """Whether any problem is no mere warning."""
        return any(not problem.warning for problem in self.problems)


@dataclass(slots=True)
class _Reading:
    """A set that is being filled."""

    result: ManifestSet = field(default_factory=ManifestSet)
    skipped: set[str] = field(default_factory=set)
    noted: Counter[bool] = field(default_factory=Counter)
    """Warnings, and mistakes."""

    def note(self, origin: Origin, name: str, where: str, reason: str, warning: bool = False) -> None:
        self.noted[warning] += 1
        if self.noted[warning] <= MAX_PROBLEMS:
            texts = (_shortened(name), _shortened(where), _shortened(reason))
            self.result.problems.append(Problem(origin.file, origin.document, *texts, warning))
        elif self.noted[warning] == MAX_PROBLEMS + 1:
            more = f"there are more {'warnings' if warning else 'mistakes'} than the {MAX_PROBLEMS} that are shown"
            self.result.problems.append(Problem(origin.file, 0, "", "", more, warning))

    def take_file(self, file: str, text: str) -> None:
        try:
            for number, value in documents(text):
                if value is not None:
                    self.take(Origin(file, number), value)
        except DocumentError as error:
            self.note(Origin(file, error.document), "", "", str(error))

    def take(self, origin: Origin, value: Any) -> None:
        if not isinstance(value, dict):
            self.note(origin, "", "", "expected an object with apiVersion, kind and metadata")
            return
        api_version, kind = value.get("apiVersion"), value.get("kind")
        if not isinstance(api_version, str) or not isinstance(kind, str):
            missing = "apiVersion" if not isinstance(api_version, str) else "kind"
            self.note(origin, _title_of(value), missing, "required, as text")
        elif kind == "List" and api_version == "v1":
            self.take_list(origin, value)
        elif kind in KINDS and group_of(api_version) == group_of(KINDS[kind].API_VERSIONS[0]):
            self.take_known(origin, value, api_version, KINDS[kind])
        elif is_skipped(api_version, kind):
            if kind not in self.skipped:
                self.note(
                    origin, _title_of(value), "", f"weft has no use for kind {kind}: skipped, like all others of it", True
                )
            self.skipped.add(kind)
        else:
            known = f"of {' or '.join(KINDS[kind].API_VERSIONS)}" if kind in KINDS else f"are {', '.join(KINDS)}"
            self.note(origin, _title_of(value), "kind", f"unknown kind {kind!r} of {api_version!r}: known {known}")

    def take_list(self, origin: Origin, value: dict[str, Any]) -> None:
        items = value.get("items")
        if items is not None and not isinstance(items, list):
            self.note(origin, "List", "items", "expected a list")
            return
        for item in items or ():
            if isinstance(item, dict) and item.get("kind") == "List":
                self.note(origin, "List", "items", "a list must not hold lists")
            else:
                self.take(origin, item)

    def take_known(self, origin: Origin, value: dict[str, Any], api_version: str, kind: type[Object]) -> None:
        if api_version not in kind.API_VERSIONS:
            accepted = " or ".join(kind.API_VERSIONS)
            self.note(
                origin, _title_of(value), "apiVersion", f"{api_version!r} is not known for a {kind.KIND}: write {accepted}"
            )
            return
        notes = Notes()
        made = kind.read_all(Cursor(value, "", notes))
        for where, reason, warning in notes.entries:
            self.note(origin, _title_of(value, kind), where, reason, warning)
        if notes.refused:
            return
        if isinstance(made, Service) and made.type == "ExternalName":
            self.note(origin, made.title, "spec.type", "weft has no use for ExternalName: skipped", True)
            return
        self.keep(origin, made)

    def keep(self, origin: Origin, made: Object) -> None:
        first = self.result.origins.setdefault(made.title, origin)
        if first is not origin:
            self.note(origin, made.title, "metadata.name", f"defined twice: first in {first.file}, document {first.document}")
        else:
            self.result.objects.append(made)


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_HEAD]}...{text[-_TAIL:]}"


def _title_of(value: dict[str, Any], known: type[Object] | None = None) -> str:
    """An object's title as its author wrote it, as far as it can be told from a value that may be wrong anywhere."""
    metadata = value.get("metadata")
    names = metadata if isinstance(metadata, dict) else {}
    kind, namespace, name = (str(one or "")[:253] for one in (value.get("kind"), names.get("namespace"), names.get("name")))
    if known is not None and known.NAMESPACED and not namespace:
        namespace = "default"
    return title(kind, namespace, name)


def parse(files: Mapping[str, str]) -> ManifestSet:
    """Read manifests: file name -> YAML text, of any number of documents each.

    An object with a mistake is left out and its mistakes are among the problems; nothing is raised. What only shows when
    objects meet (`check_references`) is not looked at.
    """
    reading = _Reading()
    for file, text in files.items():
        reading.take_file(file, text)
        if len(reading.result.objects) > MAX_OBJECTS:
            reading.note(Origin(file, 0), "", "", f"more than {MAX_OBJECTS} objects")
            break
    return reading.result


def from_dict(value: dict[str, Any]) -> Object:
    """Read one object of any kind that weft reads, as `to_dict` wrote it.

    Raises: ValueError for other kinds and for every mistake.
    """
    kind = KINDS.get(str(value.get("kind")))
    if kind is None:
        raise ValueError(f"unknown kind {value.get('kind')!r}")
    return kind.from_dict(value)
