"""Tables for people, and what must not reach their terminal."""

import json

import pytest

from cli.output import cell, in_colour, plain_table, print_json, printable, styled

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (["a", "b"], "a,b"),
        ("a\x1b[31m\n", "a\\x1b[31m\\n"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert cell(value) == text


def test_columns_line_up_without_trailing_blanks() -> None:
    assert plain_table(("A", "LONG"), [("xyz", "1"), ("y", "22")]) == "A     LONG\nxyz   1\ny     22\n"
    assert plain_table(("A", "B"), []) == "A   B\n"


def test_letters_of_all_scripts_are_kept() -> None:
    assert printable("Straße 網") == "Straße 網"


def test_on_a_terminal_names_stay_whole_and_colours_stand_beside_the_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert in_colour()
    table = plain_table(("NAME", "READY"), [("x" * 300, "yes"), ("y", "down (3)")], in_colour())
    heading, first, second = table.splitlines()
    assert heading == f"\x1b[1mNAME\x1b[0m{' ' * 296}   \x1b[1mREADY\x1b[0m"
    assert first == f"{'x' * 300}   \x1b[32myes\x1b[0m" and second == f"y{' ' * 299}   \x1b[31mdown (3)\x1b[0m"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colours_gets_none(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv(variable, value)
    assert not in_colour() and styled("x", fg="red") == "x"


def test_json_is_ascii_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": "\x9b2J\x7f Straße \ud800"})
    shown = capsys.readouterr().out
    assert shown.isascii() and json.loads(shown) == {"a": "\x9b2J\x7f Straße \ud800"}
