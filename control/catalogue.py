"""Texts of manifests into one set of objects, each text read once."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mesh.manifests import ManifestSet, Object, Origin, Problem, parse

MAX_OBJECTS = 50_000
"""Of all files together."""
_log = logging.getLogger("control.catalogue")


@dataclass(slots=True)
class Reading:
    """What the texts say."""

    objects: dict[str, Object] = field(default_factory=dict)
    """By title."""
    origins: dict[str, Origin] = field(default_factory=dict)
    """Where each object was written, by title."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_refused(self) -> bool:
        """Whether any problem is no mere warning."""
        return is_refused(self.problems)

    def located(self, problems: Iterable[Problem]) -> list[Problem]:
        """The same problems, each with the place where its object was written."""
        return [
            replace(one, file=self.origins[one.object].file, document=self.origins[one.object].document)
            if not one.file and one.object in self.origins
            else one
            for one in problems
        ]


def is_refused(problems: Iterable[Problem]) -> bool:
    """Whether any problem is no mere warning."""
    return any(not problem.warning for problem in problems)


def unexpected(error: Exception, outcome: str = "cannot be read") -> str:
    """What to say of manifests with which control cannot deal."""
    if isinstance(error, MemoryError):
        return f"{outcome}: no memory is left: raise the limit of weft-control or its container"
    return f"{outcome}: internal error: {type(error).__name__}: {error}; the log of weft-control says where"


class Catalogue:
    """Remembers what each text said."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[str, ManifestSet]] = {}
        self.failing: dict[str, str] = {}
        """The texts with which it could not deal the last time: perhaps it can the next time."""

    def read(self, files: Mapping[str, str]) -> Reading:
        """Read every text, or remember it; then put them together."""
        known, self._read = self._read, {}
        failed, self.failing = self.failing, {}
        parts = []
        for name, text in files.items():
            entry = known.get(name)
            try:
                entry = entry if entry is not None and entry[0] == text else (text, parse({name: text}))
            except Exception as error:  # a mistake of ours, or no memory: this file is refused, and tried again
                self.failing[name] = text
                if failed.get(name) != text:
                    _log.exception("manifests: %s cannot be read", name)
                parts.append(ManifestSet(problems=[Problem(name, 0, "", "", unexpected(error))]))
            else:
                self._read[name] = entry
                parts.append(entry[1])
        return _join(parts)


def _join(parts: Iterable[ManifestSet]) -> Reading:
    reading = Reading()
    warned: set[str] = set()
    for part in parts:
        for problem in part.problems:
            # A kind that is skipped is worth one warning, in however many files it occurs.
            about_kind = problem.warning and not problem.field
            if not about_kind or problem.reason not in warned:
                reading.problems.append(problem)
            if about_kind:
                warned.add(problem.reason)
        for one in part.objects:
            _keep(reading, one, part.origins[one.title])
    if len(reading.objects) > MAX_OBJECTS:
        reading.problems.append(Problem("", 0, "", "", f"{len(reading.objects)} objects, at most {MAX_OBJECTS} are kept"))
    return reading


def _keep(reading: Reading, one: Object, origin: Origin) -> None:
    first = reading.origins.setdefault(one.title, origin)
    if first is origin:
        reading.objects[one.title] = one
    else:
        reason = f"defined twice: first in {first.file}, document {first.document}"
        reading.problems.append(Problem(origin.file, origin.document, one.title, "metadata.name", reason))
