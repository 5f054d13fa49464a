"""What commands print: tables for people, JSON for programs. Data goes to stdout, words about it to stderr."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from mesh.line import one_line

NOTHING = "-"
_GAP = "   "
_COLOURS = {
    "ok": "green", "ready": "green", "yes": "green", "enrolled": "green", "available": "green", "healthy": "green",
    "created": "green", "configured": "yellow", "pending": "yellow", "initializing": "yellow", "deleted": "yellow",
    "failed": "red", "no": "red", "down": "red", "unavailable": "red", "unhealthy": "red", "expired": "red",
}  # fmt: skip

output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print the answer."
)


def in_colour() -> bool:
    """Whether stdout is a terminal that has colours, and nobody wants none (NO_COLOR)."""
    terminal = sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return terminal and not os.environ.get("NO_COLOR")


def styled(text: str, **style: Any) -> str:
    """A text in click's style where stdout is in colour."""
    return click.style(text, **style) if in_colour() else text


def printable(text: str) -> str:
    """Escape control characters: what comes from the mesh must not steer a terminal or fake a line."""
    return one_line(text)


def cell(value: object) -> str:
    """One table cell: a dash for nothing, `yes` or `no` for truth, lists joined by commas."""
    if value is None or value in ("", [], ()):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return printable(",".join(str(item) for item in value))
    return printable(str(value))


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]], colours: bool = False) -> str:
    """Columns padded with spaces. What is wider than a terminal is the terminal's to wrap: names stay whole."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str], paint: Callable[[str], str]) -> str:
        padded = (
            (paint(text) if colours else text) + " " * (width - len(text)) for text, width in zip(cells, widths, strict=True)
        )
        return _GAP.join(padded).rstrip() + "\n"

    return line(headings, lambda text: click.style(text, bold=True)) + "".join(line(row, _painted) for row in rows)


def _painted(text: str) -> str:
    colour = _COLOURS.get(text.split(" ")[0].lower())
    return click.style(text, fg=colour) if colour else text


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: with colour where stdout has it, plain elsewhere."""
    click.echo(plain_table(headings, [[cell(value) for value in row] for row in rows], in_colour()), nl=False)


def print_json(value: Any) -> None:
    """Print one JSON document, in ASCII: what comes from the mesh steers no terminal, and any locale can show it."""
    click.echo(json.dumps(value, indent=2))
