"""What commands print: tables for people, JSON for programs. Data goes to stdout, words about it to stderr."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

NOTHING = "-"
_GAP = "   "
_STYLES = {
    "ok": "green", "ready": "green", "yes": "green", "enrolled": "green", "available": "green", "healthy": "green",
    "created": "green", "configured": "yellow", "pending": "yellow", "initializing": "yellow", "deleted": "yellow",
    "failed": "red", "no": "red", "down": "red", "unavailable": "red", "unhealthy": "red", "expired": "red",
}  # fmt: skip

output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print the answer."
)


def printable(text: str) -> str:
    """Escape control characters: what comes from the mesh must not steer a terminal or fake a line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def cell(value: object) -> str:
    """One table cell: a dash for nothing, `yes` or `no` for truth, lists joined by commas."""
    if value is None or value in ("", [], ()):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return printable(",".join(str(item) for item in value))
    return printable(str(value))


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded with spaces, no colour: what a pipe or a file gets."""
    lines = [tuple(headings), *map(tuple, rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(headings))]
    padded = (_GAP.join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(f"{line.rstrip()}\n" for line in padded)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: with colour where stdout is a terminal, plain elsewhere."""
    cells = [[cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        click.echo(plain_table(headings, cells), nl=False)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in cells:
        table.add_row(*(Text(text, _STYLES.get(text.split(" ")[0].lower(), "")) for text in row))
    Console().print(table)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
