"""Objects from a folder of manifests: follows it, and is the way by which `weft apply` and `weft delete` change it.

A set of manifests counts only as a whole. While any file is wrong, the last good set stays in force and the problems are
shown; a change through here is refused with the problems that the whole set would then have.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from control.catalogue import Catalogue, Reading, is_refused, unexpected
from control.cluster import Cluster, NotTaken
from control.folder import Folder, Texts
from control.text import manifest_text
from mesh.manifests import ManifestSet, Node, Object, Problem, parse

POLL_S, LONGEST_POLL_S = 0.1, 1.0
POLL_SHARE = 20
"""A look at the folder may take one part in this many of the time: some 2,000 files every 0.2 s, 10,000 every second."""
_MAX_FILE_NAME_BYTES = 255
MAX_LOGGED = 20
"""Objects named in one line, and problems logged at a time."""
_log = logging.getLogger("control.source")

Change = Literal["created", "configured", "unchanged", "deleted", "absent"]
_Plan = tuple[list[tuple[str, Change]], dict[str, str | None]]
"""What happens to which object, and the files to write (None: to remove)."""
_Planner = Callable[[ManifestSet], _Plan]


@dataclass(slots=True)
class Outcome:
    """What a requested change does, or why it cannot be."""

    changes: list[tuple[str, Change]] = field(default_factory=list)
    """Title of the object, and what happens to it."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_refused(self) -> bool:
        """Whether nothing was changed."""
        return is_refused(self.problems)


