"""Tables for people, and what must not reach their terminal."""

import pytest

from cli.output import cell, plain_table, printable

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
