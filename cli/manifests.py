"""`weft apply` and `weft delete`: manifests to the embedded control plane, all or nothing."""

import asyncio
import os
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

import click

from cli.dial import control_stub
from cli.failure import Failure, warn
from cli.output import output_option, print_json, printable
from mesh.line import as_text
from mesh.proto.control_pb2 import ApplyRequest, ApplyResponse, DeleteRequest, ManifestFile, Problem
from wire.places import Places

_SUFFIXES = (".yaml", ".yml", ".json")
_MAX_BYTES = 16 << 20
_MAX_FILES = 10_000
_CHANGE_S = 30.0
_MAX_ENTRIES = 100_000
"""Below a folder, manifests or not."""


def read_manifests(sources: Iterable[str]) -> list[ManifestFile]:
    """Read files, folders (all manifests below, sorted) and standard input (`-`).

    Raises: Failure for what cannot be read, is no text, or is too much.
    """
    files: list[ManifestFile] = []
    total = 0
    for name, path in _named(sources):
        data = sys.stdin.buffer.read(_MAX_BYTES + 1) if path is None else _read(path)
        total += len(data)
        if total > _MAX_BYTES or len(files) == _MAX_FILES:
            raise Failure(name, f"more than {_MAX_BYTES >> 20} MiB or {_MAX_FILES} files of manifests", "apply them in parts")
        try:
            files.append(ManifestFile(name=as_text(name), yaml=data.decode()))
        except UnicodeDecodeError as error:
            raise Failure(name, f"not UTF-8 at byte {error.start}", "manifests are text") from None
    return files


def refuse_nothing(found: Collection[object]) -> None:
    """Raises: Failure where manifests have neither objects nor mistakes."""
    if not found:
        raise Failure("manifests", "no object in them", "each needs apiVersion, kind and metadata")


def _named(sources: Iterable[str]) -> Iterable[tuple[str, Path | None]]:
    for source in sources:
        if not source:
            raise Failure("''", "no name of a file or folder", "is a variable empty?")
        if source == "-":
            yield "standard input", None
        elif os.path.isdir(source):
            found = _manifests_below(Path(source))
            if not found:
                raise Failure(source, "no manifest in this folder", f"names end in {', '.join(_SUFFIXES)}")
            yield from ((str(file), file) for file in found)
        else:
            yield source, Path(source)


def _manifests_below(folder: Path) -> list[Path]:
    found = []
    for number, file in enumerate(folder.rglob("*")):
        if number == _MAX_ENTRIES:
            raise Failure(str(folder), f"more than {_MAX_ENTRIES} files and folders below it", "name a folder of manifests")
        if file.suffix in _SUFFIXES and file.is_file():
            found.append(file)
    return sorted(found)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise Failure(str(path), error.strerror or str(error)) from None


def problem_line(problem: Problem) -> str:
    """A problem in one line: where, what, why."""
    place = problem.file + (f", document {problem.document}" if problem.document else "")
    parts = [place, problem.object, problem.field, problem.reason]
    return ("warning: " if problem.warning else "") + ": ".join(printable(part) for part in parts if part)


def problem_json(problem: Problem) -> dict[str, object]:
    """A problem for programs."""
    return {
        name: getattr(problem, name) for name in ("file", "document", "object", "field", "reason", "warning")
    }  # fmt: skip


def _show(response: ApplyResponse, dry_run: bool, output: str) -> None:
    changes = [{"object": change.object, "change": change.change} for change in response.changes]
    if output == "json":
        problems = [problem_json(problem) for problem in response.problems]
        print_json({"changes": changes, "problems": problems, "dryRun": dry_run})
    for problem in response.problems:
        warn(problem_line(problem))
    refuse_nothing([*changes, *response.problems])
    if output == "table":
        for change in changes:
            click.echo(f"{printable(change['object'])} {change['change']}" + (" (dry run)" if dry_run else ""))
    if any(not problem.warning for problem in response.problems):
        warn("nothing was changed: mend the above and repeat")
        raise click.exceptions.Exit(1)


_files_option = click.option(
    "-f", "--filename", "sources", multiple=True, required=True, metavar="FILE|DIR|-",
    help="Manifest, folder of manifests, or - for standard input; may be repeated.",
)  # fmt: skip
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check and say what would change; change nothing.")


@click.command(
    epilog="""
\b
Examples:
  weft apply -f policy.yaml            one file, any number of objects
  weft apply -f manifests/ --dry-run   check a folder, change nothing
  cat policy.yaml | weft apply -f -
"""
)
@_files_option
@_dry_run_option
@output_option
def apply(sources: tuple[str, ...], dry_run: bool, output: str) -> None:
    """Put manifests in force, all of them or none.

    Kubernetes' and Istio's kinds: Node, Namespace, ServiceAccount, Pod, Deployment, Service, EndpointSlice, ServiceEntry,
    WorkloadEntry, Gateway, AuthorizationPolicy, PeerAuthentication.
    """
    files = read_manifests(sources)

    async def call() -> ApplyResponse:
        async with control_stub(Places.from_environment(), _CHANGE_S) as stub:
            response: ApplyResponse = await stub.Apply(ApplyRequest(files=files, dry_run=dry_run), timeout=_CHANGE_S)
            return response

    _show(asyncio.run(call()), dry_run, output)


@click.command(
    epilog="""
\b
Examples:
  weft delete -f policy.yaml             the objects that the file names
  weft delete -f manifests/ --dry-run    say what would go
"""
)
@_files_option
@_dry_run_option
@output_option
def delete(sources: tuple[str, ...], dry_run: bool, output: str) -> None:
    """Take the objects of manifests out of force.

    Only their kinds and names count, but the manifests must be valid; what is not there is no error.
    """
    files = read_manifests(sources)

    async def call() -> ApplyResponse:
        async with control_stub(Places.from_environment(), _CHANGE_S) as stub:
            response: ApplyResponse = await stub.Delete(DeleteRequest(files=files, dry_run=dry_run), timeout=_CHANGE_S)
            return response

    _show(asyncio.run(call()), dry_run, output)