class FolderSource:
    """The manifests of one mesh."""

    def __init__(self, folder: Folder, cluster: Cluster) -> None:
        self.problems: list[Problem] = []
        """Of the manifests as they are now on disk."""
        self._folder = folder
        self._cluster = cluster
        self._catalogue = Catalogue()
        self._texts = Texts()
        self._reading = Reading()
        self._failed = False
        """The last look ended with a mistake of ours, or for want of memory: the next one begins anew."""
        self._is_read = False
        """The last look found out what is written, whatever came of it."""
        self._look_s = 0.0
        """How long a look takes that finds nothing new, or fails."""
        self._lock = asyncio.Lock()

    async def follow(self) -> None:
        """Take in every change of the folder, for ever."""
        while True:
            await self.refresh()
            share_s = POLL_SHARE * self._look_s
            await asyncio.sleep(max(LONGEST_POLL_S, share_s) if self._failed else min(LONGEST_POLL_S, max(POLL_S, share_s)))

    async def refresh(self) -> None:
        """Take in what is on disk now."""
        async with self._lock:
            await self._refresh()

    async def _refresh(self) -> None:
        before = time.monotonic()
        try:
            texts = await asyncio.to_thread(self._folder.read)
            if texts is None and not self._failed:
                self._look_s = time.monotonic() - before
                return
            if texts is not None:
                self._texts = texts
            reading = await asyncio.to_thread(self._catalogue.read, self._texts.files)
            problems = [*_unreadable(self._texts), *reading.problems]
            objects = list(reading.objects.values())
            if not is_refused(problems):
                problems += reading.located(self._cluster.check(objects))
        except Exception as error:  # nothing was changed yet: what is in force stays so, and everybody is served
            self._is_read = False
            self._fail(f"the folder of manifests {unexpected(error)}", error, before)
            return
        self._is_read, self._reading = True, reading
        try:
            if not is_refused(problems):
                self._cluster.replace_objects(objects)
        except Exception as error:  # as where memory ends: the next look begins it anew
            reason = str(error) if isinstance(error, NotTaken) else f"manifests {unexpected(error, 'cannot be taken in')}"
            self._fail(reason, error, before)
            return
        again, self._failed = self._failed, bool(self._catalogue.failing)
        if not (again and self._failed and problems == self.problems):
            self._say(problems)

    def _fail(self, reason: str, error: Exception, since: float) -> None:
        self._look_s = time.monotonic() - since
        problem = Problem("", 0, "", "", reason)
        if not self._failed or self.problems != [problem]:
            _log.error("manifests: %s", problem, exc_info=error)
            self._say([problem])
        self._failed = True

    def _say(self, problems: list[Problem]) -> None:
        """Show problems from now on, and log each one that is new."""
        known = set(self.problems)
        news = [problem for problem in problems if problem not in known]
        for problem in news[:MAX_LOGGED]:
            _log.log(logging.WARNING if problem.warning else logging.ERROR, "manifests: %s", problem)
        if len(news) > MAX_LOGGED:
            _log.warning("manifests: and %d more: see weft status", len(news) - MAX_LOGGED)
        if is_refused(problems):
            kept = (
                "the last good state stays in force" if self._cluster.is_loaded else "nodes are told nothing until it is mended"
            )
            _log.error("manifests: refused: %s", kept)
        else:
            _log.info("manifests: %d objects in force, revision=%d", len(self._reading.objects), self._cluster.revision)
        self.problems = problems

    async def apply(self, files: Mapping[str, str], dry_run: bool) -> Outcome:
        """Add or change objects: all of them or, with any problem that is no warning, none."""

        def plan(wanted: ManifestSet) -> _Plan:
            changes: list[tuple[str, Change]] = []
            writes: dict[str, str | None] = {}
            for manifest in wanted.objects:
                known = self._reading.objects.get(manifest.title)
                one = _with_ranges(manifest, known)
                changes.append((one.title, "created" if known is None else "unchanged" if known == one else "configured"))
                if known != one:
                    writes[one.file_name] = manifest_text(one)
            return changes, writes

        return await self._change(files, dry_run, plan)

    async def delete(self, files: Mapping[str, str], dry_run: bool) -> Outcome:
        """Remove objects by what their manifests are called: all that are there or, with any problem, none."""

        def plan(wanted: ManifestSet) -> _Plan:
            present = [one for one in wanted.objects if one.title in self._reading.objects]
            changes: list[tuple[str, Change]] = [
                (one.title, "deleted" if one.title in self._reading.objects else "absent") for one in wanted.objects
            ]
            return changes, {one.file_name: None for one in present}

        return await self._change(files, dry_run, plan)

    async def _change(self, files: Mapping[str, str], dry_run: bool, plan: _Planner) -> Outcome:
        wanted = await asyncio.to_thread(parse, files)
        if wanted.refused:
            return Outcome(problems=wanted.problems)
        # Who asked may go away meanwhile: what is begun is written whole, and nobody looks before.
        return await asyncio.shield(self._carry_out(wanted, dry_run, plan))

    async def _carry_out(self, wanted: ManifestSet, dry_run: bool, plan: _Planner) -> Outcome:
        async with self._lock:
            await self._refresh()
            if not self._is_read:
                return Outcome(problems=self.problems)
            changes, writes = plan(wanted)
            problems = [*wanted.problems, *self._obstacles(wanted, writes)]
            if not is_refused(problems):
                problems += await self._foresee(wanted, writes)
            if is_refused(problems):
                return Outcome(problems=problems)
            if writes and not dry_run:
                problems += await self._write(writes)
            if is_refused(problems):
                return Outcome(problems=problems)
            if writes and not dry_run:
                _log.info("manifests: written: %s", ", ".join(f"{title} {change}" for title, change in changes[:MAX_LOGGED]))
            return Outcome(changes, problems)

    def _obstacles(self, wanted: ManifestSet, writes: Mapping[str, str | None]) -> Iterator[Problem]:
        """Why objects cannot be written where they are."""
        for one in wanted.objects:
            if one.file_name not in writes:
                continue
            origin = wanted.origins[one.title]
            known = self._reading.origins.get(one.title)
            reason = None
            if not self._folder.is_writable:
                reason = f"control reads the one file {self._folder.path}: change it there"
            elif len(one.file_name.encode()) > _MAX_FILE_NAME_BYTES:
                reason = f"its file name would have more than {_MAX_FILE_NAME_BYTES} bytes: shorten its name"
            elif known is not None and known.file != one.file_name:
                reason = f"it stands in {known.file}, document {known.document}, of {self._folder.path}: change it there"
            if reason is not None:
                yield Problem(origin.file, origin.document, one.title, "metadata.name", reason)

    async def _foresee(self, wanted: ManifestSet, writes: Mapping[str, str | None]) -> list[Problem]:
        """The problems that the whole set would have: all that would refuse it, and the warnings about wanted objects."""
        texts = {name: text for name, text in self._texts.files.items() if name not in writes}
        texts |= {name: text for name, text in writes.items() if text is not None}
        reading = await asyncio.to_thread(self._catalogue.read, texts)
        reading.origins |= wanted.origins
        problems = [one for one in _unreadable(self._texts) if one.file not in writes]
        problems += reading.problems
        if not is_refused(problems):
            problems += self._cluster.check(list(reading.objects.values()))
        kept = [one for one in problems if not one.warning or one.object in wanted.origins]
        return reading.located(replace(one, file="") if one.file in writes else one for one in kept)

    async def _write(self, writes: Mapping[str, str | None]) -> list[Problem]:
        before = {name: self._texts.files.get(name) for name in writes if name not in self._texts.unreadable}
        try:
            await asyncio.to_thread(self._folder.write, writes)
        except OSError as error:
            reason = f"cannot write to {self._folder.path}: {error.strerror}: nothing was changed"
            return [Problem("", 0, "", "", reason)]
        await self._refresh()
        problems = [one for one in self.problems if not one.warning]
        if problems:  # it cannot be taken in, or somebody wrote beside it: a control that starts anew would tell nodes nothing
            kept = {name: text for name, text in before.items() if self._is_ours(name, writes[name])}
            try:
                await asyncio.to_thread(self._folder.write, kept)
            except OSError as error:
                mend = "it is written: delete it, or weft status says when it is in force"
                problems.append(Problem("", 0, "", "", f"the change cannot be taken back: {error.strerror}: {mend}"))
            await self._refresh()
        return problems

    def _is_ours(self, name: str, text: str | None) -> bool:
        """Whether a file is as it was just written; else somebody wrote it since."""
        texts = self._texts
        return "." in texts.unreadable or (name not in texts.unreadable and texts.files.get(name) == text)


def _with_ranges(one: Object, known: Object | None) -> Object:
    """A Node whose manifest names no pod ranges keeps those that it has, as in Kubernetes: the lab may have chosen them."""
    if isinstance(one, Node) and isinstance(known, Node) and not one.pod_cidrs:
        return replace(one, pod_cidrs=known.pod_cidrs)
    return one


def _unreadable(texts: Texts) -> list[Problem]:
    return [Problem(name, 0, "", "", reason) for name, reason in texts.unreadable.items()]
