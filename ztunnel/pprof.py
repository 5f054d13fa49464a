"""Profiles in the format of `go tool pprof`. Source: the field numbers of profile.proto, which is public."""

import ast
import gc
import gzip
import sys
from bisect import bisect_right
from collections.abc import Mapping

from mesh.proto.profile_pb2 import Function, Label, Line, Location, Profile, Sample, ValueType
from mesh.proto.profile_pb2 import Mapping as Binary
from ztunnel.channel import Place, ProfileKind, Stack

_TYPES: dict[ProfileKind, tuple[tuple[str, str], tuple[str, str]]] = {
    "cpu": (("samples", "count"), ("cpu", "nanoseconds")),
    "heap": (("inuse_objects", "count"), ("inuse_space", "bytes")),
}
"""Type and unit of a sample's two values; the second is what is shown first."""


def encode(kind: ProfileKind, seen: Mapping[str, list[Stack]], began_ns: int, seconds: int, frequency: int) -> bytes:
    """What was seen in each process, by its name, as a packed profile."""
    return gzip.compress(_Writer(kind, began_ns, seconds, frequency).write(seen).SerializeToString(), 1)


class _Writer:
    """Gives texts, functions and places their numbers."""

    def __init__(self, kind: ProfileKind, began_ns: int, seconds: int, frequency: int) -> None:
        self._texts: dict[str, int] = {"": 0}
        self._functions: dict[tuple[str, str], int] = {}
        self._places: dict[Place, int] = {}
        self._names: dict[str, FunctionNames] = {}
        types = [self._type(*one) for one in _TYPES[kind]]
        self._profile = Profile(
            sample_type=types,
            mapping=[
                Binary(id=1, filename=self._text(sys.executable), has_functions=True, has_filenames=True, has_line_numbers=True)
            ],
            time_nanos=began_ns,
            duration_nanos=seconds * 10**9,
            period_type=types[1],
            period=10**9 // frequency if kind == "cpu" else 1,
            default_sample_type=types[1].type,
        )

    def write(self, seen: Mapping[str, list[Stack]]) -> Profile:
        profile = self._profile
        for process, stacks in seen.items():
            label = Label(key=self._text("process"), str=self._text(process))
            for stack, count, amount in stacks:
                profile.sample.append(
                    Sample(location_id=[self._place(one) for one in stack], value=[count, amount], label=[label])
                )
        profile.string_table.extend(self._texts)
        return profile

    def _type(self, name: str, unit: str) -> ValueType:
        return ValueType(type=self._text(name), unit=self._text(unit))

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))

    def _place(self, place: Place) -> int:
        known = self._places.get(place)
        if known is None:
            name, file, first_line, line = place
            if not name:
                name, first_line = self._names_of(file).at(line)
            function = self._function(name, file, first_line)
            known = self._places[place] = len(self._places) + 1
            self._profile.location.append(Location(id=known, mapping_id=1, line=[Line(function_id=function, line=line)]))
        return known

    def _function(self, name: str, file: str, first_line: int) -> int:
        key = (name, file)
        known = self._functions.get(key)
        if known is None:
            known = self._functions[key] = len(self._functions) + 1
            text = self._text(name)
            self._profile.function.append(
                Function(id=known, name=text, system_name=text, filename=self._text(file), start_line=first_line)
            )
        return known

    def _names_of(self, file: str) -> "FunctionNames":
        if file not in self._names:
            self._names[file] = FunctionNames(file)
        return self._names[file]


class FunctionNames:
    """Which function a line of a file belongs to: whoever traces memory knows lines alone."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._spans: list[tuple[int, int, str]] = []
        try:
            with open(file, encoding="utf-8") as source:
                self._collect(parse(source.read()), "")
        except (OSError, ValueError, SyntaxError):  # no source here: frozen, or made up
            pass
        self._spans.sort()

    def _collect(self, node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}" if prefix else child.name
                self._spans.append((child.lineno, child.end_lineno or child.lineno, name))
            self._collect(child, name)

    def at(self, line: int) -> tuple[str, int]:
        """The innermost function (or class) around a line, and where it begins; the file itself outside all."""
        for first, last, name in reversed(self._spans[: bisect_right(self._spans, (line, sys.maxsize, ""))]):
            if line <= last:
                return name, first
        return f"<{self._file.rpartition('/')[2]}>", 1


def parse(source: str) -> ast.Module:
    """A syntax tree. Raises: SyntaxError, ValueError.

    No garbage is collected meanwhile: a finalizer may parse too, for a traceback, and Python 3.11 fails the outer one of two.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if collects:
            gc.enable()
